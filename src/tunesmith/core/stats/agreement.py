"""How far raters agree beyond chance, people or judges; knows nothing about what they rated.

Large-sample variances fail where agreement is high or units are few: at κ = .98 over 20 units the usual interval has no width in two of
three tables. So every interval here comes from the posterior of the shares of what was seen (units, for two raters cells of their table;
Rubin 1981), with one unit's weight added: half of it agrees, half disagrees, evenly over the categories. Reported is the hull of its
quantiles and of the score interval at its variance, with t(n−1). Both are taken a little further out than the level (`_OUTSIDE`, `_MORE`):
without it skewed shares at no agreement are covered .917. Simulated in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.bootstrap import percentiles
from tunesmith.core.stats.distributions import t_for
from tunesmith.core.stats.intervals import score_bounds
from tunesmith.core.stats.records import Floats, Interval, share

_FEW = 12  # categories of which all pairs are looked at
_OUTSIDE, _MORE = 0.6, 1.15  # share of the tails' probability that stays outside; factor of the variance
_DRAWS = 1_000  # a bound then moves by about a fiftieth of the interval from seed to seed
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
    np.add.at(table, ([names[x] for x in a], [names[x] for x in b]), 1)
    gap = np.abs(np.subtract.outer(np.arange(k), np.arange(k))) / (k - 1)
    agree = {"none": (gap == 0).astype(np.float64), "linear": 1 - gap, "quadratic": 1 - gap**2}[weights]

    def kappa(shares: Floats) -> Floats:
        tables = shares.reshape(-1, k, k)
        chance = np.einsum("bi,ij,bj->b", tables.sum(axis=2), agree, tables.sum(axis=1))
        agreed = np.einsum("bij,ij->b", tables, agree)
        return _beyond(agreed, chance)

    prior = np.where(np.eye(k) == 1, 0.5 / k, 0.5 / (k * (k - 1)))
    return _interval("Cohen's kappa", kappa, table.ravel(), prior.ravel(), n, level)


def fleiss_kappa(ratings: Ratings, *, level: float = 0.95) -> Interval:
    """Agreement of several raters (Fleiss 1971): [units, raters], every unit rated by the same number of raters."""
    codes, _ = _codes(ratings, ordered=False)
    if np.any(codes < 0):
        raise DataError("a rating is missing", allowed="every unit rated by every rater", remedy="use krippendorff_alpha")
    counts = np.stack([(codes == c).sum(axis=1) for c in range(int(codes.max()) + 1)], axis=1).astype(np.float64)
    raters = codes.shape[1]
    units, weights, prior = _patterns(counts, raters)
    agreed = (units * (units - 1)).sum(axis=1) / (raters * (raters - 1))

    def kappa(shares: Floats) -> Floats:
        categories = shares @ units / raters
        chance = (categories**2).sum(axis=1)
        return _beyond(shares @ agreed, chance)

    return _interval("Fleiss' kappa", kappa, weights, prior, len(counts), level)


def krippendorff_alpha(ratings: Ratings, metric: Literal["nominal", "ordinal", "interval"] = "nominal", *, level: float = 0.95) -> Interval:
    """Krippendorff's alpha: [units, raters], None or NaN where a rater did not rate (Krippendorff 2011, "Computing alpha-reliability").

    Units with fewer than two ratings say nothing and are left out; `n` counts the others. Ordinal and interval need numbers.
    """
    codes, values = _codes(ratings, ordered=metric != "nominal")
    counts = np.stack([(codes == c).sum(axis=1) for c in range(len(values))], axis=1).astype(np.float64)
    counts = counts[counts.sum(axis=1) >= 2]
    units, weights, prior = _patterns(counts, max(2, round(float(counts.sum(axis=1).mean()))) if len(counts) else 2)

    def alpha(shares: Floats) -> Floats:
        totals = len(counts) * shares @ units
        if metric == "ordinal":  # its distances are those of the totals
            return np.array([_alpha(share[None], total[None], units, _distance(total, values, metric))[0] for share, total in
                             zip(len(counts) * shares, totals, strict=True)])  # fmt: skip
        return _alpha(len(counts) * shares, totals, units, _distance(totals[0], values, metric))

    return _interval(f"Krippendorff's alpha ({metric})", alpha, weights, prior, len(counts), level)


def _beyond(agreed: Floats, chance: Floats) -> Floats:
    """Agreement beyond chance, as a share of what is possible; nan where chance alone agrees always."""
    return np.asarray(np.divide(agreed - chance, 1 - chance, out=np.full(len(chance), np.nan), where=chance < 1 - 1e-12))


def _alpha(weights: Floats, totals: Floats, units: Floats, distance: Floats) -> Floats:
    """1 − observed over expected disagreement, of units with these weights [b, u] and ratings by category [b, k]."""
    within = weights @ (((units @ distance) * units).sum(axis=1) / (units.sum(axis=1) - 1))
    expected = ((totals @ distance) * totals).sum(axis=1) / (totals.sum(axis=1) - 1)
    return np.asarray(1 - np.divide(within, expected, out=np.full(len(within), np.nan), where=expected > 1e-12))


def _patterns(counts: Floats, raters: int) -> tuple[Floats, Floats, Floats]:
    """The distinct units [u, k] (ratings by category), how often each was seen, and the prior weight of each.

    The prior's units are added: in each category all `raters` agree; in each pair of categories (of many: each
    with one far away) they are divided in halves.
    """
    k = counts.shape[1]
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k)] if k <= _FEW else [(i, (i + k // 2) % k) for i in range(k)]
    agree = raters * np.eye(k)
    divided = np.array([(raters - raters // 2) * agree[i] / raters + raters // 2 * agree[j] / raters for i, j in pairs]).reshape(-1, k)
    added = np.concatenate([np.full(k, 0.5 / k), np.full(len(pairs), 0.5 / max(1, len(pairs)))])
    seen, often = np.unique(counts, axis=0, return_counts=True) if len(counts) else (counts, np.zeros(0))
    units = np.concatenate([seen, agree, divided])
    return units, np.concatenate([often, np.zeros(added.size)]).astype(np.float64), np.concatenate([np.zeros(len(seen)), added])


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


def _interval(name: str, statistic: Callable[[Floats], Floats], seen: Floats, prior: Floats, n: int, level: float) -> Interval:
    """The interval of a statistic of shares [b, m], from how often each of m things was seen and its prior weight."""
    estimate = float(statistic(seen[None] / seen.sum())[0]) if n else float("nan")
    if n < 2 or not np.isfinite(estimate):
        raise DataError(f"{name} is undefined over {n} units with two ratings", allowed="at least two units and two categories")
    weights = np.random.default_rng(0).standard_gamma(seen + prior, size=(_DRAWS, seen.size))
    draws = statistic(weights / weights.sum(axis=1, keepdims=True))
    low, high = percentiles(draws[np.isfinite(draws)], 1 - _OUTSIDE * (1 - share(level, "level")))
    middle = (1 - min(max(estimate, -1.0), 1.0)) / 2
    spread = (1 - float(np.nanmean(draws))) / 2
    size = spread * (1 - spread) / (_MORE * float(np.nanvar(draws)) / 4)
    below, above = score_bounds(middle, size, t_for(level, n - 1))
    low, high = min(low, 1 - 2 * above, estimate), max(high, 1 - 2 * below, estimate)
    if estimate > 1 - 1e-12:
        high = 1.0
    return Interval(estimate=min(estimate, 1.0), low=max(-1.0, low), high=min(1.0, high), level=level, method=f"{name}, posterior", n=n)
