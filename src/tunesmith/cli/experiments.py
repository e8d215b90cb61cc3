"""Commands about experiments: what could decide a question in time, begin one, look at it, end it."""

from __future__ import annotations

import time
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.deploying import Alias, By, NoParity, Reason, opened, who
from tunesmith.cli.shared import Json, emit, file_option

if TYPE_CHECKING:
    from tunesmith.deploy.looking import MetricLook
    from tunesmith.flow.evaluation.run import Bench
    from tunesmith.flow.experiments import ExperimentReport, Outlook

ab_app = typer.Typer(help="Compare two variants of a name on the requests that come.", no_args_is_help=True, rich_markup_mode=None)
_Metrics = Annotated[
    list[str],
    typer.Option(
        "--metric",
        help="errors, fallbacks, cut, latency, first_token, tokens, cost, thumbs, score:NAME, outcome:NAME, quality:METRIC, judged:NAME; "
        "with ,lower|higher and ,missing=NUMBER. The first is the primary one.",
    ),
]


@ab_app.command("plan")
def plan(
    alias: Alias,
    metric: Annotated[str, typer.Option(help="What is to be compared, as in ab start.")],
    effect: Annotated[float | None, typer.Option(help="The smallest difference that matters, in the unit of the metric.")] = None,
    days: Annotated[float, typer.Option(help="The days that there are.")] = 14.0,
    power: Annotated[float, typer.Option(help="The chance to find that difference.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="The chance to find one where none is.")] = 0.05,
    correlation: Annotated[float, typer.Option(help="Of both variants' scores of the same prompt.")] = 0.7,
    rated: Annotated[float, typer.Option(help="Of pairs: the share that a person rates beside a judge.")] = 1.0,
    window: Annotated[float, typer.Option(help="The days of the log that are looked at.")] = 28.0,
    per_day: Annotated[float | None, typer.Option(help="Users (else conversations) a day, in place of what the log has.")] = None,
    mean: Annotated[float | None, typer.Option(help="The rate that is expected, in place of what the log has.")] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Which design of an experiment can decide in the days that there are, from the real traffic; or that none can.

    Example: tunesmith ab plan support --metric score:helpful --effect 0.1 --days 7
    """
    from tunesmith.core.experiment import metric_of
    from tunesmith.deploy.designs import Question
    from tunesmith.flow.experiments import as_tree, outlook

    question = Question(effect=effect, days=days, power=power, alpha=alpha, correlation=correlation, rated=rated)
    with opened(config) as at:
        seen = outlook(alias, metric_of(metric), question, at.store, window=window, a_day=per_day, mean=mean)
    emit(as_tree(seen), as_json, _outlook(seen, metric))


def _outlook(seen: Outlook, metric: str) -> str:
    traffic, question = seen.traffic, seen.question
    assumed = f" (not from the log: {', '.join(traffic.assumed)})" if traffic.assumed else ""
    lines = [f"'{seen.alias}': {traffic.units:.1f} users or conversations a day with {seen.metric}, mean {traffic.mean:.4g}{assumed}"]
    for each in seen.options:
        if not each.possible:
            lines.append(f"  {each.design}: cannot show {seen.metric}; needs {each.needs}")
            continue
        needed = f"{each.units} in {each.days:.1f} days; " if each.units is not None and each.days is not None else ""
        lines.append(f"  {each.design}: {needed}shows {each.smallest:.3g} in {question.days:g} days; needs {each.needs}")
    lines.append("  both answers shown, and the user picks (interleaving): as many picks as pairs; this server shows one answer")
    if question.effect is None:
        return "\n".join([*lines, "with --effect the design is named that decides in time"])
    if seen.named is None:
        smallest = min(each.smallest for each in seen.options if each.possible)
        return "\n".join(
            [*lines, f"None decides {question.effect:g} in {question.days:g} days: the smallest that shows is {smallest:.3g}."]
        )
    command = f"tunesmith ab start {seen.alias} CONTROL TREATMENT --metric {metric} --horizon {seen.named.units}{seen.named.words}"
    return "\n".join([*lines, f"{seen.named.design}: {command}"])


@ab_app.command("start")
def start(
    alias: Alias,
    control: Annotated[str, typer.Argument(help="What answers now: a variant of the name, or a word for a model.")],
    treatment: Annotated[str, typer.Argument(help="What it is compared with: a variant, or a word for a model.")],
    metric: _Metrics,
    guardrail: Annotated[list[str] | None, typer.Option(help="NAME=TIMES: the most times the control's value that is no harm.")] = None,
    covariate: Annotated[
        str | None,
        typer.Option(
            help="What is known before the draw: earlier, prompt_tokens, or judged:NAME@CONTROL (score: too), of its answer to a copy."
        ),
    ] = None,
    horizon: Annotated[
        int | None, typer.Option(help="Users of both arms until the last look; without it the intervals hold always.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="A difference of the primary metric within ± this is called equivalent.")] = None,
    treated: Annotated[float, typer.Option(help="The treatment's share of those who take part.")] = 0.5,
    enrol: Annotated[
        float, typer.Option(help="The share of the users who take part; of pairs the share of requests that are copied.")
    ] = 1.0,
    layer: Annotated[str | None, typer.Option(help="Experiments of one layer have no user in common (default: the name's own).")] = None,
    design: Annotated[str, typer.Option(help="split: users are drawn; pairs: the treatment answers copies that no client sees.")] = "split",
    judge: Annotated[str | None, typer.Option(help="Of pairs: scores that all pairs have, where the metric is of some.")] = None,
    copies_per_minute: Annotated[int | None, typer.Option(help="Of pairs: the most requests a minute that are copied.")] = None,
    alpha: Annotated[float, typer.Option(help="The error of all verdicts together, however often one looks.")] = 0.05,
    no_parity: NoParity = None,
    reason: Reason = "",
    by: By = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Draw users between two variants from now on, as a new version of the name's deployment; clients cannot see it.

    Example: tunesmith ab start support base tuned --metric outcome:solved --horizon 4000 --reason 'the tickets of November'
    """
    from tunesmith.core.errors import UsageError
    from tunesmith.core.experiment import DEFAULT_GUARDRAILS, ExperimentPlan, guardrail_of, metric_of
    from tunesmith.flow.experiments import Enrol, as_tree, begin
    from tunesmith.flow.parity_gate import with_reason

    if design not in ("split", "pairs"):
        raise UsageError(f"no design '{design}'", allowed="split, pairs")
    words = guardrail if guardrail is not None else list(DEFAULT_GUARDRAILS) if design == "split" else []
    plan = ExperimentPlan(
        control=control, treatment=treatment, metrics=tuple(map(metric_of, metric)), guardrails=tuple(map(guardrail_of, words)),
        covariate=covariate, horizon=horizon, margin=margin, alpha=alpha, treated=treated, design=design, judge=judge,  # type: ignore[arg-type]
    )  # fmt: skip
    with opened(config) as at:
        _compare_both(alias, (control, treatment), at, no_parity)
        why, taking_part = with_reason(reason, no_parity), Enrol(enrol, layer, copies_per_minute)
        experiment, version = begin(alias, plan, at.models, at.store, taking_part, reason=why, by=who(by))
    drawn = "answers copies" if design == "pairs" else f"has {treated:.4g} of the users"
    text = f"{experiment.id}: '{experiment.plan.treatment}' {drawn}, against '{experiment.plan.control}' (version {version.version})"
    emit({"experiment": as_tree(experiment), "deployment": as_tree(version)}, as_json, f"{text}\nlook at it: tunesmith ab status {alias}")


def _compare_both(alias: str, words: tuple[str, str], at: Bench, no_parity: str | None) -> None:
    """Is each served as it was trained? Raises where not, unless a reason is given to go without."""
    from tunesmith.api.serve import temporary
    from tunesmith.flow.parity_gate import compare_first, variant_word

    for word in words:
        compare_first(variant_word(alias, word, at), at, temporary, skipped=no_parity)


@ab_app.command("status")
def status(
    alias: Alias,
    by: Annotated[str | None, typer.Option("--slice", help="The primary metric by project, endpoint or prompt (its length), too.")] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """What an experiment says by now, and since when; look as often as you like.

    Example: tunesmith ab status support --slice prompt
    """
    from tunesmith.flow.experiments import as_tree, examine

    with opened(config) as at:
        report = examine(alias, at.store, by=by)
    emit(as_tree(report), as_json, _text(report))


@ab_app.command("score")
def score(
    alias: Alias,
    judge: Annotated[str | None, typer.Option(help="A word for a model that compares both answers, in both orders.")] = None,
    metric: Annotated[str | None, typer.Option(help="A metric that rates each answer, without a reference.")] = None,
    most: Annotated[int, typer.Option(help="The most requests that are scored now.", min=1)] = 200,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Score both answers of requests that were copied: the metric judged:judge, or judged:METRIC.

    Example: tunesmith ab score support --judge qwen3-0.6b
    """
    from tunesmith.flow.experiment_scoring import score_pairs
    from tunesmith.flow.experiments import as_tree

    with opened(config) as at:
        made = score_pairs(alias, at, judge=judge, metric=metric, most=most)
    text = f"{made.fresh} scored as judged:{made.name} (and judged:{made.name}@{made.variant}), {made.missing} of them without a score"
    emit(as_tree(made), as_json, f"{text}; {made.left} wait")


@ab_app.command("list")
def listing(config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Every experiment, the newest first: those that run, and how the others ended.

    Example: tunesmith ab list
    """
    from tunesmith.flow.experiments import as_tree
    from tunesmith.store.experiments import Experiments

    with opened(config) as at:
        known = Experiments(at.store).listed()
    lines = [
        f"{each.id}  {each.alias:<16} {_when(each.created)}  {each.plan.treatment} against {each.plan.control} on "
        f"{', '.join(metric.name for metric in each.plan.metrics)}: {each.outcome or 'runs'}"
        for each in known
    ]
    emit({"experiments": as_tree(known)}, as_json, "\n".join(lines) or "no experiments")


@ab_app.command("stop")
def stop(
    alias: Alias,
    promote: Annotated[str | None, typer.Option(help="The arm that answers alone from now on.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="The control answers alone from now on.")] = False,
    reason: Reason = "",
    by: By = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """End an experiment, and let one arm answer alone; the log and the verdicts stay.

    Example: tunesmith ab stop support --promote tuned --reason 'better on solved'
    """
    from tunesmith.core.errors import UsageError
    from tunesmith.flow.experiments import as_tree, end

    if keep == (promote is not None):
        raise UsageError("what answers from now on is not said" if not keep else "--keep and --promote", allowed="--promote ARM, or --keep")
    with opened(config) as at:
        experiment, version = end(alias, at.store, promote=promote, reason=reason, by=who(by))
    then = f"'{version.variants[0].name}' answers alone (version {version.version})" if version is not None else "nothing was deployed"
    emit(
        {"experiment": as_tree(experiment), "deployment": as_tree(version)}, as_json, f"{experiment.id} ended: {experiment.outcome}\n{then}"
    )


def _text(report: ExperimentReport) -> str:
    experiment, seen, plan = report.experiment, report.seen, report.experiment.plan
    ended = f"ended {_when(experiment.stopped)}: {experiment.outcome}" if experiment.stopped is not None else "runs"
    lines = [f"{experiment.id} on '{experiment.alias}', since {_when(experiment.created)}, {ended}"]
    if report.replaced_by is not None:
        lines.append(
            f"!! version {report.replaced_by} has taken its place: nobody is drawn any more; tunesmith ab stop {experiment.alias} --keep"
        )
    for name, units, requests in zip((plan.control, plan.treatment), seen.units, report.requests, strict=True):
        lines.append(f"  {name:<16} {units} users or conversations, {requests} requests")
    if report.mixed:
        lines.append(f"  {report.mixed} of them have requests in both arms; each request counts for the arm that it was drawn for")
    if not seen.whole:
        return "\n".join([*lines, *_fault(report)])
    if plan.design == "split":
        lines.append("  the arms have the sizes that were to be drawn")
    lines += [_line(each) for each in (*seen.metrics, *report.slices)]
    lines += [f"  {name}: said of {first:.1%} and {second:.1%} of the requests" for name, (first, second) in report.given.items()]
    return "\n".join([*lines, *_next(report)])


def _fault(report: ExperimentReport) -> list[str]:
    plan, seen = report.experiment.plan, report.seen
    if seen.fault == "sample ratio":
        total = sum(seen.units) or 1
        what = f"{plan.treated:.0%} were to be drawn for '{plan.treatment}', {seen.units[1] / total:.2%} were"
        why = "requests of one arm are lost, or counted twice: look at errors before the log, at clients that repeat, at who changes users"
    else:
        what = f"'{plan.covariate}' differs between the arms, and was to be known before the draw"
        why = "it is moved by the treatment, or the draw is broken"
    return [f"!! {seen.fault} mismatch: {what}. No result is shown: {why}."]


def _line(one: MetricLook) -> str:
    head = f"  {one.metric:<24} {one.verdict:<16}"
    exact = one.method.startswith("exact")
    if one.estimate is None and not exact:
        return f"{head} too few, or too much alike, to say anything"
    counted = one.low is not None
    ends = (one.low, one.high) if counted else (one.always_low, one.always_high)
    method = one.method if counted else "always valid"
    shown, low, high = (f"{value:{'' if exact else '+'}.3g}" if value is not None else "∞" for value in (one.estimate, *ends))
    both = " → ".join(f"{value:.4g}" for value in (one.control, one.treatment) if value is not None)
    left = f", {one.variance_left:.0%} of the variance left" if one.variance_left < 0.995 else ""
    since = f"; said {_when(one.since)}" if one.since is not None else ""
    return f"{head} {both}: {shown} ({100 * one.level:.3g} %: {low} to {high}; {method}{left}{since})"


def _next(report: ExperimentReport) -> list[str]:
    plan, said = report.experiment.plan, report.said
    if plan.horizon is None or report.experiment.stopped is not None:
        return []
    units = sum(report.seen.units)
    if any(each.metric == plan.primary.name and each.verdict != "cannot tell yet" for each in said):
        return []
    if units >= plan.horizon:
        return [
            f"  the horizon of {plan.horizon} is reached, and the primary metric cannot be told: the difference is smaller than it shows"
        ]
    times = [each.look["time"] for each in said if each.metric == plan.primary.name and each.look.get("time")]
    due = min(plan.horizon, ceil((times[-1] if times else 0.0) * plan.horizon + plan.horizon / 20 - 1e-6))
    return [f"  {units} of {plan.horizon}; the next counted look at {due}"]


def _when(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
