"""Intervals of one rate or one mean, and of two independent rates; knows nothing about pairs of models.

Rates near 0 or 1 are why this file exists: the usual mean ± 1.96 standard errors covers a rate of .99 over 30 rows 26 % of the time,
Wilson's interval 96 %. Clustered rows use the variance of `clustered`, which holds its level from five clusters on.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats import endless
from tunesmith.core.stats.clustered import centred, mean_spread
from tunesmith.core.stats.distributions import beta_quantile, poisson_least, t_for, z_for
from tunesmith.core.stats.records import Clusters, Floats, Interval, cluster_codes, column, is_binary, share

_FEW = 3  # rows off the end of a scale


def _counts(successes: float, n: int, level: float) -> float:
    share(level, "level")
    if n < 1:
        raise DataError(f"a rate of {n} rows", allowed="at least 1 row")
    if not 0 <= successes <= n:
        raise UsageError(f"{successes} successes of {n}", allowed=f"0 to {n}")
    return successes / n


def score_bounds(rate: float, n: float, z: float) -> tuple[float, float]:
    """Bounds of the score interval of a rate for `n` (effective) rows and `z` standard errors; exact 0 and 1 at the ends."""
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return (0.0 if rate == 0 else max(0.0, centre - half)), (1.0 if rate == 1 else min(1.0, centre + half))


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a rate (Wilson 1927)."""
    rate = _counts(successes, n, level)
    low, high = score_bounds(rate, n, z_for(level))
    return Interval(estimate=rate, low=low, high=high, level=level, method="Wilson", n=n)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval of a rate (1934): never below its level, wider than needed."""
    rate, tail = _counts(successes, n, level), (1 - level) / 2
    low = beta_quantile(tail, successes, n - successes + 1) if successes > 0 else 0.0
    high = beta_quantile(1 - tail, successes + 1, n - successes) if successes < n else 1.0
    return Interval(estimate=rate, low=low, high=high, level=level, method="Clopper–Pearson", n=n)


def jeffreys(successes: float, n: int, level: float = 0.95) -> Interval:
    """Jeffreys' interval of a rate: beta(x + ½, n − x + ½) quantiles, closed at 0 and 1 (Brown, Cai and DasGupta 2001)."""
    rate, tail = _counts(successes, n, level), (1 - level) / 2
    low = beta_quantile(tail, successes + 0.5, n - successes + 0.5) if successes > 0 else 0.0
    high = beta_quantile(1 - tail, successes + 0.5, n - successes + 0.5) if successes < n else 1.0
    return Interval(estimate=rate, low=low, high=high, level=level, method="Jeffreys", n=n)


def newcombe(successes_a: float, n_a: int, successes_b: float, n_b: int, level: float = 0.95) -> Interval:
    """Rate of B minus rate of A for two independent samples (Newcombe 1998, method 10). `n` is the sum of both."""
    a, b = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    estimate = b.estimate - a.estimate
    low = estimate - sqrt((b.estimate - b.low) ** 2 + (a.high - a.estimate) ** 2)
    high = estimate + sqrt((b.high - b.estimate) ** 2 + (a.estimate - a.low) ** 2)
    return Interval(estimate=estimate, low=low, high=high, level=level, method="Newcombe", n=n_a + n_b)


def rate_interval(values: ArrayLike, clusters: Clusters | None = None, level: float = 0.95) -> Interval:
    """Interval of the mean of 0/1 values: modified Wilson; in clusters, that at the effective number of rows with the t quantile.

    Modified: with up to three rows off the end of the scale, the bound towards the end is the Poisson's one-sided one (Brown, Cai and
    DasGupta 2001), without which nine right of ten exclude a rate of .99.
    The effective number is rate·(1 − rate) over the clustered variance, at most n (Korn and Graubard 1998); when every row agrees nothing
    is known of the correlation, and each cluster counts as one row. Raises DataError for no rows or one cluster of many rows.
    """
    rows = column(values)
    if not is_binary(rows):
        raise UsageError("a rate of values that are not all 0 or 1", remedy="use mean_interval")
    codes, (rate, residuals) = cluster_codes(clusters, rows.size), centred(rows)
    if codes is None:
        low, high = _modified(rate, rows.size, z_for(share(level, "level")), level)
        return Interval(estimate=rate, low=low, high=high, level=level, method="Wilson", n=rows.size)
    variance, count, df = mean_spread(residuals, codes)
    if variance > 0:
        variance += far_row(max(rate, 1 - rate) / 2, count)  # one more cluster, half of whose rows are at the far end
    size = min(rows.size, rate * (1 - rate) / variance) if variance > 0 else float(count)
    low, high = _modified(rate, size, t_for(share(level, "level"), df), level)
    return Interval(estimate=rate, low=low, high=high, level=level, method=f"clustered Wilson, t({df:.3g})", n=rows.size, clusters=count)


