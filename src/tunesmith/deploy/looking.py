"""One look at an experiment: whether it is whole, each metric's effect with its interval, and what may be said by now. Pure: what was said
before is handed in, what is new is handed back. Knows nothing about stores.

All metrics of a plan share its error (Holm): those of which nothing has been said yet are each tested with the rest of it, so what is said
of one leaves more for the others. Each metric's test holds at all looks together, so what was said stays said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tunesmith.core.experiment import ExperimentMetric, ExperimentPlan, Verdict
from tunesmith.core.stats.records import Floats
from tunesmith.core.types import Record
from tunesmith.deploy import experiment as reckon
from tunesmith.deploy.experiment import BETTER, UNKNOWN, WORDS, WORSE, Effect

Role = Literal["primary", "metric", "guardrail", "slice"]
RATIO, COVARIATE = "sample ratio", "covariate"
HARM, NO_HARM, MISMATCH = "harm", "no harm", "mismatch"
_CHECK_ALPHA = 0.01


class SeenArms(Record, frozen=True):
    """Of one metric: the sums of both arms (`deploy.experiment.SUMS`), and whether every value lies between 0 and 1. Of pairs: the sums of
    those that have the metric, and of the others."""

    control: tuple[float, ...]
    treatment: tuple[float, ...]
    unit_scale: bool = False


class MetricLook(Record, frozen=True):
    """What is seen of a metric: `estimate` is treatment minus control (of events: their ratio), with the interval (`low`, `high`) of
    `method` at `level`; `always_low` and `always_high` are those that hold at all times. None: too few were seen; a ratio has none where no
    user of the control had the event, and no end above where the interval has none."""

    metric: str
    role: Role
    verdict: str
    control: float | None = None
    treatment: float | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    always_low: float | None = None
    always_high: float | None = None
    level: float = 0.95
    method: str = ""
    units: int = 0
    variance_left: float = 1.0
    time: float | None = None
    information: float | None = None
    since: float | None = None


class ExperimentLook(Record, frozen=True):
    """`whole`: units were drawn as they should be; where not, nothing else is told. `fresh` are the verdicts that are new."""

    units: tuple[int, int]
    ratio_evidence: float
    whole: bool
    fault: str = ""
    metrics: tuple[MetricLook, ...] = ()
    fresh: tuple[Verdict, ...] = ()


def look(
    experiment: str, plan: ExperimentPlan, units: tuple[int, int], seen: Mapping[str, SeenArms], said: Sequence[Verdict], now: float
) -> ExperimentLook:
    """Look at an experiment whose arms have so many units; `seen` by the names of its metrics and guardrails."""
    evidence = float(reckon.ratio_mismatch(*units, plan.treated)) if plan.design == "split" else 0.0
    fault = _fault(plan, evidence, seen, said)
    if fault:
        known = any(each.metric == fault for each in said)
        numbers = {"units": list(units), "evidence": evidence}
        told = [] if known else [Verdict(experiment=experiment, created=now, metric=fault, verdict=MISMATCH, look=numbers)]
        return ExperimentLook(units=units, ratio_evidence=evidence, whole=False, fault=fault, fresh=tuple(told))
    metrics = [*_judged(plan, sum(units), seen, said), *_guarded(plan, seen, said)]
    fresh = tuple(_verdict(experiment, now, each) for each in metrics if each.since is None and _worth_writing(each))
    return ExperimentLook(units=units, ratio_evidence=evidence, whole=True, metrics=tuple(metrics), fresh=fresh)


def _fault(plan: ExperimentPlan, evidence: float, seen: Mapping[str, SeenArms], said: Sequence[Verdict]) -> str:
    """What makes the arms no fair comparison: found once, it stays."""
    for each in said:
        if each.verdict == MISMATCH:
            return each.metric
    if plan.design == "split" and reckon.mismatched(evidence):
        return RATIO
    if plan.covariate is None or plan.design != "split" or plan.primary.name not in seen:
        return ""
    arms = seen[plan.primary.name]
    low, high = reckon.anytime(reckon.effect(_of_covariate(arms.control), _of_covariate(arms.treatment)), _CHECK_ALPHA)
    return COVARIATE if low > 0 or high < 0 else ""


def _of_covariate(sums: Sequence[float]) -> Floats:
    """The sums with the covariate in the place of the values."""
    units, m, _, x, mm, _, mx, _, _, xx, _ = sums
    return np.array([units, m, x, 0.0, mm, mx, 0.0, xx, 0.0, 0.0, units])


def _judged(plan: ExperimentPlan, units: int, seen: Mapping[str, SeenArms], said: Sequence[Verdict]) -> list[MetricLook]:
    """Every metric, with what is said of it by now."""
    before = {metric.name: _said_of(metric.name, said) for metric in plan.metrics}
    looks: dict[str, MetricLook] = {}
    undecided = [metric for metric in plan.metrics if before[metric.name] is None and metric.name in seen]
    counted = _counted(plan, units, seen, said)
    while undecided:
        alpha = plan.alpha / len(undecided)
        tried = {metric.name: _tried(plan, metric, seen[metric.name], alpha, counted) for metric in undecided}
        looks |= tried
        decided = [metric for metric in undecided if tried[metric.name].verdict != WORDS[UNKNOWN]]
        if not decided:
            break
        undecided = [metric for metric in undecided if metric not in decided]
    for metric in plan.metrics:
        earlier = before[metric.name]
        if earlier is not None and metric.name in seen:
            now = _tried(plan, metric, seen[metric.name], plan.alpha / len(plan.metrics), counted)
            turned = {now.verdict, earlier.verdict} == {WORDS[BETTER], WORDS[WORSE]}  # said beside what was said, not in its place
            looks[metric.name] = now if turned else _standing(now, earlier)
    return [looks[metric.name] for metric in plan.metrics if metric.name in looks]


class _Counted(Record, frozen=True):
    """The counted looks of the primary metric: `new` says that the last of them is this one."""

    times: tuple[float, ...] = ()
    information: tuple[float, ...] = ()
    new: bool = False


def _counted(plan: ExperimentPlan, units: int, seen: Mapping[str, SeenArms], said: Sequence[Verdict]) -> _Counted:
    past = [each.look for each in said if each.metric == plan.primary.name and each.look.get("time")]
    times = tuple(float(each["time"]) for each in past)
    information = tuple(float(each["information"]) for each in past)
    if plan.horizon is None or plan.primary.name not in seen or plan.primary.kind == "event":
        return _Counted()
    effect = _effect(plan, plan.primary, seen[plan.primary.name])
    due = reckon.look_due(units, plan.horizon, times)
    if due is None or not np.isfinite(effect.se):
        return _Counted(times=times, information=information)
    more = max(float(1 / effect.se**2), information[-1] * 1.001 if information else 0.0)
    return _Counted(times=(*times, due), information=(*information, more), new=True)


def _effect(plan: ExperimentPlan, metric: ExperimentMetric, arms: SeenArms, ratio: float = 1.0) -> Effect:
    if plan.design == "pairs":
        return reckon.paired(arms.control, arms.treatment)
    adjusted = plan.covariate is not None
    return reckon.effect(arms.control, arms.treatment, ratio=ratio, unit_scale=arms.unit_scale, adjusted=adjusted and ratio == 1.0)


def _tried(plan: ExperimentPlan, metric: ExperimentMetric, arms: SeenArms, alpha: float, counted: _Counted) -> MetricLook:
    """What this look says of a metric with an error of `alpha` for all looks together."""
    primary = metric is plan.primary
    role: Role = "primary" if primary else "metric"
    if metric.kind == "event":
        return _event(plan, metric, arms, alpha, role)
    effect = _effect(plan, metric, arms)
    usual = reckon.TUNING if plan.design == "split" else reckon.PAIRS_TUNING
    tuning = plan.horizon / 2 if plan.horizon is not None else usual
    always = reckon.anytime(effect, alpha, tuning)
    at: dict[str, Any] = {}
    common: dict[str, Any] = {
        "metric": metric.name, "role": role, "control": _finite(effect.control), "treatment": _finite(effect.treatment),
        "level": 1 - alpha, "estimate": _finite(effect.estimate), "always_low": _finite(always[0]), "always_high": _finite(always[1]),
        "units": int(effect.units), "variance_left": float(np.nan_to_num(effect.left, nan=1.0)),
    }  # fmt: skip
    if primary and plan.horizon is not None:
        if not counted.new:  # between two counted looks nothing is said
            return MetricLook(verdict=WORDS[UNKNOWN], method="group-sequential", **common)
        low, high = reckon.sequential(effect, alpha, counted.times, counted.information)
        method, at = "group-sequential", {"time": counted.times[-1], "information": counted.information[-1]}
    else:
        (low, high), method = always, "always valid"
    code = int(reckon.verdict(low, high, better=metric.better, margin=plan.margin if primary else None))
    return MetricLook(verdict=WORDS[code], method=method, low=_finite(low), high=_finite(high), **at, **common)


def _event(plan: ExperimentPlan, metric: ExperimentMetric, arms: SeenArms, alpha: float, role: Role) -> MetricLook:
    ratio, low, high = (_finite(np.float64(end)) for end in reckon.event_interval(arms.control, arms.treatment, alpha, plan.treated))
    code = int(reckon.event_verdict(arms.control, arms.treatment, alpha, plan.treated, better=metric.better))
    rates = [sums[-1] / sums[0] if sums[0] else None for sums in (arms.control, arms.treatment)]
    return MetricLook(
        metric=metric.name, role=role, verdict=WORDS[code], control=rates[0], treatment=rates[1], estimate=ratio, low=low, high=high,
        always_low=low, always_high=high, level=1 - alpha, method="exact, ratio of users with one",
        units=int(arms.control[0] + arms.treatment[0]),
    )  # fmt: skip


def _guarded(plan: ExperimentPlan, seen: Mapping[str, SeenArms], said: Sequence[Verdict]) -> list[MetricLook]:
    """Every guardrail; they share the plan's error among themselves."""
    looks = []
    for metric in plan.guardrails:
        arms = seen.get(metric.name)
        if arms is None:
            continue
        alpha = plan.alpha / len(plan.guardrails)
        one = _guard(plan, metric, arms, alpha)
        earlier = next((each for each in reversed(said) if each.metric == _guarding(metric.name)), None)
        if earlier is not None and (earlier.verdict == HARM or one.verdict == earlier.verdict):
            one = _standing(one, earlier)
        looks.append(one)
    return looks


