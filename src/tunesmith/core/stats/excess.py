"""Evidence that one rate exceeds another by more than a margin, true however often one looks; knows nothing about requests or rollouts.

Two streams of values between 0 and 1 (1: bad) are seen side by side in blocks, n of one and m of the other. The claim is that in no block
the first mean exceeds the second by more than the margin δ; the means may otherwise change from block to block as they like. Against it
one bets on both streams at once: a value y of the first multiplies the stake by 1 + s·(y − q − δ), one of the second by
1 − (n/m)·s·(y − q). If the claim is true the product pays nothing on average, for any s > 0 and q: the logarithm of its expectation is at
most n·s·((p₁ − q − δ) − (p₂ − q)) ≤ 0.
The bets that grow fastest against a guess (p₁, p₂) take q where the guess comes nearest to the claim (the reverse information projection:
Turner, Ly and Grünwald 2021, arXiv 2106.02693), and the stake is spread over several guesses. By Ville's inequality it ever grows
1/α-fold with probability at most α.

A stream that turns bad late has lost its stake by then, so part of the stake is kept back and put in later (`added`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.core.errors import UsageError
from tunesmith.core.stats.records import Floats
from tunesmith.core.types import Record

_SHIFTS: Floats = np.array([0.35, 0.8, 1.4, 2.2, 3.5])
"""How far above the claim the first rate is guessed to be, in log-odds."""
GUESSES = _SHIFTS.size
_REMEMBERED = 2_000.0  # values of the second stream that the guess of its rate rests on
_EDGE, _LEAST = 1e-4, 1e-9
_NOTHING = -1e9  # the logarithm of no stake, as JSON can have it
_HALVINGS = 40


class Stakes(Record, frozen=True):
    """Where a game stands: the logarithms of the stakes on each guess, and how many values of the second stream were seen (the last ones
    weigh more), how bad in sum. Begin with what is known of that stream from before, or with nothing."""

    logs: tuple[float, ...] = (_NOTHING,) * GUESSES
    values: float = 1.0
    bad: float = 0.05

    @property
    def log_evidence(self) -> float:
        """The logarithm of what the stake has become."""
        return float(np.logaddexp.reduce(self.logs))


def excess_evidence(blocks: ArrayLike, margin: float, stakes: Stakes, added: ArrayLike) -> tuple[Floats, Stakes]:
    """(the logarithm of the stake after each block, where the game then stands) of "the first rate is at most the second + margin".

    `blocks` has a row (n, bad of n, m, bad of m) for each, n and m above 0; bad values may be fractions. `added` is what part of the whole
    stake of 1 is put in before each block; all that is ever added to a game must be at most 1. Raises UsageError for a margin that no
    two rates can differ by.
    """
    if not -1 < margin < 1:
        raise UsageError(f"a margin of {margin:g}", allowed="more than -1 and less than 1")
    rows = np.asarray(blocks, dtype=np.float64).reshape(-1, 4)
    if not rows.size:
        return np.zeros(0), stakes
    guesses, values, bad = _guesses(rows, stakes)
    growth = np.cumsum(_growth(rows, guesses, margin), axis=0)
    put = np.asarray(added, dtype=np.float64)
    fresh = np.where(put > 0, np.log(np.where(put > 0, put, 1.0) / GUESSES), _NOTHING)[:, None]
    before = np.vstack([np.zeros((1, GUESSES)), growth[:-1]])
    stake = np.logaddexp.accumulate(np.vstack([np.asarray(stakes.logs)[None, :], fresh - before]), axis=0)[1:] + growth
    return np.logaddexp.reduce(stake, axis=1), Stakes(logs=tuple(map(float, stake[-1])), values=values, bad=bad)


def _guesses(rows: Floats, stakes: Stakes) -> tuple[Floats, float, float]:
    """The rate of the second stream as it is guessed before each block, and what is known of it after the last."""
    guesses, values, bad = np.empty(len(rows)), stakes.values, stakes.bad
    for i, (_, _, more, worse) in enumerate(rows):
        guesses[i] = bad / values
        values, bad = values + more, bad + worse
        if values > _REMEMBERED:
            values, bad = _REMEMBERED, bad * _REMEMBERED / values
    return guesses, float(values), float(bad)


def _growth(rows: Floats, guesses: Floats, margin: float) -> Floats:
    """By how much the logarithm of each stake grows in each block (blocks × guesses)."""
    n, bad, m, worse = (rows[:, i : i + 1] for i in range(4))
    low, high = max(0.0, -margin) + _EDGE, min(1.0, 1.0 - margin) - _EDGE
    if low >= high:
        return np.zeros((len(rows), GUESSES))
    second = np.clip(guesses, low, high)[:, None]
    bound = second + margin
    first = 1 / (1 + np.exp(-np.log(bound / (1 - bound)) - _SHIFTS))
    q = _nearest(n, m, first, second, margin)
    p = q + margin
    stake = (first - p) / (p * (1 - p))
    # No bet may lose more than all but a little: the guess of a rate is kept away from 0 and 1, so this is about rounding.
    counter = np.minimum(n / m * stake, (1 - _EDGE) / (1 - q))
    stake = np.minimum(stake, counter * m / n)
    gains: Floats = (
        bad * np.log1p(stake * (1 - p))
        + (n - bad) * np.log1p(-stake * p)
        + worse * np.log1p(-counter * (1 - q))
        + (m - worse) * np.log1p(counter * q)
    )
    return gains


def _nearest(n: Floats, m: Floats, first: Floats, second: Floats, margin: float) -> Floats:
    """The second rate of the pair on the claim's edge that is nearest to the guess: n·KL(first‖q + margin) + m·KL(second‖q) is least."""
    low, high = second, np.minimum(first - margin, min(1.0, 1.0 - margin) - _LEAST)
    for _ in range(_HALVINGS):
        q = (low + high) / 2
        p = q + margin
        rises = n * (first - p) / (p * (1 - p)) + m * (second - q) / (q * (1 - q)) > 0
        low, high = np.where(rises, q, low), np.where(rises, high, q)
    return (low + high) / 2
