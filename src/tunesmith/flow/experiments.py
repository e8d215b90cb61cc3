"""Experiments on what a name answers with: begun as a new version of its deployment, looked at, ended. What is said of one is written down
and stays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import NotFound, UsageError, nearest
from tunesmith.core.experiment import AMOUNTS, Experiment, ExperimentMetric, ExperimentPlan, Verdict
from tunesmith.core.rollout import OPEN
from tunesmith.core.types import Record
from tunesmith.deploy.designs import DesignOption, Question, Traffic, named, options
from tunesmith.deploy.experiment import SUMS, UNKNOWN, WORDS, effect
from tunesmith.deploy.looking import ExperimentLook, MetricLook, SeenArms, look, sliced
from tunesmith.flow.deploying import variant_of
from tunesmith.flow.identity import references_of
from tunesmith.models.resolve import Models
from tunesmith.store.deployments import Deployments
from tunesmith.store.experiment_sums import LABELLED, OTHERS, SLICES, ArmSums
from tunesmith.store.experiments import Assignment, Experiments
from tunesmith.store.rollouts import Rollouts
from tunesmith.store.store import Store

_NONE = (0.0,) * len(SUMS)


class Enrol(Record, frozen=True):
    """Who takes part: a `share` of the users of a `layer` (None: the alias has one of its own); of pairs the share of requests that are
    copied, at most `copies_per_minute`."""

    share: float = 1.0
    layer: str | None = None
    copies_per_minute: int | None = None

    def __post_init__(self) -> None:
        if not 0.001 <= self.share <= 1:
            raise UsageError(f"a share of {self.share:g} of the users", allowed="0.001 to 1")


def begin(
    alias: str, plan: ExperimentPlan, models: Models, store: Store, enrol: Enrol = Enrol(), *, reason: str = "", by: str = ""
) -> tuple[Experiment, Deployment]:
    """Begin an experiment: from now on those who are enrolled are drawn between the plan's two variants, each a variant that the alias has
    or a word for a model. Returns the experiment, whose plan has the variants' names, and the version that assigns.

    Raises NotFound for what is not there; UsageError for an alias that answers with others too, that is under an experiment, or whose layer
    is full.
    """
    before = Deployments(store).in_force().get(alias)
    if before is None:
        raise UsageError(f"nothing is deployed as '{alias}'", allowed="an alias that is", remedy=f"tunesmith deploy {alias} MODEL")
    _no_rollout(alias, store)
    control = _arm(alias, plan.control, before, models, store)
    treatment = _named_apart(_arm(alias, plan.treatment, before, models, store), control)
    others = [each.name for each in before.variants if each.name not in (control.name, treatment.name)]
    if others:
        raise UsageError(
            f"'{alias}' answers with {', '.join(others)} too", allowed=f"{control.name} and {treatment.name} only",
            remedy=f"tunesmith deploy promote {alias} {control.name}",
        )  # fmt: skip
    plan = replace(plan, control=control.name, treatment=treatment.name)
    _check(plan)
    experiments = Experiments(store)
    layer = enrol.layer or f"{alias}/experiments"
    split = plan.design == "split"
    assignment = Assignment(
        variants=_weighted(plan, control, treatment, enrol),
        strategy="split" if split else "shadow",
        reason=reason or f"experiment {{id}}: {treatment.name} against {control.name}",
        after=before.version,
        references=references_of([control, treatment], models, store, alias),
    )
    share = round(enrol.share, 4) if split else 1.0
    made = experiments.open(alias, plan, layer=layer, share=share, reason=reason, by=by, assigning=assignment)
    return made, Deployments(store).in_force()[alias]


def _no_rollout(alias: str, store: Store) -> None:
    """Raises UsageError for an alias under a rollout: the two would draw the same requests, and the rollout end as superseded, unasked."""
    rollout = Rollouts(store).newest(alias)
    if rollout is not None and rollout.status in OPEN:
        raise UsageError(
            f"'{alias}' is under a rollout of '{rollout.canary}', which is {rollout.status}", allowed="an alias that is under none",
            remedy=f"tunesmith deploy status {alias}, or tunesmith deploy abort {alias}",
        )  # fmt: skip


def _arm(alias: str, word: str, before: Deployment, models: Models, store: Store) -> Variant:
    there = before.variant(word)
    return there if there is not None else variant_of(alias, word, models, store, None)


def _named_apart(treatment: Variant, control: Variant) -> Variant:
    """The treatment under a name of its own. Raises UsageError where both answer alike."""
    alike = {"name": "", "weight": 1.0, "copies_per_minute": None}
    if replace(treatment, **alike) == replace(control, **alike):
        raise UsageError(f"'{treatment.name}' and '{control.name}' answer alike", allowed="two variants that differ")
    return replace(treatment, name="treatment") if treatment.name == control.name else treatment


def _weighted(plan: ExperimentPlan, control: Variant, treatment: Variant, enrol: Enrol) -> list[Variant]:
    if plan.design == "pairs":
        copied = replace(treatment, weight=round(enrol.share, 4), copies_per_minute=enrol.copies_per_minute)
        return [replace(control, weight=1.0, copies_per_minute=None), copied]
    shares = (round(1 - plan.treated, 4), round(plan.treated, 4))
    return [replace(arm, weight=share, copies_per_minute=None) for arm, share in zip((control, treatment), shares, strict=True)]


def _check(plan: ExperimentPlan) -> None:
    """Raises UsageError for what pairs cannot show."""
    if plan.design == "split":
        if plan.judge is not None:
            raise UsageError(f"the judge '{plan.judge}' and no pairs", allowed="--design pairs --judge score:NAME")
        return
    for metric in (*plan.metrics, *plan.guardrails):
        if (
            metric.kind == "event"
            or metric.name in (*(set(AMOUNTS) - {"latency", "tokens"}), "thumbs")
            or metric.name.startswith("outcome")
        ):
            raise UsageError(
                f"'{metric.name}' of a copy's answer is not known: nobody sees it", allowed="judged:NAME, score:NAME, latency, tokens",
                remedy="--metric judged:judge and tunesmith ab score, or --design split",
            )  # fmt: skip
    if plan.covariate is not None:
        raise UsageError(f"the covariate '{plan.covariate}' and pairs, which are of the same prompt", allowed="--design split")


class ExperimentReport(Record, frozen=True):
    """An experiment as it stands: its arms' units and requests, what is seen, all that was ever said, the version that took its place
    (None: its own assigns), and how many units have requests in both arms."""

    experiment: Experiment
    seen: ExperimentLook
    requests: tuple[int, int]
    said: tuple[Verdict, ...]
    given: dict[str, tuple[float, float]]
    slices: tuple[MetricLook, ...] = ()
    replaced_by: int | None = None
    mixed: int = 0


def examine(alias: str, store: Store, *, by: str | None = None) -> ExperimentReport:
    """Look at the experiment of an alias that runs, else at its last; `by` names what its requests are told apart by. What is to be said is
    written down, of one that has ended nothing new.

    Raises NotFound for an alias that never had one.
    """
    experiments, experiment = Experiments(store), latest(alias, store)
    plan, counts = experiment.plan, experiments.units(experiment.id)
    if by is not None and by not in SLICES:
        raise UsageError(f"requests are not told apart by '{by}'", allowed=", ".join(SLICES), remedy=nearest(by, SLICES))
    (control, asked), (treatment, answered) = (counts.get(name, (0, 0)) for name in (plan.control, plan.treatment))
    seen = look(
        experiment.id, plan, (control, treatment), _seen(experiment, experiments), experiments.said(experiment.id), time.time()
    )  # fmt: skip
    if experiment.stopped is None:
        experiments.add(experiment.id, seen.fresh)
    parts = sliced(plan, _parts(experiment, experiments, by)) if by is not None and seen.whole and plan.design == "split" else []
    in_force = Deployments(store).in_force()[alias].version
    return ExperimentReport(
        experiment=experiment, seen=seen, requests=(asked, answered), said=tuple(experiments.said(experiment.id)),
        given=_given(experiment, experiments) if seen.whole else {}, slices=tuple(parts),
        mixed=experiments.mixed(experiment.id) if plan.design == "split" else 0,
        replaced_by=in_force if experiment.stopped is None and in_force != experiment.deployment else None,
    )  # fmt: skip


def look_at_experiments(store: Store) -> list[str]:
    """Look at every experiment that assigns, so that what can be said is said also when nobody asks; what was said now, for a log."""
    lines = []
    for experiment in Experiments(store).listed():
        if experiment.stopped is None and Deployments(store).in_force()[experiment.alias].version == experiment.deployment:
            said = [each for each in examine(experiment.alias, store).seen.fresh if each.verdict != WORDS[UNKNOWN]]
            lines += [f"{experiment.id} on '{experiment.alias}': {each.metric}: {each.verdict}" for each in said]
    return lines


def latest(alias: str, store: Store) -> Experiment:
    """The experiment of an alias that runs, else its last. Raises NotFound."""
    of_it = Experiments(store).of(alias)
    if not of_it:
        in_force = Deployments(store).in_force()
        remedy = nearest(alias, in_force) if alias not in in_force else f"tunesmith ab start {alias} CONTROL TREATMENT --metric NAME"
        raise NotFound(f"'{alias}' has had no experiment", remedy=remedy)
    return of_it[0]


def _seen(experiment: Experiment, experiments: Experiments) -> dict[str, SeenArms]:
    plan = experiment.plan
    if plan.design == "pairs":
        sums = [each for metric in plan.metrics for each in experiments.pair_sums(experiment, metric)]
        return {name: _arms(of_it, LABELLED, OTHERS) for name, of_it in _by_metric(sums).items()}
    metrics = {metric.name: metric for metric in (*plan.guardrails, *plan.metrics)}
    return {
        name: _arms(of_it, plan.control, plan.treatment)
        for name, of_it in _by_metric(experiments.sums(experiment, [*metrics.values()])).items()
    }


def _by_metric(sums: list[ArmSums]) -> dict[str, list[ArmSums]]:
    grouped: dict[str, list[ArmSums]] = {}
    for each in sums:
        grouped.setdefault(each.metric, []).append(each)
    return grouped


def _arms(sums: list[ArmSums], control: str, treatment: str) -> SeenArms:
    named: Mapping[str, ArmSums] = {each.variant: each for each in sums}
    first, second = (named[name].values if name in named else _NONE for name in (control, treatment))
    return SeenArms(control=first, treatment=second, unit_scale=all(each.unit_scale for each in sums))


def _parts(experiment: Experiment, experiments: Experiments, by: str) -> dict[str, SeenArms]:
    plan = experiment.plan
    sums = experiments.sums(experiment, [plan.primary], by=by)
    names = {each.slice for each in sums}
    return {name: _arms([each for each in sums if each.slice == name], plan.control, plan.treatment) for name in names}


def _given(experiment: Experiment, experiments: Experiments) -> dict[str, tuple[float, float]]:
    """Of metrics that somebody must say: the share of each arm's requests of which somebody did."""
    plan = experiment.plan
    said = [ExperimentMetric(name=metric.name, given=True) for metric in plan.metrics if metric.kind == "feedback"]
    if plan.design == "pairs" or not said:
        return {}
    shares = {}
    for name, of_it in _by_metric(experiments.sums(experiment, said)).items():
        arms = _arms(of_it, plan.control, plan.treatment)
        shares[name] = tuple(sums[2] / sums[1] if sums[1] else 0.0 for sums in (arms.control, arms.treatment))
    return {name: (first, second) for name, (first, second) in shares.items()}


