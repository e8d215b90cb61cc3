"""Bounds that stay true however often one looks: means of bounded values, and rates; knows nothing about models, arms or requests.

A bet against the claim "the mean is at most m" multiplies its stake by 1 + λ·(x − m) at each value x. If the claim is true no such game
pays on average, so the chance that the stake ever grows 1/α-fold is at most α (Ville 1939), at whichever moment one looks. The claims that
are not refuted so are the confidence sequence (Waudby-Smith and Ramdas 2020, arXiv 2010.09686; Howard et al. 2021). For bounds the stake is
spread over ten sizes of bet, from timid to nearly all (a mixture), so nothing has to be tuned. Against a claim that is known beforehand
(`Bets`) each bet is the best one for the mean and the spread that were seen before it, which takes about a quarter fewer rows.

With `population`, the values are drawn without replacement from that many (the rows of a test set, in random order), and the claim is about
their mean: each value that was seen changes what the others must be, so the bounds close when the last is seen. Without it, the claim is
about all values like these. Groups of values that belong together count as one bet: `sizes`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.records import Clusters, Floats, Interval, cluster_codes, column, finite, share

_MOST = 0.95  # of the stake may be lost at once
FRACTIONS: Floats = np.geomspace(0.01, _MOST, 10)
"""Sizes of bet, as shares of the largest that can never lose more than the stake."""
HOPES: Floats = np.array([0.02, 0.1])
"""By how much the mean is hoped to be above the null before anything was seen, as shares of the scale; the stake is halved over them."""
_HOPED, _HELD, _SPREAD = 50.0, 10.0, 0.06  # units that the hope weighs, units that the first guess of the spread weighs, that guess
_TOLERANCE = 1e-9
_HALVINGS = 40


class Bets:
    """Games against the claims "the mean of this stream is at most this null", for many streams at once, fed piece by piece.

    `nulls` are the claims, the same for every stream; `bounds` what a value can be. `population` counts the units (values, or groups of
    values) of the whole; `largest` is the most values that a unit has. `log_wealth` (streams × nulls) is the logarithm of the stake now:
    a claim may be given up where it is at least log(1/α). Bets change between pieces, not within one.
    """

    def __init__(
        self, streams: int, nulls: ArrayLike, bounds: tuple[float, float] = (0.0, 1.0), *, population: int | None = None, largest: int = 1
    ) -> None:
        self.low, self.high = _bounds(bounds)
        self.nulls = np.asarray(nulls, dtype=np.float64)
        self.population, self.largest = population, largest
        self.units = np.zeros(streams, dtype=np.int64)
        self._sums = np.zeros((streams, self.nulls.size))
        self._squares = np.zeros((streams, self.nulls.size))
        self._logs = np.zeros((streams, self.nulls.size, HOPES.size))

    def add(self, totals: ArrayLike, sizes: ArrayLike | None = None, streams: NDArray[np.intp] | None = None) -> Floats:
        """The next units of the streams (all, or those given): `totals` (streams × units) has the sum of each unit's values, `sizes`
        how many they are. Returns by how much the logarithm of each stake grew (streams × nulls × hopes).

        Raises DataError for a missing value, one beyond the bounds, or more units than the population has.
        """
        rows = np.atleast_2d(np.asarray(totals, dtype=np.float64))
        which = np.arange(self.units.size) if streams is None else streams
        counts = np.ones(rows.shape[1]) if sizes is None else np.asarray(sizes, dtype=np.float64)
        finite(rows, "values")
        _inside(rows, counts, self.low, self.high)
        if self.population is not None and rows.size and int(self.units[which].max()) + rows.shape[1] > self.population:
            raise DataError(f"{int(self.units[which].max()) + rows.shape[1]} units", allowed=f"{self.population}, the whole population")
        # A unit of fewer values than the largest is filled up with the null itself, which favours neither side of the bet.
        filled = rows[:, None, :] / self.largest + self.nulls[:, None] * (1 - counts / self.largest)
        before = self._sums[which][:, :, None] + np.cumsum(filled, axis=2) - filled
        at = self.units[which][:, None] + np.arange(rows.shape[1])
        now = _nulls_then(self.nulls, before, at[:, None, :], self.population)
        gains: Floats = _gains(filled, now, self.low, self._stakes(which)).sum(axis=3)
        self._logs[which] += gains
        self._sums[which] += filled.sum(axis=2)
        self._squares[which] += (filled**2).sum(axis=2)
        self.units[which] += rows.shape[1]
        return gains

    def _stakes(self, which: NDArray[np.intp]) -> Floats:
        """The share of the stake to bet for each unit of a value: gap/(spread + gap²), which grows fastest (Kelly) if gap and spread are
        as they were so far; before much was seen, they are what is hoped for."""
        n, span = self.units[which][:, None].astype(np.float64), self.high - self.low
        mean = self._sums[which] / np.maximum(n, 1)
        spread = (self._squares[which] - n * mean**2 + _HELD * _SPREAD * span**2) / (n + _HELD)
        gap = (n[..., None] * (mean - self.nulls)[..., None] + _HOPED * HOPES * span) / (n[..., None] + _HOPED)
        if self.population is not None:  # what is left has to make up for what was seen
            gap = gap * self.population / np.maximum(self.population - n[..., None], 1)
        gap = np.maximum(gap, 0)
        stakes: Floats = gap / (spread[..., None] + gap**2)
        return stakes

    @property
    def log_wealth(self) -> Floats:
        """The logarithm of the stake, of 1 at the start; infinite where what was seen leaves no way for the claim to be true."""
        wealth: Floats = np.logaddexp.reduce(self._logs, axis=2) - log(HOPES.size)
        if self.population is None:
            return wealth
        left = (self.population - self.units)[:, None]
        slack = self.population * self.nulls - self._sums - left * self.low  # what the values still to come may exceed the least by
        tolerance = _TOLERANCE * self.population * (self.high - self.low)
        return np.where(slack < -tolerance, inf, np.where(left == 0, -inf, wealth))


def _nulls_then(nulls: Floats, before: Floats, at: NDArray[np.int64], population: int | None) -> Floats:
    """What the mean of the next value is at most, if the claim is true, given the sum `before` of the `at` units before it."""
    if population is None:
        return np.broadcast_to(nulls[:, None], before.shape)
    return (population * nulls[:, None] - before) / np.maximum(population - at, 1)


def _factors(values: Floats, nulls: Floats, low: float) -> Floats:
    """Logarithms of what each size of bet multiplies its stake by (one more axis, the sizes, before the last)."""
    room = nulls - low
    gone = room <= _TOLERANCE  # the claim leaves only the least value: anything above refutes it
    ratio = np.where(gone, np.where(values > low + _TOLERANCE, inf, 1.0), (values - low) / np.where(gone, 1.0, room))
    stakes = FRACTIONS[:, None]
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(1 - stakes + stakes * ratio[..., None, :], 0.0))


def _gains(values: Floats, nulls: Floats, low: float, stakes: Floats) -> Floats:
    """Logarithms of what each bet multiplies its stake by (streams × nulls × hopes × units); no bet can lose more than most of it."""
    room = nulls - low
    gone = room <= _TOLERANCE
    most = np.where(gone, 0.0, _MOST / np.where(gone, 1.0, room))
    sizes = np.minimum(stakes[..., None], most[:, :, None, :])
    logs = np.log1p(sizes * (values - nulls)[:, :, None, :])
    return np.where((gone & (values > low + _TOLERANCE))[:, :, None, :], inf, logs)


def lower_bounds(values: ArrayLike, alpha: float, bounds: tuple[float, float] = (0.0, 1.0), *, population: int | None = None) -> Floats:
    """For each stream (row of `values`), what its mean is at least, with an error of at most `alpha` over all moments together: the
    best bound of all moments up to the last."""
    rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
    finite(rows, "values")
    return _lower(rows, np.ones(rows.shape[1]), share(alpha, "alpha"), bounds, population, 1)


def _lower(rows: Floats, sizes: Floats, alpha: float, bounds: tuple[float, float], population: int | None, largest: int) -> Floats:
    """By bisection: the wealth falls as the null rises, for every size of bet."""
    low, high = _bounds(bounds)
    _inside(rows, sizes, low, high)
    under, over = np.full(len(rows), low), np.full(len(rows), high)
    at = np.arange(rows.shape[1])
    for _ in range(_HALVINGS):
        middle = (under + over) / 2
        filled = rows / largest + middle[:, None] * (1 - sizes / largest)
        before = np.cumsum(filled, axis=1) - filled
        nulls = middle[:, None] if population is None else (population * middle[:, None] - before) / (population - at)
        gained = np.cumsum(_factors(filled, np.broadcast_to(nulls, filled.shape), low), axis=2)
        refuted = (np.logaddexp.reduce(gained, axis=1) - log(FRACTIONS.size)).max(axis=1, initial=-inf) >= log(1 / alpha)
        if population is not None:
            least = np.cumsum(filled, axis=1)[:, -1] + (population - rows.shape[1]) * low
            refuted |= least > population * middle + _TOLERANCE * population * (high - low)
        under, over = np.where(refuted, middle, under), np.where(refuted, over, middle)
    return under


def mean_sequence(
    values: ArrayLike,
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    clusters: Clusters | None = None,
    population: int | None = None,
) -> Interval:
    """The two-sided interval of a mean that is true at every moment with probability `level`, at the last of these values.

    `clusters` count as one bet each, in order of appearance, and `population` then counts clusters. Raises DataError for missing values
    and for values beyond the bounds.
    """
    rows = column(values)
    low, high = _bounds(bounds)
    totals, sizes = unit_totals(rows, clusters)
    largest = int(sizes.max())
    tail = (1 - share(level, "level")) / 2
    under = _lower(totals, sizes, tail, (low, high), population, largest)[0]
    over = -_lower(-totals, sizes, tail, (-high, -low), population, largest)[0]
    estimate = float(rows.mean())
    method = "betting confidence sequence" + ("" if population is None else ", without replacement")
    units = None if sizes.size == rows.size else sizes.size
    return Interval(
        estimate=estimate, low=min(float(under), estimate), high=max(float(over), estimate), level=level, method=method, n=rows.size,
        clusters=units,
    )  # fmt: skip


def unit_totals(rows: ArrayLike, clusters: Clusters | None) -> tuple[Floats, Floats]:
    """The sum of each unit's values (… × units) and how many they are, units in order of their first row."""
    values = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    codes = cluster_codes(clusters, values.shape[1])
    if codes is None:
        return values, np.ones(values.shape[1])
    return np.stack([np.bincount(codes, weights=row) for row in values]), np.bincount(codes).astype(np.float64)


