"""What a data set is about: rows grouped by their words, with the words that mark each group; knows nothing about labels.

Latent semantic analysis (truncated SVD of tf-idf; Deerwester et al. 1990), then spherical k-means with a fixed seed: the same rows give
the same groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tunesmith.core.text_vectors import clusters
from tunesmith.data.labels import tfidf
from tunesmith.data.text import normalised


class Topic(NamedTuple):
    """A group of rows: their indices, the words that are much more common in it than elsewhere, and the row nearest to its middle."""

    rows: tuple[int, ...]
    words: tuple[str, ...]
    typical: int


def latent(texts: Sequence[str], dimensions: int = 32) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Vectors of length 1 (n × at most `dimensions`) whose cosines follow shared vocabulary; zero for texts without shared words."""
    table = tfidf(texts)
    k = min(dimensions, min(table.shape) - 1)
    if k < 1:
        return np.zeros((len(texts), 1))
    # random projection, two power iterations (Halko, Martinsson, Tropp 2011); Lanczos' method fails on rows that are nearly all the same
    sample = table @ np.random.default_rng(0).standard_normal((table.shape[1], k + 10))
    for _ in range(2):
        sample = table @ (table.T @ np.linalg.qr(sample)[0])
    base = np.linalg.qr(sample)[0]
    left, values, _ = np.linalg.svd((table.T @ base).T, full_matrices=False)
    vectors = base @ left[:, :k] * values[:k]
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 1e-9))


def topics(texts: Sequence[str], count: int | None = None, *, seed: int = 0) -> list[Topic]:
    """Groups of similar texts, largest first; `count` None takes about one for each 40 rows, 2 to 20."""
    if len(texts) < 4:
        return [Topic(tuple(range(len(texts))), (), 0)] if texts else []
    vectors = latent(texts)
    group = clusters(vectors, count or max(2, min(20, len(texts) // 40)), seed)
    vocabularies = [set(normalised(text).split()) for text in texts]
    overall = Counter(word for vocabulary in vocabularies for word in vocabulary)
    named = []
    for number in range(int(group.max()) + 1):
        members = np.flatnonzero(group == number)
        typical = members[(vectors[members] @ vectors[members].mean(axis=0)).argmax()]
        named.append(Topic(tuple(members.tolist()), _marks(vocabularies, members.tolist(), overall, len(texts)), int(typical)))
    return sorted(named, key=lambda topic: (-len(topic.rows), topic.rows))


def _marks(words: Sequence[set[str]], members: Sequence[int], overall: Counter[str], n: int) -> tuple[str, ...]:
    """Up to six words of letters whose share in the group exceeds their share everywhere the most."""
    here = Counter(word for i in members for word in words[i])
    gain = {word: times / len(members) - overall[word] / n for word, times in here.items() if len(word) > 2 and word.isalpha()}
    return tuple(word for word, more in sorted(gain.items(), key=lambda item: (-item[1], item[0]))[:6] if more > 0.02)
