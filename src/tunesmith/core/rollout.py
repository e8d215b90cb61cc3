"""A rollout: how a new model takes over from the one before by steps, and where it stands; knows nothing about how it is decided.

The section `deploy.rollout` of tunesmith.yaml, the options of `tunesmith deploy canary` and the row of the store are the same record.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

import msgspec

from tunesmith.core.deployment import Variant
from tunesmith.core.errors import ConfigError, nearest
from tunesmith.core.stats.excess import Stakes
from tunesmith.core.types import Record

RolloutStatus = Literal["waiting", "running", "paused", "promoted", "rolled_back", "aborted", "superseded"]
OPEN: tuple[RolloutStatus, ...] = ("waiting", "running", "paused")
# (requests of the canary, bad ones of these, requests of the others, bad ones of these)
Counts = tuple[float, float, float, float]
NO_COUNTS: Counts = (0.0, 0.0, 0.0, 0.0)
SHARES = ("errors", "malformed", "refusals")
"""Guardrails on the share of bad requests; the margin is how much larger it may become."""
QUANTILES = ("latency", "first_token", "cost", "tokens")
"""Guardrails on a quantile (`latency_p95`); the margin is by which part of it the canary may be above the others."""
RATINGS = ("thumbs", "score", "outcome", "quality")
"""Guardrails on how answers were rated, from 0 to 1: by feedback (`thumbs`, `score:NAME`, `outcome:NAME`), or by the metric or judge that
scores a sample of them (`quality:METRIC`); the margin is how much lower the mean may become."""
_GUARDRAILS = {"errors": 0.01, "latency_p95": 0.2, "malformed": 0.02}
_QUANTILE = re.compile(rf"({'|'.join(QUANTILES)})_p(\d\d)")
_RATED = "thumbs, score:NAME, outcome:NAME, quality:METRIC"
_ALLOWED = f"{', '.join(SHARES)}, {_RATED}, or {', '.join(QUANTILES)} with _p50 to _p99, such as latency_p95"


def quantile_of(name: str) -> tuple[str, float] | None:
    """(what is measured, which quantile) of a guardrail on a quantile; None for one on a share."""
    match = _QUANTILE.fullmatch(name)
    return None if match is None else (match[1], int(match[2]) / 100)


def rating_of(name: str) -> tuple[str, str] | None:
    """(kind, name) of a guardrail on ratings; None for another one."""
    kind, _, rated = name.partition(":")
    return (kind, rated) if kind in RATINGS and (bool(rated) or kind == "thumbs") else None


class RolloutPlan(Record, frozen=True):
    """How a canary grows. It answers the share `steps[0]` of the requests, and the next one after at least `step_s` seconds and
    `step_requests` requests of its own, once every guardrail shows that all requests together are not worse by its margin at the next
    share; at 1 it answers alone. A last step below 1 waits there for a person.

    `guardrails` are names with margins. A canary that is worse by more than the margin is taken back; one that is not is taken back with
    a probability of at most `alpha`, however often is looked (each `look_s` seconds). `needs_approval`: a person starts it. `gate` is what
    the gate of the run that made the model must have said.
    """

    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5, 1.0)
    step_s: float = 600.0
    step_requests: int = 50
    guardrails: dict[str, float] = msgspec.field(default_factory=lambda: dict(_GUARDRAILS))
    alpha: float = 0.01
    look_s: float = 5.0
    needs_approval: bool = False
    gate: Literal["pass", "any"] = "pass"

    def __post_init__(self) -> None:
        grows = all(a < b for a, b in pairwise(self.steps))
        if not (grows and self.steps and 0 < self.steps[0] < 1 and self.steps[-1] <= 1):
            shown = ", ".join(f"{share:g}" for share in self.steps) or "none"
            allowed = "shares that grow, the first above 0 and below 100%, the last at most 100%"
            raise ConfigError(f"the steps are {shown}", where="deploy.rollout.steps", allowed=allowed)
        for name, least in (("step_s", 0.0), ("look_s", 0.05)):
            if not least <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"'{name}' is {getattr(self, name):g}", where=f"deploy.rollout.{name}", allowed=f"{least:g} seconds or more"
                )
        if self.step_requests < 1:
            raise ConfigError(f"'step_requests' is {self.step_requests}", where="deploy.rollout.step_requests", allowed="1 or more")
        if not 0 < self.alpha <= 0.2:
            raise ConfigError(f"'alpha' is {self.alpha:g}", where="deploy.rollout.alpha", allowed="above 0, at most 0.2")
        check_guardrails(self.guardrails.items())


def check_guardrails(guardrails: Iterable[tuple[str, float]]) -> None:
    """Raises ConfigError for a guardrail that nobody wrote, and for a margin that it cannot have."""
    given = dict(guardrails)
    if not given:
        raise ConfigError("no guardrail", where="deploy.rollout.guardrails", allowed=_ALLOWED)
    for name, margin in given.items():
        where = f"deploy.rollout.guardrails.{name}"
        quantile = quantile_of(name)
        if quantile is None and name not in SHARES and rating_of(name) is None:
            known = [*SHARES, *RATINGS, *(f"{each}_p95" for each in QUANTILES)]
            raise ConfigError(f"no guardrail '{name}'", where=where, allowed=_ALLOWED, remedy=nearest(name, known))
        if quantile is not None and not quantile[1] >= 0.5:
            raise ConfigError(f"the quantile of '{name}'", where=where, allowed="_p50 to _p99")
        if not (0 < margin < (1 if quantile is None else math.inf)):
            allowed = "more than 0 and less than 1" if quantile is None else "more than 0 (0.2: a fifth more)"
            raise ConfigError(f"a margin of {margin:g}", where=where, allowed=allowed)


class AnswerForm(Record, frozen=True):
    """What the answers of an alias look like: text, one of some labels, or a JSON object with at least some keys."""

    kind: Literal["text", "labels", "json"] = "text"
    labels: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


class GuardrailState(Record, frozen=True):
    """What was seen of one guardrail: all counts, those that wait for their other side and the stake `owed` with them, the stakes against
    "the canary is not worse by more than the margin", and for each later step those against "it would be worse by the margin there".
    `peak` is the largest that the first one's logarithm has been."""

    harm: Stakes = Stakes()
    fine: tuple[Stakes, ...] = ()
    seen: Counts = NO_COUNTS
    carried: Counts = NO_COUNTS
    owed: float = 0.0
    peak: float = 0.0
    begun: bool = False


