"""Which design of an experiment can decide a question in the days that there are: from what the traffic is to users, days, and the smallest
difference that each design shows. Knows nothing about stores."""

from __future__ import annotations

from math import ceil, sqrt

from tunesmith.core.errors import UsageError
from tunesmith.core.experiment import JUDGED, ExperimentMetric
from tunesmith.core.stats.group_sequential import drift_for
from tunesmith.core.stats.records import share
from tunesmith.core.types import Record
from tunesmith.deploy.experiment import LOOKS_MOST

JUDGE_EXPLAINS = 0.54
"""The share of the variance of pairs that a judge explains who errs on 6.5 % of the answers (kappa .85), one pair of five telling."""


class Traffic(Record, frozen=True):
    """What comes to a name: `units` (users, else conversations, else requests) a day of which the metric is known, its mean over requests,
    and the variance of one unit's part in it; `assumed` says which of these the log did not say."""

    units: float
    mean: float
    variance: float
    assumed: tuple[str, ...] = ()


class Question(Record, frozen=True):
    """What is to be decided: a difference of `effect` (None: whatever shows) within `days`, found with the chance `power` and the error
    `alpha`. `correlation` is that of both variants' scores of the same prompt, `rated` the share of pairs that a person rates beside a
    judge (1: all pairs have the metric itself)."""

    effect: float | None = None
    days: float = 14.0
    power: float = 0.8
    alpha: float = 0.05
    correlation: float = 0.7
    rated: float = 1.0

    def __post_init__(self) -> None:
        share(self.power, "power")
        share(self.alpha, "alpha")
        if not 0 <= self.correlation < 1:
            raise UsageError(f"a correlation of {self.correlation:g}", allowed="0 to less than 1")
        if not 0 < self.rated <= 1:
            raise UsageError(f"{self.rated:g} of the pairs rated", allowed="more than 0, at most 1")
        if not 0 < self.days < 10_000:
            raise UsageError(f"{self.days:g} days", allowed="more than 0")
        if self.effect is not None and not 0 < abs(self.effect) < 1e300:
            raise UsageError(f"an effect of {self.effect:g}", allowed="a difference that is not 0, in the unit of the metric")


class DesignOption(Record, frozen=True):
    """A design: how many units and days it needs for the effect (None: none was asked for), the smallest difference that it shows in the
    days that there are, whether it can show the metric at all, and what it asks of people."""

    design: str
    needs: str
    smallest: float
    units: int | None = None
    days: float | None = None
    possible: bool = True
    words: str = ""


def options(traffic: Traffic, question: Question, metric: ExperimentMetric) -> list[DesignOption]:
    """The designs, the one that asks least of people first."""
    left = 1 - question.correlation**2
    judged = (1 - JUDGE_EXPLAINS) / question.rated + JUDGE_EXPLAINS if question.rated < 1 else 1.0
    of_answers = metric.kind == "feedback" and metric.said[0] in ("score", JUDGED)
    rated = "" if question.rated == 1 else f", a judge's of all pairs and a person's of {question.rated:.0%}"
    plans = [
        ("users drawn", "nothing more", 4.0, True, ""),
        (
            "users drawn, the baseline's score as covariate", "a score of the baseline's answer to every prompt", 4.0 * left,
            metric.kind != "event", " --covariate judged:NAME@CONTROL",
        ),
        (
            "pairs", f"scores of both answers{rated}; not what users do", 2.0 * (1 - question.correlation) * judged,
            of_answers or metric.name in ("latency", "tokens"), " --design pairs" + (" --judge judged:judge" if rated else ""),
        ),
    ]  # fmt: skip
    return [_option(traffic, question, *plan) for plan in plans]


def _option(traffic: Traffic, question: Question, design: str, needs: str, factor: float, possible: bool, words: str) -> DesignOption:
    drift, variance = drift_for(question.power, LOOKS_MOST, question.alpha), factor * traffic.variance
    smallest = drift * sqrt(variance / max(traffic.units * question.days, 1e-9))
    if question.effect is None:
        return DesignOption(design=design, needs=needs, smallest=smallest, possible=possible, words=words)
    units = max(20, ceil(drift**2 * variance / question.effect**2))
    days = units / traffic.units if traffic.units else float("inf")
    return DesignOption(design=design, needs=needs, smallest=smallest, units=units, days=days, possible=possible, words=words)


def named(choices: list[DesignOption], question: Question) -> DesignOption | None:
    """The first design that decides in the days that there are; None where no effect was asked for or none can."""
    return next((each for each in choices if each.possible and each.days is not None and each.days <= question.days), None)
