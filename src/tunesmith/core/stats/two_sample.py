"""Whether two samples come from one population: of vectors, of numbers, of names; knows nothing about texts or what the samples are.

All three permute: which value belongs to which sample is drawn anew, which under one population changes nothing. The p-value counts what
was observed as one of the draws, so it is never below its level (Phipson and Smyth 2010). Draws end where a p-value can no longer become
small (Besag and Clifford 1991).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError
from tunesmith.core.stats.records import Floats

DRAWS = 4_999
_TAILS = (0.02, 0.05, 0.1, 0.25)
_AT_ONCE, _ENOUGH = 250, 25  # draws of one piece; so many at least as large as what was observed, and p is not small
_Draw = Callable[[int], Floats]


def mmd_test(reference: ArrayLike, window: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> float:
    """p-value of the maximum mean discrepancy (Gretton et al. 2012) of two samples of vectors [m, d] and [n, d].

    The kernel is Gaussian, as wide as the median distance of all vectors together, which no permutation changes. Costs (m + n)² numbers.
    """
    a, b = np.asarray(reference, dtype=np.float32), np.asarray(window, dtype=np.float32)
    _enough(len(a), len(b))
    both = np.concatenate([a, b])
    squares = (both * both).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0)
    middle = float(np.median(distances[np.triu_indices(len(both), 1)]))
    kernel = np.exp(-distances / (middle or 1.0))
    signs = np.concatenate([np.full(len(a), -1 / len(a)), np.full(len(b), 1 / len(b))]).astype(np.float32)
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> Floats:
        mixed = rng.permuted(np.tile(signs, (count, 1)), axis=1)
        return np.asarray(((mixed @ kernel) * mixed).sum(1), dtype=np.float64)

    return _p_value(float(signs @ kernel @ signs), drawn, draws)


def numbers_test(reference: ArrayLike, window: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> float:
    """p-value that two samples of numbers have one distribution: the largest of the standardised differences of mean rank, of mean
    distance of the ranks from their middle, and of how many are among the largest and among the smallest 2, 5, 10 and 25 %. So a shift is
    seen, a wider spread, and a few values of another kind among many that stay as they were. Equal values share their rank."""
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(window, dtype=np.float64)
    _enough(a.size, b.size)
    both = np.concatenate([a, b])
    _, place, times = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    tails = [side for tail in _TAILS for side in (ranks > both.size * (1 - tail), ranks < both.size * tail + 1)]
    features = np.stack([ranks, np.abs(ranks - ranks.mean()), *tails]).astype(np.float64)
    spread = features.std(axis=1, keepdims=True)
    features = (features - features.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> Floats:
        order = rng.random((count, both.size)).argpartition(b.size - 1, axis=1)[:, : b.size]
        return np.asarray(np.abs(features[:, order].sum(axis=2)).max(axis=0))

    return _p_value(float(np.abs(features[:, a.size :].sum(axis=1)).max()), drawn, draws)


def names_test(reference: Sequence[str], window: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> float:
    """p-value that names have the same shares in two samples: Pearson's chi-square, with all margins fixed."""
    _enough(len(reference), len(window))
    names = list(dict.fromkeys([*reference, *window]))
    places = {name: i for i, name in enumerate(names)}
    counts = np.bincount([places[name] for name in window], minlength=len(names))
    margins = counts + np.bincount([places[name] for name in reference], minlength=len(names))
    expected = margins * len(window) / margins.sum()
    rng = np.random.default_rng(seed)

    def drawn(count: int) -> Floats:
        return _chi2(rng.multivariate_hypergeometric(margins, len(window), size=count), expected)

    return _p_value(float(_chi2(counts[None], expected)[0]), drawn, draws)


def _chi2(counts: NDArray[np.int64], expected: Floats) -> Floats:
    # Both rows of the table differ from what is expected by the same amount; the other row's share of the sum is a constant factor.
    return np.asarray(((counts - expected) ** 2 / expected).sum(axis=1))


def _p_value(observed: float, drawn: _Draw, draws: int) -> float:
    reached = made = 0
    limit = observed - 1e-9 * abs(observed)  # sums in another order differ in the last digits
    while made < draws and reached < _ENOUGH:
        count = min(_AT_ONCE, draws - made)
        reached += int((drawn(count) >= limit).sum())
        made += count
    return (reached + 1) / (made + 1)


def _enough(m: int, n: int) -> None:
    if min(m, n) < 2:
        raise DataError(f"samples of {m} and {n} values", allowed="at least 2 each")
