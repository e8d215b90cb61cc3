"""A comparison of two variants on the requests that come: what was asked and said of it. Knows nothing about how it is reckoned."""

from __future__ import annotations

from typing import Any, Literal

from tunesmith.core.errors import UsageError, nearest
from tunesmith.core.types import Record

Better = Literal["higher", "lower"]
Design = Literal["split", "pairs"]
# What the log of requests itself says of an answer. An event counts once a user and is compared exactly; the others are means.
EVENTS = {
    "errors": "requests that failed on our side, or that another variant answered",
    "fallbacks": "requests that another variant answered",
    "cut": "answers that ended at their limit of tokens",
}
AMOUNTS = {
    "latency": "seconds until the last token",
    "first_token": "seconds until the first token",
    "tokens": "tokens of the answer",
    "cost": "US dollars, of requests whose price is known",
}
# What people or judges said of it (`tunesmith feedback`, POST /v1/feedback), with a name where it has one: score:helpful; and what
# `tunesmith monitor quality` scored of a sample of the answers, with the name of its metric: quality:exact_match; and what `tunesmith ab
# score` did: judged:judge.
JUDGED = "judged"
SAID = ("thumbs", "score", "outcome", "quality", JUDGED)
DEFAULT_TOLERANCE = 1.25
DEFAULT_GUARDRAILS = ("errors", "fallbacks", "latency")
COVARIATES = ("earlier", "prompt_tokens")
_SYNTAX = "NAME[,lower|higher][,missing=NUMBER]"


class ExperimentMetric(Record, frozen=True):
    """What is compared: a word of the log (`errors`, `latency` …) or of feedback (`thumbs`, `score:NAME`, `outcome:NAME`).

    `missing` is what a request counts as of which nobody said anything (None: it is not counted); `tolerance` how many times the control's
    value the treatment's may be before a guardrail calls it a harm. `given`: not what was said, but whether anything was.
    """

    name: str
    better: Better = "higher"
    missing: float | None = None
    tolerance: float = 1.0
    given: bool = False

    @property
    def kind(self) -> Literal["event", "amount", "feedback"]:
        """How it is read from the log."""
        return "event" if self.name in EVENTS else "amount" if self.name in AMOUNTS else "feedback"

    @property
    def said(self) -> tuple[str, str]:
        """(kind, name) of the feedback that it is."""
        kind, _, name = self.name.partition(":")
        return kind, name


def metric_of(word: str) -> ExperimentMetric:
    """The metric that a word of the command line means. Raises UsageError with what there is."""
    name, *settings = word.split(",")
    if name not in EVENTS and name not in AMOUNTS and name.partition(":")[0] not in SAID:
        known = [*EVENTS, *AMOUNTS, *SAID]
        raise UsageError(
            f"no metric '{name}'",
            allowed=f"{', '.join(known)}; score:NAME, outcome:NAME, quality:METRIC, judged:NAME",
            remedy=nearest(name, known),
        )
    if name in ("quality", JUDGED):
        raise UsageError(f"'{name}' of which metric is not said", allowed="quality:METRIC of monitor quality, judged:NAME of ab score")
    values: dict[str, Any] = {"better": "higher" if name.partition(":")[0] in SAID else "lower"}
    for setting in settings:
        if setting in ("lower", "higher"):
            values["better"] = setting
        elif setting.startswith("missing="):
            values["missing"] = _number(setting.removeprefix("missing="), word)
        else:
            raise UsageError(f"'{setting}' in the metric '{word}'", allowed=_SYNTAX)
    if "missing" in values and name.partition(":")[0] not in SAID:
        raise UsageError(f"'{name}' is known of every request", where="missing", allowed=f"missing=NUMBER with {', '.join(SAID)}")
    return ExperimentMetric(name=name, **values)