def _modified(rate: float, n: float, reach: float, level: float) -> tuple[float, float]:
    """Score bounds, the one towards the end of the scale not nearer to it than the Poisson's of up to three (effective) rows off it."""
    low, high = score_bounds(rate, n, reach)
    for off, end in ((rate * n, 0), ((1 - rate) * n, 1)):
        if 0 < off <= _FEW + 1e-9:
            bound = poisson_least(off, level) / n
            low, high = (min(low, bound), high) if end == 0 else (low, max(high, 1 - bound))
    return low, high


def mean_interval(values: ArrayLike, clusters: Clusters | None = None, level: float = 0.95, span: float = 1.0) -> Interval:
    """Interval of a mean; its variance in clusters is CR2 (for equal sizes: CR1 with t(C−1)); 0/1 values go to `rate_interval`.

    Values that lie within 0 to `span` are taken for scores on that scale, and the mean for a rate over its effective number of rows (a
    score interval, never beyond the scale), its variance with that of one more row or cluster at the far end (`far_row`). Other values
    have no end: the hull of t and bootstrap-t (`endless`), from 35 independent rows or clusters on. Raises DataError for missing values,
    for fewer than 2 rows (unless they are 0/1), for fewer than 2 clusters, and for fewer than 35 of values that have no end. Values that
    do not vary give no standard error: then the interval is what `unvarying` says.
    """
    rows = column(values)
    if is_binary(rows):
        return rate_interval(rows, clusters, level)
    codes, (mean, residuals) = cluster_codes(clusters, rows.size), centred(rows)
    spread = mean_spread(residuals, codes)
    variance, count, df = spread
    t, clustered = t_for(share(level, "level"), df), None if codes is None else count
    scale = span > 0 and rows.min() >= 0 and rows.max() <= span
    if scale and variance > 0:
        rate = mean / span
        variance = variance / span**2 + far_row(max(rate, 1 - rate), count)
        low, high = (span * end for end in score_bounds(rate, rate * (1 - rate) / variance, t))
        method = f"{'score' if codes is None else 'CR2 score'}, t({df:.3g})"
    elif variance > 0:
        below, above, *_, method = endless.reach(mean, residuals, codes, spread, level)
        low, high = mean - below, mean + above
    else:
        method, half = "no variation: Wilson's bound", unvarying(rows, count, level, span)
        low, high = (max(0.0, mean - half), min(span, mean + half)) if scale else (mean - half, mean + half)
    return Interval(estimate=mean, low=low, high=high, level=level, method=method, n=rows.size, clusters=clustered)


def far_row(distance: float, units: int) -> float:
    """What one more unit at this distance would add to the variance of a mean over `units`: a failure that is rarer than the rows are many
    was perhaps not seen, and without it 100 scores near the end of their scale cover their mean 67 to 92 % of the time.
    """
    return distance**2 / (units * (units + 2))


def unvarying(values: Floats, units: int, level: float, span: float = 1.0) -> float:
    """Half-width for the mean of `units` equal values: Wilson's upper bound of "0 of `units` deviate" times the span of the scale.

    A standard error of 0 would claim certainty after two rows. The scale goes at least from 0 to `span` and covers all the values.
    """
    return wilson(0, units, level).high * (max(span, float(np.max(values))) - min(0.0, float(np.min(values))))
