"""How far raters agree beyond chance, people or judges; knows nothing about what they rated.

Intervals: Cohen's kappa by its large-sample variance (Fleiss, Cohen and Everitt 1969), the others by a jackknife over the rated units.
Where every rating agrees there is no variance: the lower bound then is that of "0 of n disagree" (Wilson).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.distributions import t_for, z_for
from tunesmith.core.stats.intervals import wilson
from tunesmith.core.stats.records import Floats, Interval, share

Ratings = Sequence[Sequence[Hashable | None]] | NDArray[np.generic]


def cohen_kappa(
    a: Sequence[Hashable], b: Sequence[Hashable], *, weights: Literal["none", "linear", "quadratic"] = "none", level: float = 0.95
) -> Interval:
    """Agreement of two raters on the same units, 1 is perfect, 0 is chance.

    `weights` forgives near misses on an ordered scale of sortable ratings. Raises DataError for no units, or when one category is all
    that both ever say (kappa is undefined).
    """
    if len(a) != len(b):
        raise UsageError(f"{len(a)} and {len(b)} ratings", allowed="the same units in the same order")
    names = _scale([*a, *b], ordered=weights != "none")
    n, k = len(a), len(names)
    if n == 0 or k < 2:
        raise DataError(f"{n} units rated with {k} category(ies): kappa is undefined", allowed="at least two categories in use")
    table = np.zeros((k, k))
    np.add.at(table, ([names[x] for x in a], [names[x] for x in b]), 1 / n)
    gap = np.abs(np.subtract.outer(np.arange(k), np.arange(k))) / (k - 1)
    agree = {"none": (gap == 0).astype(np.float64), "linear": 1 - gap, "quadratic": 1 - gap**2}[weights]
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    chance = float(rows @ agree @ columns)
    kappa = (float((table * agree).sum()) - chance) / (1 - chance)
    expected = np.add.outer(agree @ columns, rows @ agree)
    spread = float((table * (agree - expected * (1 - kappa)) ** 2).sum()) - (kappa - chance * (1 - kappa)) ** 2
    half = z_for(share(level, "level")) * sqrt(max(spread, 0.0) / n) / (1 - chance)
    return _interval("Cohen's kappa", kappa, half, n, level, 1 - chance)


def fleiss_kappa(ratings: Ratings, *, level: float = 0.95) -> Interval:
    """Agreement of several raters (Fleiss 1971): [units, raters], every unit rated by the same number of raters."""
    codes, _ = _codes(ratings, ordered=False)
    if np.any(codes < 0):
        raise DataError("a rating is missing", allowed="every unit rated by every rater", remedy="use krippendorff_alpha")
    counts = np.stack([(codes == c).sum(axis=1) for c in range(int(codes.max()) + 1)], axis=1).astype(np.float64)
    raters = codes.shape[1]

    def chance(table: Floats) -> float:
        shares = table.sum(axis=0) / table.sum()
        return float(shares @ shares)

    def kappa(table: Floats) -> float:
        agreed = float(((table * table).sum() - table.sum()) / (len(table) * raters * (raters - 1)))
        return (agreed - chance(table)) / (1 - chance(table)) if chance(table) < 1 else np.nan

    return _jackknife("Fleiss' kappa, jackknife", kappa, counts, 1 - chance(counts), level)


def krippendorff_alpha(ratings: Ratings, metric: Literal["nominal", "ordinal", "interval"] = "nominal", *, level: float = 0.95) -> Interval:
    """Krippendorff's alpha: [units, raters], None or NaN where a rater did not rate (Krippendorff 2011, "Computing alpha-reliability").

    Units with fewer than two ratings say nothing and are left out; `n` counts the others. Ordinal and interval need numbers.
    """
    codes, values = _codes(ratings, ordered=metric != "nominal")
    counts = np.stack([(codes == c).sum(axis=1) for c in range(len(values))], axis=1).astype(np.float64)
    counts = counts[counts.sum(axis=1) >= 2]

    def alpha(table: Floats) -> float:
        totals = table.sum(axis=0)
        distance = _distance(totals, values, metric)
        within = np.einsum("uc,ck,uk->u", table, distance, table) / (table.sum(axis=1) - 1)
        chance = float(totals @ distance @ totals) / (totals.sum() - 1)
        return 1 - float(within.sum()) / chance if chance > 0 else np.nan

    totals = counts.sum(axis=0)
    distance = _distance(totals, values, metric)
    widest = float(distance.max(initial=0.0))
    expected = float(totals @ distance @ totals) / totals.sum() ** 2 / widest if widest > 0 else 0.0
    return _jackknife(f"Krippendorff's alpha ({metric}), jackknife", alpha, counts, expected, level)


def _distance(totals: Floats, values: Floats, metric: str) -> Floats:
    """Squared difference between categories: [k, k]."""
    if metric == "nominal":
        return 1.0 - np.eye(len(values))
    # Ordinal: the ratings that lie between two categories, counting half of each end.
    scale = values if metric == "interval" else np.cumsum(totals) - totals / 2
    return np.asarray(np.subtract.outer(scale, scale) ** 2, dtype=np.float64)


def _scale(ratings: Sequence[Hashable], *, ordered: bool) -> dict[Hashable, int]:
    """Categories and their codes, in sorted order when the scale has one."""
    names = dict.fromkeys(ratings)
    if None in names or any(isinstance(name, float) and name != name for name in names):
        raise DataError("a rating is missing", allowed="a rating of each unit by both raters")
    ranked = sorted(names, key=lambda name: name) if ordered else list(names)  # type: ignore[arg-type, return-value]
    return {name: code for code, name in enumerate(ranked)}


def _codes(ratings: Ratings, *, ordered: bool) -> tuple[NDArray[np.intp], Floats]:
    """Ratings as category codes [units, raters] with −1 for missing, and the value of each category (its code when nominal)."""
    rows = [[None if x is None or x != x else x for x in row] for row in ratings]
    raters = len(rows[0]) if rows else 0
    if raters < 2 or any(len(row) != raters for row in rows):
        raise DataError(f"{len(rows)} units with {raters} rater(s)", allowed="a table [units, raters] of at least two raters")
    names = _scale([x for row in rows for x in row if x is not None], ordered=ordered)
    codes = np.array([[-1 if x is None else names[x] for x in row] for row in rows], dtype=np.intp)
    try:
        values = np.array(list(names) if ordered else range(len(names)), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"ratings {list(names)[:5]} are not numbers", remedy="use metric='nominal', or number the scale") from error
    return codes, values


def _jackknife(name: str, statistic: Callable[[Floats], float], units: Floats, expected: float, level: float) -> Interval:
    """Interval by leaving out one unit at a time, t(n−1). A subset in which the statistic is undefined repeats the estimate."""
    n = len(units)
    estimate = float(statistic(units)) if n else float("nan")
    if n < 2 or not np.isfinite(estimate):
        raise DataError(
            f"{name.split(',')[0]} is undefined over {n} units with two ratings", allowed="at least two units and two categories"
        )
    left = np.array([statistic(np.delete(units, i, axis=0)) for i in range(n)])
    left[~np.isfinite(left)] = estimate
    half = t_for(share(level, "level"), n - 1) * sqrt((n - 1) / n * float(((left - left.mean()) ** 2).sum()))
    return _interval(name, estimate, half, n, level, expected)


def _interval(name: str, estimate: float, half: float, n: int, level: float, expected: float) -> Interval:
    """`expected` is the disagreement expected by chance, as a share of the largest possible."""
    if half < 1e-12:
        half = wilson(0, n, level).high / float(expected)
    low, high = max(-1.0, estimate - half), min(1.0, estimate + half)
    return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate), level=level, method=name, n=n)
