"""What an experiment says: from sums over users to effects, intervals and verdicts. Pure functions, of one experiment or of arrays of many;
knows nothing about stores, requests or words.

A unit is whoever was drawn: a user, else a conversation, else a request. An arm's mean is over its requests (Σy/Σm), and its variance that
of a ratio over units, so requests of one user count as one observation (Deng, Knoblich and Lu 2018, arXiv 1803.06336). A covariate x that
was known before the draw takes out what it explains (CUPED, Deng et al. 2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.stats.anytime import anytime_reach, mixture_precision, share_above, share_evidence
from tunesmith.core.stats.group_sequential import bounds
from tunesmith.core.stats.records import Floats

# Sums over the units of an arm: how many there are, of how many requests (m), of their values (y) and covariates (x), of the products; and
# how many units had any y.
SUMS = ("units", "m", "y", "x", "mm", "my", "mx", "yy", "yx", "xx", "events")
UNITS_LEAST = 50
"""Units that each arm must have before anything is said of a mean: before, its variance is not known."""
TUNING = 2_000.0
"""Units at which intervals without a horizon are narrowest."""
PAIRS_TUNING = 300.0
"""The same, of pairs."""
PAIRS_LEAST = 30
"""Pairs with the metric itself that must be there before anything is said."""
RATIO_ALPHA = 0.01
RATIO_WEIGHT = 500.0
"""Of the sample ratio: its error, and how many units its bets on another ratio are worth."""
LOOKS_MOST = 20
"""Counted looks on the way to a horizon."""

UNKNOWN, BETTER, WORSE, EQUIVALENT = 0, 1, 2, 3
WORDS = ("cannot tell yet", "better", "worse", "equivalent")
Codes = NDArray[np.int8]


def summed(m: ArrayLike, y: ArrayLike, x: ArrayLike | None = None) -> Floats:
    """The sums of one arm from each unit's number of requests, sum of values and sum of covariates."""
    many, value = np.asarray(m, dtype=np.float64), np.asarray(y, dtype=np.float64)
    known = np.zeros_like(value) if x is None else np.asarray(x, dtype=np.float64)
    products = (many * many, many * value, many * known, value * value, value * known, known * known)
    columns = ((many > 0).astype(np.float64), many, value, known, *products, (value != 0).astype(np.float64))
    return np.stack([column.sum() for column in columns])


@dataclass(frozen=True, slots=True)
class Effect:
    """Treatment minus control (times `ratio` of a guardrail), each an array over experiments or looks: `estimate` and `se` (NaN where too
    little was seen), the arms' means, their units, and the share of the variance that a covariate left."""

    estimate: Floats
    se: Floats
    control: Floats
    treatment: Floats
    units: Floats
    left: Floats


def effect(control: ArrayLike, treatment: ArrayLike, *, ratio: float = 1.0, unit_scale: bool = False, adjusted: bool = False) -> Effect:
    """The effect from both arms' sums (… × `SUMS`).

    `unit_scale`: every value lies between 0 and 1, so one more at the far end may just not have been seen (as in `mean_interval`);
    `adjusted`: the covariate's share is taken out, with one slope for both arms, that of least variance.
    """
    arms = [_Arm(np.asarray(sums, dtype=np.float64), unit_scale=unit_scale) for sums in (control, treatment)]
    a, b = arms
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = a.yy * ratio**2 + b.yy
        slope = (ratio * a.yx + b.yx) / (a.xx + b.xx) if adjusted else np.zeros_like(raw)
        slope = np.where(np.isfinite(slope), slope, 0.0)
        variance = raw - slope * 2 * (ratio * a.yx + b.yx) + slope**2 * (a.xx + b.xx)
        estimate = b.mean - ratio * a.mean - slope * (b.known - a.known)
        variance = np.maximum(variance, 0.0) + a.far * ratio**2 + b.far
        ready = (np.minimum(a.units, b.units) >= UNITS_LEAST) & (variance > 0)
        left = np.where(raw > 0, np.minimum(1.0, (variance - a.far * ratio**2 - b.far) / raw), 1.0)
    return Effect(np.where(ready, estimate, np.nan), np.where(ready, np.sqrt(variance), np.nan), a.mean, b.mean, a.units + b.units, left)