def rate_sequence(successes: int, n: int, level: float = 0.95, prior: tuple[float, float] = (0.5, 0.5)) -> Interval:
    """The two-sided interval of a rate that is true at every n with probability `level`: the exact beta-binomial mixture.

    `prior` (a, b) says where the bets are placed, a/(a + b) in the middle, not what is believed: the level holds for every rate.
    """
    _counted(successes, n)
    limit = -log(1 - share(level, "level"))
    rate = successes / n if n else 0.5
    low = _edge(lambda p: _mixture(successes, n, p, prior) >= limit, rate, 0.0) if successes else 0.0
    high = _edge(lambda p: _mixture(successes, n, p, prior) >= limit, rate, 1.0) if successes < n or not n else 1.0
    return Interval(estimate=rate, low=low, high=high, level=level, method="beta-binomial confidence sequence", n=n)


def rate_at_least(successes: float, n: float, alpha: float = 0.05, prior: tuple[float, float] = (0.5, 0.5)) -> float:
    """What a rate is at least, with an error of at most `alpha` over every n together (one-sided)."""
    _counted(successes, n)
    if not successes:
        return 0.0
    limit = -log(share(alpha, "alpha"))
    return _edge(lambda p: rate_evidence(successes, n, p, prior) >= limit, successes / n, 0.0)


