"""Resampling with replacement, of rows or of whole clusters; knows nothing about metrics.

The mean of a resample depends only on how often each distinct row was drawn, so one multinomial draw over the distinct rows stands for a
whole resample: about a millisecond for 10,000 resamples of 10,000 right/wrong rows. The percentile interval needs about 50 independent
units and fails for rates near 0 or 1: prefer the analytic intervals where they exist.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.records import Clusters, Floats, Interval, cluster_codes, column, share

# A block of draws stays in cache-friendly size: 32 MB of float64.
_CELLS = 4_000_000


def cluster_sums(table: Floats, codes: NDArray[np.intp] | None) -> Floats:
    """The rows of an [n, k] table added up by cluster: [C, k]."""
    if codes is None:
        return table
    return np.column_stack([np.bincount(codes, weights=table[:, j]) for j in range(table.shape[1])])


def resampled_sums(table: Floats, resamples: int = 10_000, seed: int = 0) -> Floats:
    """Column sums of `resamples` draws with replacement of the rows of an [n, k] table: [resamples, k]."""
    if resamples < 1:
        raise UsageError(f"{resamples} resamples", allowed="1 or more")
    n = len(table)
    distinct, counts = np.unique(table, axis=0, return_counts=True)
    rng, sums = np.random.default_rng(seed), np.empty((resamples, table.shape[1]))
    # A multinomial draw costs about as much a category as five plain draws cost a row.
    few = 5 * len(distinct) <= n
    for start in range(0, resamples, max(1, _CELLS // (len(distinct) if few else n))):
        block = sums[start : start + max(1, _CELLS // (len(distinct) if few else n))]
        if few:
            block[:] = rng.multinomial(n, counts / n, size=len(block)) @ distinct
        else:
            drawn = rng.integers(0, n, size=(len(block), n))
            for j in range(table.shape[1]):
                block[:, j] = table[:, j][drawn].sum(axis=1)
    return sums


def percentiles(draws: Floats, level: float) -> tuple[float, float]:
    """The central `level` of the draws."""
    tail = (1 - share(level, "level")) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_mean(
    values: ArrayLike, clusters: Clusters | None = None, *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile interval of a mean. Raises DataError for fewer than 2 rows or clusters."""
    rows = column(values, least=2)
    codes = cluster_codes(clusters, rows.size)
    units = cluster_sums(np.column_stack([rows, np.ones(rows.size)]), codes)
    _enough(len(units))
    sums = resampled_sums(units, resamples, seed)
    low, high = percentiles(sums[:, 0] / sums[:, 1], level)
    return _interval(float(rows.mean()), (low, high), level, rows.size, None if codes is None else len(units))


def bootstrap(
    statistic: Callable[..., float],
    arrays: Sequence[ArrayLike],
    clusters: Clusters | None = None,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of `statistic(*arrays)` where all arrays have one entry for each row and are resampled together, by scipy.

    Resamples in which the statistic is not finite are left out; DataError when they are more than 1 %.
    """
    from scipy.stats import DegenerateDataWarning
    from scipy.stats import bootstrap as resampled

    data = [np.asarray(array) for array in arrays]
    n = len(data[0]) if data else 0
    if n < 2 or any(len(array) != n for array in data):
        raise DataError(f"arrays of {[len(array) for array in data]} rows", allowed="at least 2 rows, the same in each")
    codes = cluster_codes(clusters, n)
    members = None if codes is None else np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    units = np.arange(n if members is None else len(members))
    _enough(len(units))

    def of_draw(drawn: NDArray[np.intp]) -> float:
        rows = drawn if members is None else np.concatenate([members[unit] for unit in drawn])
        return float(statistic(*(array[rows] for array in data)))

    with warnings.catch_warnings(action="ignore", category=DegenerateDataWarning):  # its interval is not used: see the finite draws below
        made = resampled((units,), of_draw, n_resamples=resamples, vectorized=False, method="percentile", rng=seed)
    draws = made.bootstrap_distribution
    finite = draws[np.isfinite(draws)]
    if finite.size < ceil(0.99 * resamples):
        raise DataError(f"the statistic is undefined in {resamples - finite.size} of {resamples} resamples", allowed="at most 1 %")
    bounds = percentiles(finite, level)
    return _interval(float(statistic(*data)), bounds, level, n, None if codes is None else len(units))


def _enough(units: int) -> None:
    if units < 2:
        raise DataError(f"{units} independent unit(s) to resample", allowed="at least 2")


def _interval(estimate: float, bounds: tuple[float, float], level: float, n: int, clusters: int | None) -> Interval:
    # A skewed statistic can leave its own percentile interval; an interval that excludes its estimate would mislead.
    low, high = min(bounds[0], estimate), max(bounds[1], estimate)
    method = "bootstrap percentile" if clusters is None else "cluster bootstrap percentile"
    return Interval(estimate=estimate, low=low, high=high, level=level, method=method, n=n, clusters=clusters)
