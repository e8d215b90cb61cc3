"""What more data would bring: scores at a few sizes → a curve with its band, or "cannot tell"; knows nothing about training.

Two laws of the error, 1 − score (of the task's own metric, between 0 and 1), over the number of rows D:

- power: E + B / D^β;
- rectified: E + B / (D_l + D^β), which stays flat while D^β is small beside D_l, the "pre-power phase" in which fine-tuning on few rows
  does nothing yet (Lin et al. 2024, arXiv 2402.02314; an outer exponent is 1 here: over the few sizes that one can afford it cannot be
  told from β).

Least squares through four sizes takes one curve out of many that fit, and its band is far too narrow. So all curves of both laws are kept,
each with the weight that the scores give it (a grid over E, β, D_l and the noise of a run, B in closed form), and the band is that of the
curves together. How much each law counts is decided by what it said of the largest size before it saw it. No law is the truth: beyond the
largest size each curve's gain is taken to be off by some two fifths, and in a fifth of the curves there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.records import Floats, column

Law = Literal["power", "rectified", "cannot tell"]
LEAST_SIZES = 3
_BETAS: Floats = np.geomspace(0.1, 2.5, 16)
_FLAT: Floats = np.geomspace(1e-2, 1e2, 30)  # D_l as a multiple of (largest size)^β
_FLOORS = 24  # values of E between 0 and the least error
_NOISES: Floats = np.geomspace(0.003, 0.08, 8)
_NOISE, _NOISE_SPREAD = 0.015, 0.8  # a run's noise before any was seen: about 1.5 points, within a factor of 2 either way
_DRAWS = 2000
_STALLS = 0.2  # of the curves gain nothing more beyond the largest size
_STRAYS = 0.4  # the spread of the others' gain there, around the law's
_SURE = log(3.0)  # how much likelier the largest size must be under a law that is said to hold
_WEIGHTS = (0.1, 0.9)  # of a law, however well or badly it foretold the largest size


class Prediction(NamedTuple):
    """A score with the interval that it lies in."""

    value: float
    low: float
    high: float


class RowsNeeded(NamedTuple):
    """How many rows reach a score: the middle of the curves, and the band (None: more than any number, as far as can be told). `chance`:
    the share of the curves that ever reach it."""

    rows: float | None
    low: float | None
    high: float | None
    chance: float


@dataclass(frozen=True)
class _Curves:
    """Draws of curves of one law: E, B, β, D_l (in units of the largest size) and the noise of a run."""

    floor: Floats
    drop: Floats
    beta: Floats
    flat: Floats
    noise: Floats

    def errors(self, size: float) -> Floats:
        """The error of each curve at a size (a multiple of the largest one)."""
        with np.errstate(divide="ignore"):
            return np.clip(self.floor + self.drop * _shape(np.array([size]), self.beta[:, None], self.flat[:, None])[:, 0], 0.0, 1.0)

    def sizes(self, error: Floats) -> Floats:
        """The size at which each curve comes down to its error; infinite where it never does."""
        room = error - self.floor
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.where(room > 0, self.drop * (1 + self.flat) / room - self.flat, inf)
            return np.where(left <= 0, 0.0, left ** (1 / self.beta))


class Curve:
    """Scores over sizes as all the curves that fit. `law` is the one that foretold the largest size; "cannot tell" where none did clearly
    better and the two say different things of ten times the data. `noise` is the spread of one run's score."""

    def __init__(self, sizes: Floats, scores: Floats, seed: int) -> None:
        self.sizes, self.scores = sizes, scores
        self.largest = float(sizes.max())
        rng = np.random.default_rng(seed)
        before = sizes < self.largest
        fits = {name: _fit(sizes, scores, self.largest, flat) for name, flat in _LAWS.items()}
        foretold = {
            name: _foretold(_fit(sizes[before], scores[before], self.largest, flat), scores[~before], rng) for name, flat in _LAWS.items()
        }
        self.advantage = foretold["rectified"] - foretold["power"]
        low, high = _WEIGHTS
        self.weight = float(np.clip(1 / (1 + np.exp(-np.clip(self.advantage, -50, 50))), low, high))
        self._curves = {name: fit.draws(rng) for name, fit in fits.items()}
        count = round(self.weight * _DRAWS)
        self._all = _together(self._curves["rectified"], count, self._curves["power"], _DRAWS - count)
        self._luck = rng.normal(size=_DRAWS)
        self._gain = np.where(rng.random(_DRAWS) < _STALLS, 0.0, np.maximum(1 + _STRAYS * rng.normal(size=_DRAWS), 0.0))
        self.noise = float(np.median(self._all.noise))

    @property
    def law(self) -> Law:
        """Which law holds, as far as can be told."""
        if abs(self.advantage) >= _SURE or not self.disagree:
            return "rectified" if self.advantage > 0 else "power"
        return "cannot tell"

    @property
    def disagree(self) -> bool:
        """Whether one law's middle at ten times the data lies outside of what the other holds for likely (its middle half)."""
        one, two = (np.quantile(curves.errors(10.0), [0.25, 0.5, 0.75]) for curves in self._curves.values())
        return not (
            two[0] - self.noise / 2 <= one[1] <= two[2] + self.noise / 2 or one[0] - self.noise / 2 <= two[1] <= one[2] + self.noise / 2
        )

    def predict(self, size: float, *, level: float = 0.9, runs: int | None = 1) -> Prediction:
        """The score at a number of rows: that of the mean of so many new runs (None: of the curve itself, without the noise of runs)."""
        if not size > 0 or (runs is not None and runs < 1):
            raise UsageError(f"a prediction for {size:g} rows and {runs} runs", allowed="more than 0 rows; 1 run or more, or None")
        errors = self._all.errors(size / self.largest)
        if size > self.largest:
            now = self._all.errors(1.0)
            errors = now + self._gain * (errors - now)
        scores = 1 - errors
        if runs is not None:
            scores = scores + self._luck * self._all.noise / sqrt(runs)
        low, middle, high = np.clip(np.quantile(scores, [(1 - level) / 2, 0.5, (1 + level) / 2]), 0.0, 1.0)
        return Prediction(float(middle), float(low), float(high))

    def rows_for(self, target: float, *, level: float = 0.9) -> RowsNeeded:
        """How many rows bring the curve to a score."""
        if not 0 <= target <= 1:
            raise UsageError(f"a target of {target:g}", allowed="a score from 0 to 1")
        now = self._all.errors(1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            beyond = np.where(self._gain > 0, now - (now - (1 - target)) / self._gain, -inf)
        rows = self._all.sizes(np.where(now > 1 - target, beyond, 1 - target)) * self.largest
        low, middle, high = np.quantile(rows, [(1 - level) / 2, 0.5, (1 + level) / 2], method="lower")
        rows_at = [float(x) if np.isfinite(x) else None for x in (middle, low, high)]
        return RowsNeeded(rows_at[0], rows_at[1], rows_at[2], float(np.isfinite(rows).mean()))


def fit_curve(sizes: Sequence[float], scores: Sequence[float], *, seed: int = 0) -> Curve:
    """The curve through the scores of runs: `sizes[i]` rows gave `scores[i]`, several runs (seeds) of a size being several entries.

    Size 0 (the untrained model) may be among them: it says where the rectified law starts. Raises DataError for fewer than 3 sizes above 0
    and for scores that are not between 0 and 1.
    """
    x, y = column(sizes, "sizes"), column(scores, "scores")
    if x.size != y.size:
        raise UsageError(f"{x.size} sizes and {y.size} scores", allowed="one score for each run")
    if np.any(x < 0) or np.any((y < 0) | (y > 1)):
        raise DataError(f"sizes from {x.min():g}, scores from {y.min():g} to {y.max():g}", allowed="sizes of 0 or more, scores from 0 to 1")
    distinct = np.unique(x[x > 0]).size
    if distinct < LEAST_SIZES:
        raise DataError(f"{distinct} size(s)", allowed=f"at least {LEAST_SIZES} above 0", remedy="train on more nested parts of the data")
    return Curve(x, y, seed)


_LAWS: dict[str, Floats] = {"rectified": _FLAT, "power": np.zeros(1)}


def _shape(sizes: Floats, beta: Floats, flat: Floats) -> Floats:
    """(1 + D_l)/(D_l + D^β), which is 1 at the largest size."""
    shape: Floats = (1 + flat) / (flat + sizes**beta)
    return shape


@dataclass(frozen=True)
class _Fit:
    """The weight of every combination of shape, floor and noise, and the drop that fits each best with its spread."""

    beta: Floats
    flat: Floats
    floors: Floats
    weights: Floats  # shapes × floors × noises, summing to 1
    best: Floats  # shapes × floors
    unit: Floats  # shapes: the spread of the drop for a noise of 1

    def draws(self, rng: np.random.Generator) -> _Curves:
        at = np.minimum(np.searchsorted(np.cumsum(self.weights), rng.random(_DRAWS)), self.weights.size - 1)
        shape, floor, noise = np.unravel_index(at, self.weights.shape)
        spread = self.unit[shape] * _NOISES[noise]
        return _Curves(
            self.floors[floor], _positive(self.best[shape, floor], spread, rng), self.beta[shape], self.flat[shape], _NOISES[noise]
        )


def _fit(sizes: Floats, scores: Floats, largest: float, flat: Floats) -> _Fit:
    used = (sizes > 0) | bool(flat[0])  # the plain power law has nothing to say of no rows at all
    x, errors = sizes[used] / largest, 1 - scores[used]
    betas, flats = (part.ravel() for part in np.meshgrid(_BETAS, flat, indexing="ij"))
    shapes = _shape(x, betas[:, None], flats[:, None])
    floors = np.linspace(0.0, float(min(errors.min() + _NOISE, 1.0)), _FLOORS)
    squares = (shapes**2).sum(axis=1)
    left = errors - floors[:, None]
    best: Floats = shapes @ left.T / squares[:, None]
    rest = (left**2).sum(axis=1) - best**2 * squares[:, None]
    unit = 1 / np.sqrt(squares)
    noise = _NOISES[None, None, :]
    spread = unit[:, None, None] * noise
    logs = (
        -x.size * np.log(noise) - np.maximum(rest, 0.0)[:, :, None] / (2 * noise**2) + np.log(spread) + _log_cdf(best[:, :, None] / spread)
    )
    logs -= (np.log(noise / _NOISE) / _NOISE_SPREAD) ** 2 / 2
    weights = np.exp(logs - logs.max())
    return _Fit(betas, flats, floors, weights / weights.sum(), best, unit)


def _foretold(fit: _Fit, scores: Floats, rng: np.random.Generator) -> float:
    """The logarithm of how likely the mean score of the largest size was."""
    curves = fit.draws(rng)
    off = (1 - curves.errors(1.0) - scores.mean()) / (curves.noise / sqrt(scores.size))
    return float(np.log(np.mean(np.exp(-(off**2) / 2) / (curves.noise / sqrt(scores.size))) + 1e-300))


def _together(one: _Curves, count: int, two: _Curves, other: int) -> _Curves:
    parts = zip(vars(one).values(), vars(two).values(), strict=True)
    return _Curves(*(np.concatenate([a[:count], b[:other]]) for a, b in parts))


def _positive(mean: Floats, spread: Floats, rng: np.random.Generator) -> Floats:
    """Normal numbers that are above 0."""
    from scipy import special

    under = special.ndtr(-mean / spread)
    drawn: Floats = mean + spread * special.ndtri(np.clip(under + rng.random(mean.size) * (1 - under), 1e-12, 1 - 1e-12))
    return drawn


def _log_cdf(z: NDArray[np.float64]) -> Floats:
    from scipy import special

    logs: Floats = special.log_ndtr(z)
    return logs