def rate_at_most(successes: float, n: float, alpha: float = 0.05, prior: tuple[float, float] = (0.5, 0.5)) -> float:
    """What a rate is at most, with an error of at most `alpha` over every n together (one-sided)."""
    return 1.0 - rate_at_least(n - successes, n, alpha, (prior[1], prior[0]))


def rate_evidence(successes: float, n: float, null: float, prior: tuple[float, float] = (0.5, 0.5)) -> float:
    """The logarithm of the evidence that a rate is above `null`: an e-process for "at most null" that bets on the rates above it, spread
    as the beta `prior` is there; at least log(1/α) ever with probability at most α if the rate is not above. For rare events take a
    prior whose mean is near the rate that would matter."""
    from scipy import special

    _counted(successes, n)
    a, b = prior
    above = special.betaincc(a, b, share(null, "null"))
    there = special.betaincc(a + successes, b + n - successes, null)
    if above <= 0 or there <= 0:
        return -inf
    return _mixture(successes, n, null, prior) + log(there) - log(above)


def _mixture(successes: float, n: float, null: float, prior: tuple[float, float]) -> float:
    from scipy import special

    a, b = prior
    if (null <= 0 and successes) or (null >= 1 and successes < n):
        return inf
    return float(
        special.betaln(a + successes, b + n - successes) - special.betaln(a, b) - special.xlogy(successes, null)
        - special.xlog1py(n - successes, -null)
    )  # fmt: skip


def _edge(refuted: Callable[[float], bool], inner: float, outer: float) -> float:
    """The rate between `inner` (not refuted) and `outer` (refuted) at which that changes, on the safe side."""
    for _ in range(60):
        middle = (inner + outer) / 2
        inner, outer = (inner, middle) if refuted(middle) else (middle, outer)
    return outer


def _bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise UsageError(f"bounds {bounds}", allowed="two finite numbers, the lower one first")
    return float(low), float(high)


def _inside(totals: Floats, sizes: Floats, low: float, high: float) -> None:
    slack = _TOLERANCE * max(abs(low), abs(high), 1.0)
    beyond = (totals / sizes < low - slack) | (totals / sizes > high + slack)
    if beyond.any():
        value = (totals / sizes)[beyond][0]
        raise DataError(f"{int(beyond.sum())} value(s) beyond the scale, the first is {value:g}", allowed=f"{low:g} to {high:g}")


def _counted(successes: float, n: float) -> None:
    if not 0 <= successes <= n:
        raise UsageError(f"{successes} of {n}", allowed="counts, the first not more than the second")