class Outlook(Record, frozen=True):
    """What an experiment could decide: the traffic, each design, and the one that decides in time (None: none does)."""

    alias: str
    metric: str
    traffic: Traffic
    question: Question
    options: tuple[DesignOption, ...]
    named: DesignOption | None


def outlook(
    alias: str, metric: ExperimentMetric, question: Question, store: Store, *, window: float = 28.0, a_day: float | None = None,
    mean: float | None = None,
) -> Outlook:  # fmt: skip
    """Which design could decide the question, from the requests of the last `window` days; `a_day` (users) and `mean` (of a rate) stand for
    what the log does not know yet.

    Raises UsageError where neither the log nor these say enough.
    """
    traffic = _traffic(alias, metric, store, window, a_day, mean)
    choices = options(traffic, question, metric)
    return Outlook(
        alias=alias, metric=metric.name, traffic=traffic, question=question, options=tuple(choices), named=named(choices, question)
    )  # fmt: skip


def _traffic(alias: str, metric: ExperimentMetric, store: Store, window: float, a_day: float | None, mean: float | None) -> Traffic:
    if a_day is not None and not 0 < a_day < 1e9:
        raise UsageError(f"{a_day:g} users a day", allowed="more than 0")
    if mean is not None and not 0 < mean < 1:
        raise UsageError(f"a mean of {mean:g}", allowed="a rate between 0 and 1")
    if not 0 < window < 10_000:
        raise UsageError(f"a window of {window:g} days", allowed="more than 0")
    of_all, first = Experiments(store).traffic(alias, metric, time.time() - window * 86_400)
    known = of_all.values if of_all is not None else _NONE
    days = min(window, max(1.0, (time.time() - first) / 86_400)) if first is not None else window
    missing = [word for word, given in (("--per-day", a_day), ("--mean", mean)) if given is None] if known[0] < _FEW else []
    if missing:
        raise UsageError(
            f"the log knows '{metric.name}' of {known[0]:.0f} users of '{alias}' in {window:g} days", allowed=f"{_FEW} or more",
            remedy=f"say what is to be expected: {' and '.join(missing)}",
        )  # fmt: skip
    assumed = tuple(word for word, given in (("users a day", a_day), ("mean", mean)) if given is not None)
    units = a_day if a_day is not None else known[0] / days
    if mean is not None:
        return Traffic(units=units, mean=mean, variance=mean * (1 - mean), assumed=assumed)
    if metric.kind == "event":
        rate = (known[-1] + 1) / (known[0] + 2)
        return Traffic(units=units, mean=known[-1] / known[0], variance=rate * (1 - rate), assumed=assumed)
    twice = effect(known, known, unit_scale=of_all is not None and of_all.unit_scale)
    return Traffic(units=units, mean=float(twice.control), variance=float(twice.se) ** 2 / 2 * known[0], assumed=assumed)


