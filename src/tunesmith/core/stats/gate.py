"""The one gate: may B take A's place? pass, block or cannot tell, from one interval; knows nothing about models or exit codes.

A rule of "any drop" refuses an unchanged model about every second time. A gate on the interval blocks it less than 1 time in 100, at the
price of "cannot tell" when the rows were too few: `sample_size_non_inferiority` plans them.
"""

from __future__ import annotations

from math import ceil, isfinite, sqrt
from typing import Literal

from msgspec.structs import replace

from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.core.stats.distributions import nct_cdf, t_for, z_cdf, z_for, z_quantile
from tunesmith.core.stats.paired import TANGO
from tunesmith.core.stats.power import power_edge
from tunesmith.core.stats.records import Difference
from tunesmith.core.types import Record

GateAnswer = Literal["pass", "block", "cannot tell"]
_POWER = 0.8
_EXACT_UP_TO = 1_000  # rows; beyond, the normal approximation is exact to two figures


class GateRule(Record, frozen=True):
    """What B must show, in the metric's unit. `superior`: a gain of more than `margin` (0: any gain). Otherwise a loss of `margin` or more
    must be ruled out, and a margin of 0 would be superiority by another name."""

    margin: float = 0.0
    superior: bool = True

    def __post_init__(self) -> None:
        check_margin(self.margin, self.superior, where="gate.margin")

    @property
    def edge(self) -> float:
        """What the whole interval of B − A must lie above."""
        return self.margin if self.superior else -self.margin


def check_margin(margin: float, superior: bool, *, where: str) -> None:
    """Raises ConfigError for a margin that the rule cannot have, naming the key `where` it stands."""
    if isfinite(margin) and (margin > 0 or (superior and margin == 0)):
        return
    if superior:
        allowed, remedy = "0 (any gain) or more", f"superior: false with margin {abs(margin):g} tolerates a loss smaller than that"
    else:
        allowed, remedy = "more than 0, in the metric's unit", "superior: true with margin 0 asks for any gain"
    raise ConfigError(f"a margin of {margin:g}", where=where, allowed=allowed, remedy=remedy)


class Gate(Record, frozen=True):
    """The decision and its reason in words. `power`: the chance to pass, on as many rows, of a model that truly is one margin above the
    edge (non-inferiority: an equal one; superiority: one better by twice the margin), exact where rows are right or wrong. `rows_needed`:
    the rows that give it 80 % (None: no number does, the margin is 0). Both None where nothing could be compared."""

    decision: GateAnswer
    margin: float
    reason: str
    sentence: str
    rows_needed: int | None = None
    power: float | None = None


def decide(difference: Difference | None, rule: GateRule, *, better: str = "higher") -> Gate:
    """pass: the whole interval lies above the rule's edge; block: none of it; cannot tell: the edge is inside, or there is no interval.

    `difference` is B minus A; where lower values are `better` it is turned round. Raises UsageError where neither direction is.
    """
    if better == "neither":
        raise UsageError("no value of the metric is better than another", allowed="a metric with a good direction")
    if difference is None:
        reason = "too few rows to compare"
        return Gate(decision="cannot tell", margin=rule.margin, reason=reason, sentence="Too few rows to compare.")
    gain = difference if better == "higher" else _turned(difference)
    decision: GateAnswer = "pass" if gain.low > rule.edge else "block" if gain.high <= rule.edge else "cannot tell"
    reason = _reason(decision, rule)
    seen = f"{gain.estimate:+.4g} ({100 * gain.level:.3g}% interval {gain.low:+.4g} to {gain.high:+.4g})"
    needed = _rows_needed(gain, rule)
    plan = _plan(gain, rule, needed) if decision == "cannot tell" else ""
    sentence = f"The {'gain' if better == 'lower' else 'difference'} is {seen}: {reason}{plan}."
    return Gate(decision=decision, margin=rule.margin, reason=reason, sentence=sentence, rows_needed=needed, power=_power(gain, rule))


def non_inferiority(difference: Difference, margin: float) -> Gate:
    """Is a loss of `margin` or more ruled out? `difference` is the candidate (B) minus the current model (A), higher is better.

    Raises ConfigError for a margin that is not positive.
    """
    return decide(difference, GateRule(margin=margin, superior=False))


def superiority(difference: Difference, margin: float = 0.0) -> Gate:
    """Is the gain more than `margin`? Raises ConfigError for a margin below 0."""
    return decide(difference, GateRule(margin=margin, superior=True))


def _turned(difference: Difference) -> Difference:
    return replace(difference, estimate=-difference.estimate, low=-difference.high, high=-difference.low)


def _reason(decision: GateAnswer, rule: GateRule) -> str:
    if rule.superior and rule.margin == 0:
        words = ("there is a gain", "a gain is ruled out", "a gain is neither shown nor ruled out")
    elif rule.superior:
        gain = f"a gain of more than {rule.margin:g}"
        words = (f"the gain is more than {rule.margin:g}", f"{gain} is ruled out", f"{gain} is neither shown nor ruled out")
    else:
        loss = f"a loss of {rule.margin:g} or more"
        words = (f"{loss} is ruled out", f"the loss is {rule.margin:g} or more", f"{loss} is neither shown nor ruled out")
    return words[("pass", "block", "cannot tell").index(decision)]


def _reach(gain: Difference) -> float:
    """How many standard errors the interval reaches to either side."""
    return z_for(gain.level) if gain.df is None else t_for(gain.level, gain.df)


def _rows_needed(gain: Difference, rule: GateRule) -> int | None:
    """The rows that give 80 %: the normal formula's, and then as many more as the power itself asks for."""
    if rule.margin == 0 or not isfinite(gain.se):
        return None
    n = ceil(gain.n * ((z_for(gain.level) + z_quantile(_POWER)) * gain.se / rule.margin) ** 2)
    while n < _EXACT_UP_TO and (_power(gain, rule, max(1, n)) or 0.0) < _POWER:
        n += max(1, n // 50)
    return n


def _power(gain: Difference, rule: GateRule, n: int | None = None) -> float | None:
    """The chance to pass over `n` rows (as many as were seen): exact for right/wrong rows that differ as often as these, by the non-central
    t for other scores."""
    if not isfinite(gain.se):
        return None
    n = gain.n if n is None else n
    if gain.method == TANGO and n <= _EXACT_UP_TO:
        truth, differ = rule.edge + rule.margin, (gain.wins + gain.losses) / gain.n
        differ = max(differ, abs(truth))
        return power_edge(n, rule.edge, differ, difference=truth, alpha=1 - gain.level) if differ <= 1 else 0.0
    se = gain.se * sqrt(gain.n / n)
    if se <= 0:
        return float(rule.margin > 0)
    if gain.df is None:
        return z_cdf(rule.margin / se - z_for(gain.level))
    df = max(1.0, gain.df * n / gain.n)
    power = 1 - nct_cdf(t_for(gain.level, df), df, rule.margin / se)
    return power if isfinite(power) else None


def _plan(gain: Difference, rule: GateRule, needed: int | None) -> str:
    """How to come to an answer: more rows, or, where no margin gives their number, how large a gain these rows can show."""
    if needed is not None:
        return f"; plan about {needed} rows"
    seen = (_reach(gain) + z_quantile(_POWER)) * gain.se
    return f"; these rows show a gain from {seen:.3g} on ({_POWER:.0%} power)" if isfinite(seen) else ""
