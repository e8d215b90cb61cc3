"""Near-duplicates: every pair of texts whose shingle sets have a Jaccard similarity of at least a threshold, exactly, with that value.

Exact means: no pair is missed and none is false, up to collisions of 64-bit hashes (two different shingles among 10⁸ are confused with a
chance of 0.03 %, and that would change one Jaccard by 1/n). Deterministic. Small inputs go through scipy's sparse product, large ones
through the compiled join: the pairs are the same. Rows are plain texts here; which text a row has is `text.comparison_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.load import need
from tunesmith.data.shingle import Shingles, joined, shingles

Ints = np.ndarray[Any, np.dtype[np.int64]]
Places = np.ndarray[Any, np.dtype[np.int32]]  # of rows: 32 bits hold two thousand million
Floats = np.ndarray[Any, np.dtype[np.float64]]

SMALL_ROWS = 20_000  # above, even counting shared shingles costs more than loading the compiled join
SMALL_PRODUCT = 100_000_000  # multiplications that cost less than compiling would


class Pairs(NamedTuple):
    """Similar pairs: `left[k]` < `right[k]` (for two sides: new, old) with `jaccard[k]`; sorted by left, then right."""

    left: Places
    right: Places
    jaccard: Floats


def near_duplicates(texts: Sequence[str] | Shingles, threshold: float = 0.8, *, size: int = 2, compiled: bool | None = None) -> Pairs:
    """Pairs of texts with Jaccard ≥ threshold over shingles of `size` words.

    Texts with equal sets are linked to the first of them with 1.0, and only that one is compared further: k copies give k − 1 pairs, not
    k². Texts without a word are in no pair. Raises ConfigError for a threshold outside (0, 1].
    """
    sets = _sets(texts, size, compiled, threshold)
    first = _first_equal(sets, compiled, np.arange(len(sets)))
    distinct = np.flatnonzero((first == np.arange(len(sets))) & (np.diff(sets.starts) > 0))
    left, right, jaccard = _pairs(sets, distinct, np.zeros(len(distinct), dtype=np.uint8), False, threshold, compiled)
    copies = np.flatnonzero((first != np.arange(len(sets))) & (np.diff(sets.starts) > 0))
    swapped = left > right
    left[swapped], right[swapped] = right[swapped], left[swapped]
    if len(copies):
        left = np.concatenate([left, first[copies].astype(np.int32)])
        right = np.concatenate([right, copies.astype(np.int32)])
        jaccard = np.concatenate([jaccard, np.ones(len(copies))])
    order = np.argsort(left * np.int64(len(sets)) + right)  # one sort of one number instead of two: no pair comes twice
    return Pairs(left[order], right[order], jaccard[order])


def best_matches(
    new: Sequence[str] | Shingles, old: Sequence[str] | Shingles, threshold: float = 0.8, *, size: int = 2, compiled: bool | None = None
) -> tuple[Ints, Floats]:
    """For each new text the most similar old one with Jaccard ≥ threshold: its index (the first among equals, -1 for none) and the value
    (0.0 for none). Serves leakage, contamination and adding rows to a set."""
    fresh, known = _sets(new, size, compiled, threshold), _sets(old, size, compiled, threshold)
    n_new, n_old = len(fresh), len(known)
    index, value = matches_across(joined([fresh, known]), np.arange(n_new), np.arange(n_new, n_new + n_old), threshold, compiled=compiled)
    return np.where(index >= 0, index - n_new, -1), value


def matches_across(sets: Shingles, new: Ints, old: Ints, threshold: float, *, compiled: bool | None = None) -> tuple[Ints, Floats]:
    """For each of the texts at the places `new` the most similar of those at `old` (ascending): its place in `sets` and the value, as
    `best_matches`."""
    n_new = len(new)
    first_new, first_old = _first_equal(sets, compiled, new), _first_equal(sets, compiled, old)
    rows = np.concatenate([new[first_new == np.arange(n_new)], old[first_old == np.arange(len(old))]])
    sides = np.zeros(len(sets), dtype=np.uint8)
    sides[old] = 1
    rows = rows[np.diff(sets.starts)[rows] > 0]
    left, right, jaccard = _pairs(sets, rows, sides[rows], True, threshold, compiled)
    left_is_new = sides[left] == 0
    news, olds = np.where(left_is_new, left, right), np.where(left_is_new, right, left)
    place = np.full(len(sets), -1, dtype=np.int32)
    place[new] = np.arange(n_new, dtype=np.int32)
    index, value = np.full(n_new, -1, dtype=np.int64), np.zeros(n_new)
    order = np.lexsort((-olds, jaccard))  # the last one written wins: highest value, then lowest index
    index[place[news[order]]], value[place[news[order]]] = olds[order], jaccard[order]
    return index[first_new], value[first_new]


def components(pairs: Pairs, n: int) -> Ints:
    """The cluster of each of n rows: the lowest row index that it is linked to by pairs. int64 (n)."""
    if n > SMALL_ROWS:  # scipy makes a graph of numbers of 8 bytes each, both ways
        need("numba", extra="data")
        from tunesmith.data import join

        return np.asarray(join.lowest_linked(pairs.left, pairs.right, n), dtype=np.int64)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs.left), dtype=np.int8), (pairs.left, pairs.right)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    lowest = np.full(int(label.max(initial=-1)) + 1, n, dtype=np.int64)
    np.minimum.at(lowest, label, np.arange(n))
    return np.asarray(lowest[label], dtype=np.int64)


def _sets(texts: Sequence[str] | Shingles, size: int, compiled: bool | None, threshold: float) -> Shingles:
    if not 0 < threshold <= 1:
        raise ConfigError(f"a near-duplicate threshold of {threshold}", allowed="a Jaccard similarity above 0 and up to 1, such as 0.8")
    return texts if isinstance(texts, Shingles) else shingles(texts, size=size, compiled=compiled)


def _first_equal(sets: Shingles, compiled: bool | None, rows: Ints) -> Ints:
    """For each of the rows the first of them (by its number among them) whose set is equal."""
    if compiled or (compiled is None and len(rows) > SMALL_ROWS):
        need("numba", extra="data")
        from tunesmith.data import join

        return np.asarray(join.first_equal(sets.hashes, sets.starts, rows), dtype=np.int64)
    seen: dict[bytes, int] = {}
    data, starts = sets.hashes, sets.starts.tolist()
    return np.array(
        [seen.setdefault(data[starts[row] : starts[row + 1]].tobytes(), i) for i, row in enumerate(rows.tolist())], dtype=np.int64
    )


def _pairs(sets: Shingles, rows: Ints, sides: Any, cross: bool, threshold: float, compiled: bool | None) -> tuple[Places, Places, Floats]:
    """Pairs of the given rows (indices into `sets`), in no order."""
    if len(rows) < 2:
        return np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32), np.zeros(0)
    if compiled is False or (compiled is None and len(rows) <= SMALL_ROWS):
        pairs = _pairs_scipy(sets, rows, sides, cross, threshold, SMALL_PRODUCT if compiled is None else None)
        if pairs is not None:
            return pairs
    need("numba", extra="data")
    from tunesmith.data import join

    order = np.argsort(np.diff(sets.starts)[rows], kind="stable")
    bits = max(10, min(24, int(2 * len(sets.hashes) + 1).bit_length()))  # of the table of counts: at most 32 MB
    left, right, jaccard = join.join(sets.hashes, sets.starts, rows[order], sides[order], cross, threshold, bits)
    return left, right, jaccard


def _pairs_scipy(
    sets: Shingles, rows: Ints, sides: Any, cross: bool, threshold: float, limit: int | None
) -> tuple[Places, Places, Floats] | None:
    """The same by a sparse product, block by block; None when it would take more than `limit` multiplications."""
    from scipy.sparse import csr_array

    sizes = np.diff(sets.starts)[rows]
    picked = np.concatenate([np.arange(sets.starts[row], sets.starts[row + 1]) for row in rows])
    words, inverse, times = np.unique(sets.hashes[picked], return_inverse=True, return_counts=True)
    if limit is not None and int((times.astype(np.int64) ** 2).sum()) > limit:
        return None
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    table = csr_array((np.ones(len(inverse), dtype=np.int32), inverse, indptr), shape=(len(rows), len(words)))
    lefts, rights, values = [], [], []
    for begin in range(0, len(rows), 1_000):
        common = (table[begin : begin + 1_000] @ table.T).tocoo()
        left, right = common.coords[0] + begin, common.coords[1]
        jaccard = common.data / (sizes[left] + sizes[right] - common.data)
        good = (right < left) & (common.data * (1 + threshold) >= threshold * (sizes[left] + sizes[right]) - 1e-9)
        if cross:
            good &= sides[left] != sides[right]
        lefts.append(rows[left[good]])
        rights.append(rows[right[good]])
        values.append(jaccard[good])
    return np.concatenate(lefts).astype(np.int32), np.concatenate(rights).astype(np.int32), np.concatenate(values)