_FEW = 50  # users from whom a variance may be read


def end(alias: str, store: Store, *, promote: str | None = None, reason: str = "", by: str = "") -> tuple[Experiment, Deployment | None]:
    """End the experiment of an alias: let the variant `promote` (None: the control) answer alone. Where another version has taken the
    experiment's place meanwhile, nothing is deployed.

    Raises NotFound for an alias without one, UsageError for one that has ended and for another variant.
    """
    experiment = latest(alias, store)
    plan, name = experiment.plan, promote if promote is not None else experiment.plan.control
    if experiment.stopped is not None:
        raise UsageError(f"the experiment {experiment.id} of '{alias}' has ended: {experiment.outcome}", allowed="one that runs")
    if name not in (plan.control, plan.treatment):
        raise UsageError(f"'{name}' is no arm of {experiment.id}", allowed=f"{plan.control}, {plan.treatment}")
    before, made = Deployments(store).in_force()[alias], None
    what = f"{'promoted' if promote is not None else 'kept'} '{name}'"
    if before.version == experiment.deployment:
        arm = next(each for each in before.variants if each.name == name)
        why = f"{reason or what} (experiment {experiment.id})"
        alone = [replace(arm, weight=1.0, copies_per_minute=None)]
        made = Deployments(store).put(alias, alone, reason=why, by=by, after=before.version)
    else:
        what = f"replaced by version {before.version}"
    Experiments(store).close(experiment.id, f"{what}{f': {reason}' if reason else ''}, by {by or '(nobody named)'}")
    return Experiments(store).find(experiment.id), made


def as_tree(record: Any) -> Any:
    """A record for JSON."""
    return msgspec.to_builtins(record)
