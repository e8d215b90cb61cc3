"""What is known of each plan that a study tries: what it varies, how far it was trained, and what was measured there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tunesmith.core.errors import UsageError
from tunesmith.core.types import Record

# waiting: asked for and not begun; running: begun; paused: looked at on a rung, may go on; pruned: shown to be worse than another there.
TrialState = Literal["waiting", "running", "paused", "pruned", "finished", "failed"]
Origin = Literal["default", "search", "earlier", "added", "cloned"]
DEFAULT = 0  # the number of the project's own plan


class Rung(Record, frozen=True):
    """How much of a training a trial has before it is looked at: a share of its tokens, or (`proxy`) all of it on a share of its rows."""

    share: float
    proxy: bool = False

    @property
    def name(self) -> str:
        """In a few letters, for tables."""
        return f"{self.share:.0%} of the rows" if self.proxy else f"{self.share:.0%}"


class RungResult(Record, frozen=True):
    """A trial on a rung. `value` is what the study goes by (None: it could not be measured), `values` every metric, with the interval of
    the first; `loss` is the validation loss. `tokens` were trained and `seconds` spent by this trial up to here. `place` is the folder of
    the evaluation, in the store's folder of studies; empty where only the loss was looked at."""

    rung: int
    value: float | None
    values: dict[str, float | None] = {}
    low: float | None = None
    high: float | None = None
    loss: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    place: str = ""


class Trial(Record, frozen=True):
    """One plan of a study: the keys that it varies, and what was seen of it. `note` says why it failed or was pruned."""

    number: int
    params: dict[str, Any]
    state: TrialState
    origin: Origin = "search"
    looks: tuple[RungResult, ...] = ()
    note: str = ""

    @property
    def last(self) -> RungResult | None:
        """The furthest look."""
        return self.looks[-1] if self.looks else None

    @property
    def value(self) -> float | None:
        """What was measured last."""
        return self.looks[-1].value if self.looks else None

    @property
    def tokens(self) -> int:
        """Tokens that were trained for it."""
        return self.looks[-1].tokens if self.looks else 0

    @property
    def seconds(self) -> float:
        """Seconds of training and answering."""
        return self.looks[-1].seconds if self.looks else 0.0


class Repeat(Record, frozen=True):
    """A finalist, or the default, trained whole under a fresh seed. `place` is the folder of its evaluation, in that of the studies."""

    trial: int
    seed: int
    value: float | None
    tokens: int
    seconds: float
    place: str


def ranked(trials: Sequence[Trial], *, higher: bool) -> list[Trial]:
    """Trials that have a value, the best first; of equal ones the earlier."""
    sign = -1 if higher else 1
    return sorted((trial for trial in trials if trial.value is not None), key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def find(trials: Sequence[Trial], number: int) -> Trial:
    """The trial of that number. Raises UsageError."""
    for trial in trials:
        if trial.number == number:
            return trial
    raise UsageError(f"no trial {number}", allowed=f"0 to {len(trials) - 1}" if trials else "none yet")


def front(trials: Sequence[Trial], *, higher: bool) -> list[int]:
    """The finished trials that no other beats in both quality and trained tokens (Pareto), the cheapest first."""
    sign, best, numbers = 1 if higher else -1, float("-inf"), []
    known = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    for trial in sorted(known, key=lambda trial: (trial.looks[-1].tokens, -sign * (trial.value or 0.0), trial.number)):
        if sign * (trial.value or 0.0) > best:
            best = sign * (trial.value or 0.0)
            numbers.append(trial.number)
    return numbers