def guardrail_of(word: str) -> ExperimentMetric:
    """The guardrail that `NAME=TIMES` means: how many times the control's value is tolerated. Raises UsageError."""
    name, given, times = word.partition("=")
    metric = metric_of(name)
    tolerance = _number(times, word) if given else DEFAULT_TOLERANCE
    if tolerance <= 0 or (metric.better == "higher" and tolerance > 1) or (metric.better == "lower" and tolerance < 1):
        allowed = "a factor of 1 or more" if metric.better == "lower" else "a factor from 0 to 1"
        raise UsageError(f"the guardrail '{word}' tolerates {tolerance:g} times the control's value", allowed=allowed)
    return ExperimentMetric(name=metric.name, better=metric.better, missing=metric.missing, tolerance=tolerance)


def _number(text: str, word: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not -1e300 < number < 1e300:
        raise UsageError(f"'{text}' in '{word}' is no number", allowed="a finite number")
    return number


class ExperimentPlan(Record, frozen=True):
    """What was asked when an experiment began. `control` and `treatment` are variants of the alias.

    `metrics` share the error `alpha` (Holm); the first is the primary one. With a `horizon` (users of both arms together) it is looked
    at by group-sequential bounds on the way there, without one by intervals that hold at all times, as the others are. A difference
    within ±`margin` is called equivalent (None: nothing is). `covariate` is what was known before the draw: `earlier`, `prompt_tokens`, or
    `score:NAME` of the baseline's answer to the same prompt. `treated` is the treatment's share of those who are enrolled. With the
    `design` `pairs` the treatment answers copies, and `judge` names scores of all pairs where the metric's are of some.
    """

    control: str
    treatment: str
    metrics: tuple[ExperimentMetric, ...]
    guardrails: tuple[ExperimentMetric, ...] = ()
    covariate: str | None = None
    horizon: int | None = None
    margin: float | None = None
    alpha: float = 0.05
    treated: float = 0.5
    design: Design = "split"
    judge: str | None = None

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.metrics]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"the metrics {names}", allowed="at least one; distinct ones")
        if not 0.01 <= self.treated <= 0.99:
            raise UsageError(f"a share of {self.treated:g} for '{self.treatment}'", allowed="0.01 to 0.99")
        if self.horizon is not None and self.horizon < 20:
            raise UsageError(f"a horizon of {self.horizon}", allowed="20 users or more", remedy="tunesmith ab plan says how many")
        if self.margin is not None and not 0 < self.margin < 1e300:
            raise UsageError(f"a margin of {self.margin:g}", allowed="more than 0, in the unit of the primary metric")
        if not 0 < self.alpha <= 0.5:
            raise UsageError(f"an error of {self.alpha:g}", allowed="more than 0, at most 0.5")
        if self.covariate is not None and self.covariate not in COVARIATES and not self.asks_baseline:
            raise UsageError(
                f"no covariate '{self.covariate}'", allowed=f"{', '.join(COVARIATES)}, score:NAME@CONTROL, judged:NAME@CONTROL"
            )

    @property
    def asks_baseline(self) -> bool:
        """Whether the control answers copies of what is drawn, for a score as covariate."""
        return self.design == "split" and (self.covariate or "").partition(":")[0] in ("score", JUDGED)

    @property
    def primary(self) -> ExperimentMetric:
        """The metric that the experiment is about."""
        return self.metrics[0]


class Experiment(Record, frozen=True):
    """An experiment of an alias: its plan, its part of a layer, the `deployment` (version) that assigns, and how it ended."""

    id: str
    alias: str
    created: float
    layer: str
    low: float
    high: float
    plan: ExperimentPlan
    reason: str = ""
    by: str = ""
    deployment: int | None = None
    stopped: float | None = None
    outcome: str = ""


class Verdict(Record, frozen=True):
    """What was said of a metric at a time; never changed, a later one stands beside it. `look` has the numbers that it was said from."""

    experiment: str
    created: float
    metric: str
    verdict: str
    look: dict[str, Any] = {}
