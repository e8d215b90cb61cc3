"""Differences and shares that may be looked at whenever one likes; knows nothing about arms, metrics or requests. All of it takes arrays.

An estimate whose standard error is known behaves, as data come in, like Brownian motion in its information I = 1/se². Betting on every
drift at once, spread normally with the precision ρ, gives the normal mixture (Robbins 1970; for estimated variances Waudby-Smith et al.
2021, arXiv 2103.06476): an interval that holds at all moments together. What happened how often in one of two arms needs no such
approximation: where nothing differs, each event falls to an arm with the arm's share, and the beta mixture of bets on another share is
exact at every number of events (Lindon and Malek 2020, arXiv 2011.03567; Howard and Ramdas 2022, arXiv 1906.09712).
"""

from __future__ import annotations

from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import UsageError
from tunesmith.core.stats.records import Floats, share

Flags = NDArray[np.bool_]


def mixture_precision(tuning: float, alpha: float = 0.05) -> float:
    """The ρ with which the interval is narrowest when the information is `tuning`, in the unit of `tuning` (also a number of units, where
    the information grows with them)."""
    if not tuning > 0:
        raise UsageError(f"a tuning of {tuning}", allowed="more than 0")
    reach = -2 * log(share(alpha, "alpha"))
    return tuning / (reach + log(reach + 1))


def anytime_reach(information: ArrayLike, precision: ArrayLike, alpha: float = 0.05) -> Floats:
    """How many standard errors the interval that holds at all moments together reaches to either side (infinite without information)."""
    ratio = np.asarray(information, dtype=np.float64) / np.asarray(precision, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.sqrt((1 + 1 / ratio) * (np.log1p(ratio) - 2 * log(share(alpha, "alpha"))))
    return np.where(ratio > 0, reach, np.inf)


def anytime_p_value(z: ArrayLike, information: ArrayLike, precision: ArrayLike) -> Floats:
    """The smallest alpha at which the interval of this moment leaves out no effect; its least value so far is a p-value at every moment."""
    ratio = np.asarray(information, dtype=np.float64) / np.asarray(precision, dtype=np.float64)
    squared = np.asarray(z, dtype=np.float64) ** 2
    p: Floats = np.minimum(1.0, np.exp(0.5 * np.log1p(ratio) - 0.5 * squared * ratio / (1 + ratio)))
    return p


def share_evidence(there: ArrayLike, events: ArrayLike, null: float, weight: float = 2.0) -> Floats:
    """The logarithm of the evidence that of `events` another share than `null` falls to an arm to which `there` fell: at least log(1/α) at
    any moment with probability at most α if the share is `null`. The bets are spread as a beta around it that `weight` events made."""
    from scipy import special

    k, n = np.asarray(there, dtype=np.float64), np.asarray(events, dtype=np.float64)
    a, b = weight * share(null, "null"), weight * (1 - null)
    found: Floats = special.betaln(a + k, b + n - k) - special.betaln(a, b) - k * log(null) - (n - k) * log(1 - null)
    return found


def share_above(there: ArrayLike, events: ArrayLike, null: float, weight: float = 2.0) -> Floats:
    """As `share_evidence`, that the share is above `null`, whatever below it the truth is: bets on larger shares only."""
    from scipy import special

    k, n = np.asarray(there, dtype=np.float64), np.asarray(events, dtype=np.float64)
    a, b = weight * share(null, "null"), weight * (1 - null)
    above = special.betaincc(a, b, null)
    with np.errstate(divide="ignore"):
        found: Floats = share_evidence(k, n, null, weight) + np.log(special.betaincc(a + k, b + n - k, null)) - np.log(above)
    return found
