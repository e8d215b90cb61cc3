"""A chart of a stream of values that says when its mean has moved, with a stated rate of false alarms; knows nothing about what is
charted.

CUSUM (Page 1954) for values between bounds: the sum of what each value falls short of the mean it is held against, half the shift that is
to be seen taken off, never below 0. The limit is not a rule of thumb: quiet streams are drawn from the reference until no more than
`false_share` of them reach it within `horizon` values. The reference is finite and its mean not the true one, so each quiet stream is
drawn from a resample of the reference (a Bayesian bootstrap, Rubin 1981) and held against the mean of the reference as it is.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.records import Floats, column, share

_STREAMS, _PIECE = 2_000, 500
_LEAST, _MOST_PIECES = 30, 24


class Cusum:
    """A chart of one side. `shift` is the change of the mean that is to be seen; `toward` says whether a lower or a higher mean is
    looked for, `bounds` what a value can be: a reference that never failed proves no more than that failures are rare. The limit is
    drawn once, with a fixed seed."""

    def __init__(
        self,
        reference: ArrayLike,
        *,
        shift: float,
        horizon: int,
        false_share: float = 0.02,
        toward: Literal["lower", "higher"] = "lower",
        bounds: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
    ) -> None:
        values = column(reference, "reference", least=_LEAST)
        if not shift > 0 or horizon < 1:
            raise UsageError(f"shift {shift}, horizon {horizon}", allowed="a shift above 0, one value or more")
        self.mean, self.shift, self.toward = float(values.mean()), shift, toward
        self._sign = -1.0 if toward == "lower" else 1.0
        self.horizon, self.false_share = horizon, share(false_share, "false_share")
        self.limit = self._limit(np.concatenate([values, bounds]), seed)
        self.height = 0.0
        self.seen = 0

    def add(self, values: ArrayLike) -> list[float]:
        """The heights after each of the next values; at or above `limit` the mean has moved. Raises DataError for a missing value."""
        fresh = np.asarray(values, dtype=np.float64).ravel()
        if not np.isfinite(fresh).all():
            raise DataError(f"{int((~np.isfinite(fresh)).sum())} values that are no numbers", allowed="finite values")
        heights = []
        for step in self._steps(fresh):
            self.height = max(0.0, self.height + float(step))
            heights.append(self.height)
        self.seen += fresh.size
        return heights

    @property
    def alarm(self) -> bool:
        """Whether the height is at the limit now."""
        return self.height >= self.limit

    def _steps(self, values: Floats) -> Floats:
        return np.asarray(self._sign * (values - self.mean) - self.shift / 2)

    def _limit(self, values: Floats, seed: int) -> float:
        rng = np.random.default_rng(seed)
        steps = self._steps(values)
        highest = []
        for start in range(0, _STREAMS, _PIECE):
            count = min(_PIECE, _STREAMS - start)
            weights = rng.standard_exponential((count, values.size))
            weights[:, -2:] = rng.standard_gamma(0.5, (count, 2))  # of a rate with its ends this is Jeffreys' prior
            weights /= weights.sum(axis=1, keepdims=True)
            highest.append(_highest(rng, weights, steps, self.horizon))
        return float(np.quantile(np.concatenate(highest), 1 - self.false_share, method="higher"))


def _highest(rng: np.random.Generator, weights: Floats, steps: Floats, horizon: int) -> Floats:
    """The highest point of a quiet chart of each row of weights (they add up to 1); nearly equal steps are drawn as one."""
    place, means = _pieces(steps)
    inside = np.stack([weights[:, place == i].sum(1) for i in range(means.size)], axis=1)
    limits = np.cumsum(inside, axis=1).T.copy()  # [pieces, streams]
    height = np.zeros(len(weights))
    most = np.zeros(len(weights))
    for _ in range(horizon):
        pick = np.minimum((limits < rng.random(len(weights))).sum(axis=0), means.size - 1)
        height = np.maximum(0.0, height + means[pick])
        np.maximum(most, height, out=most)
    return most


def _pieces(steps: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Each step's piece, and the mean of each piece: the distinct steps where they are few, else pieces of equally many."""
    distinct, place = np.unique(steps, return_inverse=True)
    if distinct.size > _MOST_PIECES:
        order = np.argsort(np.argsort(steps, kind="stable"), kind="stable")
        place = order * _MOST_PIECES // steps.size
    pieces = np.unique(place)
    return place, np.array([steps[place == i].mean() for i in pieces])
