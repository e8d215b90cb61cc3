"""Texts as TF-IDF rows of unit length, in any script: what is alike, what belongs together, what words tell a group; loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.evaluate.metrics.overlap import words

Floats = NDArray[np.float64]


class TfIdf:
    """An index over texts; smooth inverse document frequency, cosine similarity (Salton & Buckley 1988)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._index: dict[str, int] = {}
        bags = [words(text) for text in texts]
        for bag in bags:
            for word in bag:
                self._index.setdefault(word, len(self._index))
        raw = self._counts(bags)
        self._idf = np.log((1 + len(texts)) / (1 + np.asarray((raw > 0).sum(axis=0)).ravel())) + 1
        self._rows = self._unit(raw)

    @cached_property
    def _columns(self) -> Any:
        return self._rows.T.tocsr()

    def similar(self, texts: Sequence[str]) -> Floats:
        """Cosine of each text with each indexed one: (texts, indexed)."""
        found: Floats = (self._unit(self._counts([words(text) for text in texts])) @ self._columns).toarray()
        return found

    def rank(self, text: str) -> list[int]:
        """Indexed texts from the most alike to the least; equal ones in their order."""
        return [int(i) for i in np.argsort(-self.similar([text])[0], kind="stable")]

    def clusters(self, k: int, seed: int = 0, rounds: int = 20) -> NDArray[np.intp]:
        """Spherical k-means (Dhillon & Modha 2001): the cluster of each text, numbered from 0 without gaps; at most `k`."""
        n = self._rows.shape[0]
        rng = np.random.default_rng(seed)
        centres = self._rows[[int(rng.integers(n))]].toarray()
        for _ in range(1, min(k, n)):  # the next centre is the text farthest from all
            centres = np.vstack([centres, self._rows[[int(np.argmin((self._rows @ centres.T).max(axis=1)))]].toarray()])
        label = np.full(n, -1)
        for _ in range(rounds):
            nearest = np.argmax(self._rows @ centres.T, axis=1)
            if np.array_equal(nearest, label):
                break
            label = nearest
            sums = np.vstack([np.asarray(self._rows[label == c].sum(axis=0)) for c in range(len(centres))])
            length = np.linalg.norm(sums, axis=1, keepdims=True)
            centres = np.where(length > 0, sums / np.where(length > 0, length, 1), centres)
        return np.unique(label, return_inverse=True)[1]

    def telling(self, inside: NDArray[np.bool_], n: int = 4) -> list[str]:
        """The words that most set the texts `inside` apart from the others: largest difference of mean weight, positive ones only."""
        rest = self._rows[~inside].mean(axis=0) if not inside.all() else 0
        gap = np.asarray(self._rows[inside].mean(axis=0) - rest).ravel()
        known = list(self._index)
        return [known[int(i)] for i in np.argsort(-gap, kind="stable")[:n] if gap[int(i)] > 0]

    def _counts(self, bags: Sequence[Sequence[str]]) -> Any:
        from scipy.sparse import csr_matrix

        cells = [(i, self._index[word]) for i, bag in enumerate(bags) for word in bag if word in self._index]
        rows, columns = np.array(cells, dtype=np.int64).reshape(-1, 2).T
        return csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(bags), len(self._index)))

    def _unit(self, counts: Any) -> Any:
        weighted = counts.multiply(self._idf).tocsr()
        length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        return weighted.multiply((1 / np.where(length > 0, length, 1))[:, None]).tocsr()