def _guard(plan: ExperimentPlan, metric: ExperimentMetric, arms: SeenArms, alpha: float) -> MetricLook:
    name = _guarding(metric.name)
    if metric.kind == "event":
        harmed = bool(reckon.event_harm(arms.control, arms.treatment, alpha, plan.treated, metric.tolerance))
        shown = _event(plan, metric, arms, min(2 * alpha, 0.5), "guardrail")
        within = shown.high is not None and shown.high < metric.tolerance
        word = HARM if harmed else NO_HARM if within else WORDS[UNKNOWN]
        return MetricLook(**{**_fields(shown), "metric": name, "verdict": word, "level": 1 - alpha})
    effect = _effect(plan, metric, arms, metric.tolerance)
    harmed = bool(reckon.amount_harm(effect, alpha, better=metric.better))
    fine = bool(reckon.amount_harm(effect, alpha, better="higher" if metric.better == "lower" else "lower"))
    low, high = reckon.anytime(effect, min(2 * alpha, 0.5))
    return MetricLook(
        metric=name, role="guardrail", verdict=HARM if harmed else NO_HARM if fine else WORDS[UNKNOWN], control=_finite(effect.control),
        treatment=_finite(effect.treatment), estimate=_finite(effect.estimate), low=_finite(low), high=_finite(high), level=1 - alpha,
        method=f"always valid, against {metric.tolerance:g} times the control's", units=int(effect.units),
    )  # fmt: skip