class RolloutState(Record, frozen=True):
    """What is counted so far: requests that ended until `cut` (seconds of the epoch). `limits` are the others' quantiles as they were last
    seen, `form` what their answers look like (None: too few were seen); `restarts` counts the times at which stake was put in anew, by the
    clock and by steps; `requests` are the canary's, in all and since the step began."""

    started: float
    cut: float
    guardrails: dict[str, GuardrailState] = {}
    limits: dict[str, float] = {}
    form: AnswerForm | None = None
    restarts: tuple[int, int] = (0, 0)
    requests: int = 0
    step_requests: int = 0


class Rollout(Record, frozen=True):
    """A rollout of `canary` among the `variants` of an alias. `before` is the version that it goes back to, `first` and `version` the first
    and the newest version of its own; `turn` counts its changes, so that of several servers one makes each. `step` counts from 0 and began
    at `step_since`. `outcome` says why it stands where it stands."""

    id: int
    alias: str
    created: float
    status: RolloutStatus
    plan: RolloutPlan
    canary: str
    variants: tuple[Variant, ...]
    before: int
    first: int = 0
    version: int = 0
    step: int = 0
    step_since: float = 0.0
    state: RolloutState | None = None
    turn: int = 0
    looked: float = 0.0
    reason: str = ""
    by: str = ""
    outcome: str = ""
    ended: float | None = None
