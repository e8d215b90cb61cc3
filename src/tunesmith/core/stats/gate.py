"""Is a new model worse than tolerated? Three answers from one interval; knows nothing about deployments or exit codes.

An unchanged model fails "any drop" about every second time. A gate on the interval blocks it less than 1 time in 100, at the price of
saying "cannot tell" when the rows were too few: `sample_size_non_inferiority` plans them.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

from tunesmith.core.errors import UsageError
from tunesmith.core.stats.distributions import t_for, z_cdf, z_for, z_quantile
from tunesmith.core.stats.records import Difference
from tunesmith.core.types import Record


class Gate(Record, frozen=True):
    """The decision; the chance that a truly equal model (superiority: one better by twice the margin) would pass on as many rows; and the
    rows that would make it pass 4 times in 5."""

    decision: Literal["pass", "block", "cannot tell"]
    margin: float
    sentence: str
    rows_needed: int
    power: float


def non_inferiority(difference: Difference, margin: float) -> Gate:
    """pass: the whole interval lies above −margin; block: all of it below; cannot tell: −margin is inside.

    `difference` is the candidate (B) minus the current model (A), higher is better. Raises UsageError for a margin that is not positive.
    """
    return _decide(
        difference,
        -_positive(margin),
        said=(
            f"a loss of {margin:g} or more is ruled out",
            f"the loss is more than {margin:g}",
            f"a loss of {margin:g} is neither shown nor ruled out",
        ),
    )


def superiority(difference: Difference, margin: float) -> Gate:
    """pass: the whole interval lies above +margin; block: all of it below; cannot tell: +margin is inside. Raises as `non_inferiority`."""
    return _decide(
        difference,
        _positive(margin),
        said=(
            f"the gain is more than {margin:g}",
            f"a gain of {margin:g} or more is ruled out",
            f"a gain of {margin:g} is neither shown nor ruled out",
        ),
    )


def _positive(margin: float) -> float:
    if not margin > 0:
        raise UsageError(f"a margin of {margin}", allowed="more than 0, in the metric's unit")
    return margin


def _decide(difference: Difference, edge: float, said: tuple[str, str, str]) -> Gate:
    """The true difference that the power is of lies one margin above the edge: 0 for non-inferiority, twice the margin for superiority."""
    margin = abs(edge)
    seen = f"{difference.estimate:+.4g} ({100 * difference.level:.3g}% interval {difference.low:+.4g} to {difference.high:+.4g})"
    needed = ceil(difference.n * ((z_for(difference.level) + z_quantile(0.8)) * difference.se / margin) ** 2)
    reach = z_for(difference.level) if difference.df is None else t_for(difference.level, difference.df)
    power = z_cdf(margin / difference.se - reach) if difference.se > 0 else 1.0
    decision: Literal["pass", "block", "cannot tell"] = (
        "pass" if difference.low > edge else "block" if difference.high < edge else "cannot tell"
    )
    words = said[("pass", "block", "cannot tell").index(decision)]
    plan = f"; plan about {needed} rows" if decision == "cannot tell" else ""
    return Gate(decision=decision, margin=margin, sentence=f"The difference is {seen}: {words}{plan}.", rows_needed=needed, power=power)
