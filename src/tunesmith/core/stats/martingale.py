"""Evidence that a stream has left a fixed reference, which stays true however often one looks; knows nothing about texts.

A conformal test martingale whose reference grows takes in what came after a change, and sees it late or never. Here the reference is
fixed (Shaer, Bar, Prinster and Romano 2026, arXiv 2602.13848), and its own error is paid for beforehand: of each event that may become
more frequent (being among the 5 % least alike, say) the reference gives an upper bound of its probability, all of them right at once with
probability 1 − δ. A bet on more than the bound then gains nothing on average while nothing has changed, so the chance that the stake ever
grows 1/α-fold is at most α + δ (Ville 1939).

The stake is spread evenly over the events, over five sizes of bet, and over the window in which the change began (1/(s·(s + 1)) on the
s-th), so what was lost in quiet windows before it is not missed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.distributions import beta_quantile
from tunesmith.core.stats.records import Floats, share

_RAISED: Floats = np.array([0.02, 0.05, 0.1, 0.2, 0.4])  # of what is left of 1 above the bound: how frequent an event may have become


class ReferenceMartingale:
    """Fed window by window with how often each event came. `counts` of `n` values of the reference have each event."""

    def __init__(self, counts: ArrayLike, n: int, *, delta: float = 0.005) -> None:
        seen = np.asarray(counts, dtype=np.int64)
        if seen.size == 0 or n < 1 or seen.min() < 0 or seen.max() > n:
            raise UsageError(f"{seen.size} events among {n} values", allowed="one event at least, each 0 to n times")
        tail = share(delta, "delta") / seen.size
        self.bounds: Floats = np.array([beta_quantile(1 - tail, int(k) + 1, n - int(k)) if k < n else 1.0 for k in seen])
        hopes = self.bounds[:, None] + (1 - self.bounds[:, None]) * _RAISED
        with np.errstate(divide="ignore", invalid="ignore"):
            came, missed = np.log(hopes / self.bounds[:, None]), np.log((1 - hopes) / (1 - self.bounds[:, None]))
        self._came, self._missed = came, np.where(self.bounds[:, None] < 1, missed, 0.0)
        self._windows: list[tuple[Floats, int]] = []

    def add(self, counts: ArrayLike, n: int) -> Floats:
        """The next window: how often each event came among its n values. Returns the evidence of each event alone, as a logarithm."""
        seen = np.asarray(counts, dtype=np.float64)
        if seen.shape != self.bounds.shape or seen.min() < 0 or seen.max() > n:
            raise DataError(f"counts {seen.tolist()} of {n} values", allowed=f"{self.bounds.size} counts, each 0 to n")
        self._windows.append((seen, n))
        return self._each()

    @property
    def log_evidence(self) -> float:
        """The logarithm of the stake now, 0 before the first window: at least log(1/α) happens with probability α at most."""
        return float(_log_mean(self._each())) if self._windows else 0.0

    def _each(self) -> Floats:
        since = np.cumsum(np.stack([seen for seen, _ in self._windows])[::-1], axis=0)[::-1]  # window → counts from it to now
        rows = np.cumsum([n for _, n in self._windows][::-1])[::-1]
        logs = since[:, :, None] * self._came + (rows[:, None] - since)[:, :, None] * self._missed
        started = np.arange(1, len(rows) + 1)
        weighted = _log_mean(logs, axis=2) - np.log(started * (started + 1.0))[:, None]
        waiting = np.full((1, self.bounds.size), -np.log(len(rows) + 1.0))  # the stake on later beginnings
        return np.asarray(np.logaddexp.reduce(np.concatenate([weighted, waiting]), axis=0))


def _log_mean(logs: Floats, axis: int = 0) -> Floats:
    return np.asarray(np.logaddexp.reduce(logs, axis=axis) - np.log(logs.shape[axis]))
