"""Texts and rows of counts as tf-idf vectors of unit length, and groups of what is alike: the one tf-idf and the one k-means. Loads no
model; knows nothing about rows, metrics or what the groups are for.

tf-idf with smooth inverse document frequency and cosine similarity (Salton & Buckley 1988); spherical k-means (Dhillon & Modha 2001) seeded
by k-means++ (Arthur & Vassilvitskii 2007), the best of a few candidates for each next centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.words import words

Floats = NDArray[np.float64]


def weighted(counts: Any, min_rows: int = 1) -> Any:
    """Sparse counts [n, terms] → tf · (ln((1 + n) / (1 + rows with the term)) + 1), each row of length 1 (or 0, where it has no term).

    Terms in fewer than `min_rows` rows are left out: they can teach nothing about another row.
    """
    from scipy.sparse import csr_array

    table = csr_array(counts)
    table.sum_duplicates()
    n, terms = table.shape
    times = np.bincount(table.indices, minlength=terms)
    frequent = times >= min_rows
    inside = frequent[table.indices]
    indices = (np.cumsum(frequent) - 1)[table.indices[inside]].astype(table.indices.dtype)
    starts = np.concatenate([[0], np.cumsum(inside)])[table.indptr].astype(table.indptr.dtype)
    values = table.data[inside] * (np.log((1 + n) / (1 + times[frequent])) + 1)[indices]
    row = np.repeat(np.arange(n), np.diff(starts))
    length = np.sqrt(np.bincount(row, values * values, minlength=n))
    return csr_array((values / length[row], indices, starts), shape=(n, int(frequent.sum())))


def clusters(vectors: Any, k: int, seed: int = 0, rounds: int = 20) -> NDArray[np.intp]:
    """The group of each row of unit vectors [n, d], sparse or dense: 0 to at most k − 1, without gaps; the same for the same seed."""
    n = vectors.shape[0]
    if n == 0:
        return np.zeros(0, dtype=np.intp)
    centres = _seeded(vectors, min(k, n), np.random.default_rng(seed))
    label = np.full(n, -1)
    for _ in range(rounds):
        nearest = np.argmax(vectors @ centres.T, axis=1)
        if np.array_equal(nearest, label):
            break
        label = nearest
        sums = np.vstack([np.asarray(vectors[label == c].sum(axis=0)).reshape(1, -1) for c in range(len(centres))])
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > 0, sums / np.where(length > 0, length, 1), centres)
    return np.unique(label, return_inverse=True)[1]


def _seeded(vectors: Any, k: int, rng: np.random.Generator) -> Floats:
    """The first centres [at most k, d]: rows drawn by their distance from those chosen before; fewer where no row is apart from them."""
    n = vectors.shape[0]
    chosen = [int(rng.integers(n))]
    apart = _apart(vectors, chosen)[:, 0]
    for _ in range(1, k):
        total = apart.sum()
        if total <= 1e-9:
            break
        candidates = rng.choice(n, size=2 + int(np.log(k)), p=apart / total)
        closer = np.minimum(apart[:, None], _apart(vectors, candidates))
        best = int(closer.sum(axis=0).argmin())
        chosen.append(int(candidates[best]))
        apart = closer[:, best]
    return _dense(vectors, chosen)


def _apart(vectors: Any, rows: Sequence[int] | NDArray[np.int64]) -> Floats:
    """1 − cosine of every row with some of them: [n, len(rows)]."""
    return np.maximum(1.0 - np.asarray(vectors @ _dense(vectors, rows).T), 0.0)


def _dense(vectors: Any, rows: Sequence[int] | NDArray[np.int64]) -> Floats:
    picked = vectors[np.asarray(rows)]
    return np.asarray(picked.toarray() if hasattr(picked, "toarray") else picked, dtype=np.float64)


class TextIndex:
    """An index over texts by their words, in any script: what is alike, what belongs together, which words tell a group."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._places: dict[str, int] = {}
        bags = [words(text) for text in texts]
        for bag in bags:
            for word in bag:
                self._places.setdefault(word, len(self._places))
        raw = self._counts(bags)
        self._idf = np.log((1 + len(texts)) / (1 + np.bincount(raw.indices, minlength=len(self._places)))) + 1
        self._rows = weighted(raw)

    @cached_property
    def _columns(self) -> Any:
        return self._rows.T.tocsr()

    def similar(self, texts: Sequence[str]) -> Floats:
        """Cosine of each text with each indexed one: (texts, indexed)."""
        asked = self._counts([words(text) for text in texts])
        asked.data *= self._idf[asked.indices]
        length = np.sqrt(np.asarray(asked.multiply(asked).sum(axis=1)).ravel())
        likeness: Floats = (asked @ self._columns).toarray()
        return likeness / np.where(length > 0, length, 1)[:, None]

    def rank(self, text: str) -> list[int]:
        """Indexed texts from the most alike to the least; equal ones in their order."""
        return [int(i) for i in np.argsort(-self.similar([text])[0], kind="stable")]

    def clusters(self, k: int, seed: int = 0) -> NDArray[np.intp]:
        """The group of each text, numbered from 0 without gaps; at most `k`."""
        return clusters(self._rows, k, seed)

    def telling(self, inside: NDArray[np.bool_], n: int = 4) -> list[str]:
        """The words that most set the texts `inside` apart from the others: largest difference of mean weight, positive ones only."""
        rest = self._rows[~inside].mean(axis=0) if not inside.all() else 0
        gap = np.asarray(self._rows[inside].mean(axis=0) - rest).ravel()
        known = list(self._places)
        return [known[int(i)] for i in np.argsort(-gap, kind="stable")[:n] if gap[int(i)] > 0]

    def _counts(self, bags: Sequence[Sequence[str]]) -> Any:
        from scipy.sparse import csr_array

        cells = [(i, self._places[word]) for i, bag in enumerate(bags) for word in bag if word in self._places]
        rows, columns = np.array(cells, dtype=np.int32).reshape(-1, 2).T
        table = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(bags), len(self._places)))
        table.sum_duplicates()
        return table
