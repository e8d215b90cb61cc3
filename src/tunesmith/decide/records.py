"""What is known of an arm once it was measured, and what was decided; knows nothing about how either came to be.

Scores are such that higher is better (whoever measures turns others round) and stand in the order in which the rows were asked: an arm that
was stopped early has the scores of the first rows. Money is in US dollars, time in seconds, memory in bytes.
"""

from __future__ import annotations

from typing import Literal

from tunesmith.core.errors import ConfigError
from tunesmith.core.stats import Difference, Interval
from tunesmith.core.types import Record

ArmKind = Literal[
    "zero-shot", "prompt", "few-shot", "optimised prompt", "retrieval", "fine-tuned", "fine-tuned + retrieval", "distilled", "larger model"
]
KINDS: tuple[ArmKind, ...] = (
    "zero-shot",
    "prompt",
    "few-shot",
    "optimised prompt",
    "retrieval",
    "fine-tuned",
    "fine-tuned + retrieval",
    "distilled",
    "larger model",
)
"""From the simplest to keep running to the hardest; the order between arms whose prices are not known."""


class MeasuredArm(Record, frozen=True):
    """One arm after it was asked. None: not measured, or not known; a price that nobody knows is None, never a guess.

    `simpler_rank` orders arms by how simple they are to keep running (0: simplest). `clusters` names the group of each row (rows that are
    near-duplicates of each other), as long as `scores`. `build_usd` is paid once, `usd_per_1000` for each thousand requests.
    `private`: no request leaves the user's machines.
    """

    name: str
    kind: ArmKind
    scores: tuple[float, ...]
    clusters: tuple[str, ...] | None = None
    simpler_rank: int = 0
    build_usd: float | None = None
    usd_per_1000: float | None = None
    build_s: float | None = None
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    first_token_s: float | None = None
    memory_bytes: int | None = None
    tokens_per_request: float | None = None
    private: bool = True


class Constraints(Record, frozen=True):
    """What an arm must keep, whatever its quality. None: no limit."""

    latency_p95_s: float | None = None
    first_token_s: float | None = None
    memory_bytes: int | None = None
    build_usd: float | None = None
    usd_per_1000: float | None = None
    least_score: float | None = None
    private: bool = False

    def __post_init__(self) -> None:
        for name in ("latency_p95_s", "first_token_s", "memory_bytes", "build_usd", "usd_per_1000"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"a limit of {value}", where=f"constraints.{name}", allowed="0 or more")


Standing = Literal["chosen", "within the margin", "worse", "cannot tell", "breaks a constraint"]


class ArmStanding(Record, frozen=True):
    """What the decision says of one arm: its score, its difference to the best arm that keeps the constraints (None for that arm itself),
    and why it stands where it stands, in words. `rows` counts what it was asked. `usd` is what it costs for the user's number of requests,
    the building included (None: not known)."""

    name: str
    kind: ArmKind
    standing: Standing
    reason: str
    rows: int
    score: Interval | None = None
    to_best: Difference | None = None
    usd: float | None = None


class Decision(Record, frozen=True):
    """The cheapest arm that is not worse than the best by `margin` or more, among those that keep the constraints.

    `sure`: that `chosen` is within the margin of the best was shown at `level`, all comparisons together; otherwise `chosen` is the best
    guess. Cheaper arms of which the rows do not say whether they would do have the standing "cannot tell". `rows_needed` is how many rows
    would probably close what is open (None: nothing is, or no number is known to), `sentence` says what that is.
    `chosen` is None only where no arm keeps the constraints. `changes` says in words what would change the decision.
    """

    chosen: str | None
    sure: bool
    sentence: str
    best: str | None
    margin: float
    level: float
    arms: tuple[ArmStanding, ...]
    rows_needed: int | None = None
    changes: tuple[str, ...] = ()
