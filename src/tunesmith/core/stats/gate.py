"""Is a new model worse than tolerated? Three answers from one interval; knows nothing about deployments or exit codes.

An unchanged model fails "any drop" about every second time. A gate on the interval blocks it less than 1 time in 100, at the price of
saying "cannot tell" when the rows were too few: `sample_size_non_inferiority` plans them.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

from tunesmith.core.errors import UsageError
from tunesmith.core.stats.distributions import z_for, z_quantile
from tunesmith.core.stats.records import Difference
from tunesmith.core.types import Record


class Gate(Record, frozen=True):
    """The decision, and how many rows would make a truly equal model pass 4 times in 5."""

    decision: Literal["pass", "block", "cannot tell"]
    margin: float
    sentence: str
    rows_needed: int


def non_inferiority(difference: Difference, margin: float) -> Gate:
    """pass: the whole interval lies above −margin; block: all of it below; cannot tell: −margin is inside.

    `difference` is the candidate (B) minus the current model (A), higher is better. Raises UsageError for a margin that is not positive.
    """
    if not margin > 0:
        raise UsageError(f"a margin of {margin}", allowed="more than 0, in the metric's unit")
    seen = f"{difference.estimate:+.4g} ({difference.level:.0%} interval {difference.low:+.4g} to {difference.high:+.4g})"
    needed = ceil(difference.n * ((z_for(difference.level) + z_quantile(0.8)) * difference.se / margin) ** 2)
    decision: Literal["pass", "block", "cannot tell"]
    if difference.low > -margin:
        decision, sentence = "pass", f"The difference is {seen}: a loss of {margin:g} or more is ruled out."
    elif difference.high < -margin:
        decision, sentence = "block", f"The difference is {seen}: the loss is more than {margin:g}."
    else:
        decision = "cannot tell"
        sentence = f"The difference is {seen}: a loss of {margin:g} is neither shown nor ruled out; plan about {needed} rows."
    return Gate(decision=decision, margin=margin, sentence=sentence, rows_needed=needed)