class _Arm:
    """Mean, covariate's mean, and the (co)variances of both, of one arm."""

    def __init__(self, sums: Floats, *, unit_scale: bool) -> None:
        units, m, y, x, mm, my, mx, yy, yx, xx, _ = np.moveaxis(sums, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean, known = y / m, x / m
            scale = units / np.maximum(units - 1, 1) / m**2
            self.yy = scale * np.maximum(yy - 2 * mean * my + mean**2 * mm, 0.0)
            self.xx = scale * np.maximum(xx - 2 * known * mx + known**2 * mm, 0.0)
            self.yx = scale * (yx - mean * mx - known * my + mean * known * mm)
            distance = np.maximum(mean, 1 - mean)
            self.far = distance**2 / (units * (units + 2)) if unit_scale else np.zeros_like(mean)
        self.mean, self.known, self.units = mean, known, units


def anytime(seen: Effect, alpha: float, tuning: float = TUNING) -> tuple[Floats, Floats]:
    """The interval (low, high) that holds at all moments together."""
    half = seen.se * anytime_reach(seen.units, mixture_precision(tuning, alpha), alpha)
    return seen.estimate - half, seen.estimate + half


def sequential(seen: Effect, alpha: float, times: Sequence[float], information: Sequence[float] | None = None) -> tuple[Floats, Floats]:
    """The interval (low, high) of the last of the counted looks, at these shares of the way to the horizon; all of them hold together."""
    half = seen.se * bounds(times, alpha, information=information)[-1]
    return seen.estimate - half, seen.estimate + half


def verdict(low: ArrayLike, high: ArrayLike, *, better: str = "higher", margin: float | None = None) -> Codes:
    """Codes of `WORDS`: which side of 0 the whole interval is on, or that it lies within ±`margin`; `UNKNOWN` for no interval."""
    under, over = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    up, down = (BETTER, WORSE) if better == "higher" else (WORSE, BETTER)
    code = np.full(np.broadcast(under, over).shape, UNKNOWN, dtype=np.int8)
    if margin is not None:
        code[(under > -margin) & (over < margin)] = EQUIVALENT
    code[under > 0] = up
    code[over < 0] = down
    return code


def event_interval(control: ArrayLike, treatment: ArrayLike, alpha: float, treated: float) -> tuple[float, float, float]:
    """(ratio of the rates of units with an event, low, high) of one experiment, exact at all moments together.

    Where the rates are equal, each event falls to the treatment with its share of the draw, whatever the rate.
    """
    from tunesmith.core.stats.sequential import rate_sequence

    there, events = float(np.asarray(treatment)[..., -1]), float(np.asarray(control)[..., -1] + np.asarray(treatment)[..., -1])
    seen = rate_sequence(int(there), int(events), 1 - alpha, prior=(2 * treated, 2 * (1 - treated)))
    low, middle, high = (_odds(part, treated) for part in (seen.low, seen.estimate, seen.high))
    return middle, low, high


def _odds(part: float, treated: float) -> float:
    return float("inf") if part >= 1 else part / (1 - part) * (1 - treated) / treated


def event_verdict(control: ArrayLike, treatment: ArrayLike, alpha: float, treated: float, *, better: str = "lower") -> Codes:
    """Codes of `WORDS` for a metric of events, exact: the share of events that fell to the treatment is not its share of the draw."""
    there = np.asarray(treatment, dtype=np.float64)[..., -1]
    events = there + np.asarray(control, dtype=np.float64)[..., -1]
    more = there > treated * events
    refuted = share_evidence(there, events, treated) >= log(1 / alpha)
    up, down = (BETTER, WORSE) if better == "higher" else (WORSE, BETTER)
    return np.where(refuted, np.where(more, up, down), UNKNOWN).astype(np.int8)


def event_harm(control: ArrayLike, treatment: ArrayLike, alpha: float, treated: float, tolerance: float) -> NDArray[np.bool_]:
    """Whether the treatment's rate of units with an event is more than `tolerance` times the control's: exact, one-sided, at any moment."""
    null = treated * tolerance / (treated * tolerance + 1 - treated)
    there = np.asarray(treatment, dtype=np.float64)[..., -1]
    events = there + np.asarray(control, dtype=np.float64)[..., -1]
    harmed: NDArray[np.bool_] = share_above(there, events, null) >= log(1 / alpha)
    return harmed


def amount_harm(seen: Effect, alpha: float, *, better: str) -> NDArray[np.bool_]:
    """Whether an effect against the tolerated multiple of the control (`ratio`) is to the bad side, one-sided, at any moment."""
    low, high = anytime(seen, min(2 * alpha, 0.5))
    return low > 0 if better == "lower" else high < 0


def ratio_mismatch(control_units: ArrayLike, treatment_units: ArrayLike, treated: float) -> Floats:
    """The logarithm of the evidence that units do not fall to the arms as they were to be drawn: a mismatch from log(1/`RATIO_ALPHA`) on.

    A sequential multinomial test (Lindon and Malek 2020, arXiv 2011.03567): it may be looked at after every unit.
    """
    there = np.asarray(treatment_units, dtype=np.float64)
    return share_evidence(there, there + np.asarray(control_units, dtype=np.float64), treated, RATIO_WEIGHT)


def mismatched(evidence: ArrayLike) -> NDArray[np.bool_]:
    """Whether the evidence of `ratio_mismatch` says that the experiment is broken."""
    return np.asarray(evidence) >= log(1 / RATIO_ALPHA)


def look_due(units: float, horizon: int, times: Sequence[float]) -> float | None:
    """The share of the way at which a look is to be counted now, after those at `times`; None while it is too early for the next."""
    time = min(1.0, units / horizon)
    before = times[-1] if times else 0.0
    return time if time > before and (time >= 1.0 or time - before >= 1 / LOOKS_MOST - 1e-9) else None


def paired(labelled: ArrayLike, others: ArrayLike) -> Effect:
    """Mean difference over pairs of which some have the metric (y) and all the judge's (x): the judge's mean over the `others` corrected by
    where both are known (PPI++, arXiv 2311.01453). `others` of no pair: the labelled ones alone."""
    known, rest = (
        _Arm(np.asarray(labelled, dtype=np.float64), unit_scale=False),
        _Arm(np.asarray(others, dtype=np.float64), unit_scale=False),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(rest.units > 1, known.yx / (known.xx + rest.xx), 0.0)
        weight = np.clip(np.where(np.isfinite(weight), weight, 0.0), 0.0, None)
        moved = np.where(rest.units > 1, weight * (known.known - rest.known), 0.0)
        variance = known.yy - 2 * weight * known.yx + weight**2 * (known.xx + np.where(rest.units > 1, rest.xx, 0.0))
        far = 1 / (known.units * (known.units + 2))  # one more pair that differs the other way
        left = np.where(known.yy > 0, np.minimum(1.0, variance / known.yy), 1.0)
    ready = known.units >= PAIRS_LEAST
    se = np.where(ready, np.sqrt(np.maximum(variance, 0.0) + far), np.nan)
    units = known.units + np.nan_to_num(rest.units)
    return Effect(np.where(ready, known.mean - moved, np.nan), se, np.zeros_like(known.mean), known.mean, units, left)
