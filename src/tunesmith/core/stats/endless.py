"""Means of values that have no end (seconds, tokens, log-probabilities); knows nothing about scores on a scale.

A rare large value moves such a mean, and what was not seen cannot be told from the others: ± t covers the mean of five log-normal values
(σ = 1) .82 of the time. From `LEAST` independent units on, the hull of the t interval and of the bootstrap-t (Efron 1979; Hall 1988),
whose quantiles follow the skew that was seen, with the variance that one more unit as far out as the farthest would add, holds in every
shape simulated whose large values are among the units that were seen (docs/statistics.md); with fewer nothing holds, and the answer is that
there are too few.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np

from tunesmith.core.errors import DataError
from tunesmith.core.stats.clustered import Spread
from tunesmith.core.stats.distributions import t_for, t_p_value
from tunesmith.core.stats.records import Codes, Floats

LEAST = 35  # independent units
_MANY = 1000  # units from which on the skew of a mean no longer matters
_DRAWS = 2000
_SAME = 0.01  # the share of resamples in which nothing varies, above which their quantiles say nothing


class Reach(NamedTuple):
    """How far the interval goes below and above the estimate and its standard error, in the values' unit; the two-sided p-value of 0; the
    method's name."""

    below: float
    above: float
    se: float
    p_value: float
    method: str


def reach(mean: float, residuals: Floats, codes: Codes | None, spread: Spread, level: float) -> Reach:
    """The interval of a mean of values that have no end, from their residuals and the variance of the mean (above 0).

    Raises DataError for fewer than `LEAST` independent units (in clusters: degrees of freedom plus one).
    """
    independent = spread.df + 1
    if independent < LEAST - 1e-9:
        raise DataError(
            f"a mean of {residuals.size} values that have no end: {independent:.3g} independent ones are too few, {LEAST} are the least",
            allowed=f"at least {LEAST} independent rows (or clusters)",
            remedy="measure more rows, or give the ends of the scale: so few values do not show how rare large ones move their mean",
        )
    sums, sizes = _units(residuals, codes)
    farthest = float(np.max(np.abs(sums))) / float(sizes.mean())
    se, t = sqrt(spread.variance + farthest**2 / (spread.units * (spread.units + 2))), t_for(level, spread.df)
    name = f"{'t' if codes is None else 'CR2, t'}({spread.df:.3g})"
    if spread.units >= _MANY:
        return Reach(t * se, t * se, se, t_p_value(mean / se, spread.df), name)
    drawn = _studentized(sums, sizes)
    if drawn.size < (1 - _SAME) * _DRAWS:
        raise DataError(
            f"all but a few of {residuals.size} values that have no end are equal",
            allowed="values of which a resample varies",
            remedy="measure more rows, or count the rows that differ as a rate",
        )
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    seen = mean / se
    beyond = 2 * min(1 + np.count_nonzero(drawn >= seen), 1 + np.count_nonzero(drawn <= seen)) / (1 + drawn.size)
    p_value = max(t_p_value(seen, spread.df), min(1.0, float(beyond)))
    return Reach(max(t, float(high)) * se, max(t, float(-low)) * se, se, p_value, f"{name} and bootstrap-t")


def _units(residuals: Floats, codes: Codes | None) -> tuple[Floats, Floats]:
    """The sum of the residuals and the number of rows of each independent unit."""
    if codes is None:
        return residuals, np.ones(residuals.size)
    return np.bincount(codes, weights=residuals).astype(np.float64), np.bincount(codes).astype(np.float64)


def _studentized(sums: Floats, sizes: Floats) -> Floats:
    """Means of resampled units over their own standard errors; without the resamples in which nothing varies.

    Units are sorted and each draw has its mirror image, so that neither the order of the rows nor the sign of the values matters.
    """
    order = np.lexsort((sizes, sums))
    sums, sizes, units = sums[order], sizes[order], sums.size
    half = np.random.default_rng(0).integers(0, units, size=(_DRAWS // 2, units))
    drawn = np.concatenate([half, units - 1 - half])
    deviation, size = sums[drawn], sizes[drawn]
    total = size.sum(axis=1)
    means = deviation.sum(axis=1) / total
    deviation -= means[:, None] * size
    squares = np.einsum("ij,ij->i", deviation, deviation) * units / (units - 1)
    varies = squares > 1e-20 * units * float(np.max(np.abs(sums))) ** 2
    studentized: Floats = means[varies] * total[varies] / np.sqrt(squares[varies])
    return studentized