def sliced(plan: ExperimentPlan, parts: Mapping[str, SeenArms]) -> list[MetricLook]:
    """The primary metric in parts of the requests, each with an interval that holds for all parts and moments together. Nothing is said of
    them: which part to look at was not planned."""
    looks = []
    for name, arms in sorted(parts.items()):
        one = _tried(ExperimentPlan(**{**_fields(plan), "horizon": None}), plan.primary, arms, plan.alpha / len(parts), _Counted())
        looks.append(MetricLook(**{**_fields(one), "metric": f"{plan.primary.name} · {name}", "role": "slice", "verdict": ""}))
    return looks


def _guarding(name: str) -> str:
    """What a guardrail is called among the verdicts: the same metric may be one of the plan's, too."""
    return f"guardrail {name}"


def _said_of(name: str, said: Sequence[Verdict]) -> Verdict | None:
    """The last verdict on a metric that said something."""
    return next((each for each in reversed(said) if each.metric == name and each.verdict in WORDS[BETTER:]), None)


def _standing(now: MetricLook, earlier: Verdict) -> MetricLook:
    """What is seen now, under the verdict that was said before."""
    return MetricLook(**{**_fields(now), "verdict": earlier.verdict, "since": earlier.created})


def _worth_writing(one: MetricLook) -> bool:
    """Verdicts that say something, and counted looks, which spend a part of the error whatever they say."""
    return one.verdict != WORDS[UNKNOWN] or one.time is not None


def _verdict(experiment: str, now: float, one: MetricLook) -> Verdict:
    return Verdict(experiment=experiment, created=now, metric=one.metric, verdict=one.verdict, look=_fields(one))


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def _finite(value: Floats | np.float64) -> float | None:
    return float(value) if np.isfinite(value) else None
