"""What a run's report answers beyond the numbers: where not, what broke, what next. Asks models only in the stage `regression`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tunesmith.core.counted import counted
from tunesmith.core.errors import SourceUnavailable
from tunesmith.core.stats import paired_difference, smallest_detectable
from tunesmith.core.types import digest
from tunesmith.evaluate.metrics import metric
from tunesmith.evaluate.openings import openings
from tunesmith.evaluate.prompts import as_given
from tunesmith.evaluate.regression import GENERAL, fetch_suite, forgetting, run_suite, sized
from tunesmith.evaluate.slices import Slice, slices
from tunesmith.flow.context import TUNED, ProjectContext
from tunesmith.flow.evaluation.compare import slicers
from tunesmith.flow.evaluation.report import failing
from tunesmith.flow.evaluation.results import Result, arm_evaluations, load_comparisons
from tunesmith.flow.runner import Output
from tunesmith.pages.render import render

if TYPE_CHECKING:
    from tunesmith.evaluate.compare import MetricComparison
    from tunesmith.evaluate.run import Evaluation

_SHOWN_SLICES = 10
_SIDES = 3  # slices among what was lost, the worst first


def regression(context: ProjectContext, work: Path) -> Output:
    """The stage: six general abilities of the base before and after training, `evaluate.general_rows` of each, on the same rows; writes one
    folder an evaluation, so that an interrupted stage continues. Rows longer than the base's context are left out; where the suite's
    package cannot be fetched, nothing fits or nothing is asked for, the output says so (`left_out`)."""
    if not context.project.evaluate.general_rows:
        return {"left_out": "evaluate.general_rows is 0"}
    suite = sized(GENERAL, context.project.evaluate.general_rows)
    try:
        rows = fetch_suite(suite, context.catalog.folder / "downloads")
    except SourceUnavailable as error:
        return {"left_out": str(error)}
    room, renderer = context.model.engine.context, context.model.renderer
    rows = {name: [row for row in own if len(renderer.prompt(as_given(row))) < room] for name, own in rows.items()}
    suite = replace(suite, abilities=tuple(ability for ability in suite.abilities if len(rows[ability.name]) >= 2))
    if not suite.abilities:
        return {"left_out": f"the base's context of {room} tokens holds none of the suite's rows"}
    sides = {}
    for name in ("before", "after"):  # each is loaded when it is asked: whole weights are not in memory beside the base
        model = context.model if name == "before" else context.tuned_model()

        def tell(done: int, total: int, name: str = name) -> None:
            context.progress.bar(f"regression, {name}", done, total)

        sides[name] = run_suite(model, suite, rows, work / name, tell)
    lines = forgetting(sides["before"], sides["after"])
    return {"package": f"{suite.package} {suite.version}", "abilities": msgspec.to_builtins(lines), "together": _together(**sides)}


def _together(before: dict[str, Evaluation], after: dict[str, Evaluation]) -> dict[str, Any]:
    """All abilities' rows as one comparison: what one ability's few rows cannot show."""
    pairs = [
        (x.value, y.value)
        for name, evaluation in before.items()
        for x, y in zip(evaluation.scores(evaluation.metrics[0]), after[name].scores(evaluation.metrics[0]), strict=True)
        if x.value is not None and y.value is not None
    ]
    a, b = zip(*pairs, strict=True)
    difference = paired_difference(a, b)
    return {
        "rows": len(pairs),
        "before": sum(a) / len(a),
        "after": sum(b) / len(b),
        "difference": difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "p_value": difference.p_value,
        "smallest": smallest_detectable(difference),
    }


def findings(context: ProjectContext) -> dict[str, Any]:
    """Where the tuned model is not better than the best baseline, what it forgot, what it still gets wrong and what to collect next.

    Reads finished stages only: the evaluations, `compare`, and `regression` where there is one. Plain JSON.
    """
    best = context.runner.run("compare").output["best_baseline"]
    evaluations = arm_evaluations(context, [best, TUNED])
    metrics = [metric(name) for name in context.project.evaluate.metrics]
    clusters = context.clusters(context.rows("test"))
    rows = [replace(row, group=clusters[row.id]) for row in context.questions("test")]
    table = slices(rows, metrics[:1], slicers(rows, ()), evaluations[TUNED], evaluations[best])
    tuned = Result(TUNED, [evaluations[TUNED]], rows, metrics, clusters)
    groups = failing(rows, tuned, metrics[0], context.questions("train"))
    comparison = load_comparisons(context.runner.folder("compare"))[best].metrics[0]
    looked = openings(context.store.layout.openings, digest([row.id for row in rows]))
    stage = next((stage.name for stage in context.runner.stages if stage.name == "regression"), None)
    done = context.runner.peek(stage) if stage else None
    return {
        "metric": metrics[0].name,
        "against": best,
        "answers": _answers(comparison, table, metrics[0].better, done.output if done else {}, groups),
        "gained": _gained(comparison, table, metrics[0].better, done.output if done else {}),
        "lost": _lost(comparison, table, metrics[0].better, done.output if done else {}),
        "slices": [_slice(line, metrics[0].better) for line in table[:_SHOWN_SLICES]],
        "slices_tested": sum(line.difference is not None for line in table),
        "slices_small": sum(line.difference is None for line in table),
        "regression": _regression(done.output) if done else None,
        "failures": groups,
        "failed": sum(group["rows"] for group in groups),
        "openings": [{"who": opening.who, "why": opening.why, "time": opening.time} for opening in looked],
    }


def _gained(comparison: MetricComparison, table: list[Slice], better: str, broke: Output) -> list[str]:
    """What the tuned model does better, a line each, the main metric first."""
    up = -1 if better == "lower" else 1
    lines = [_moved(comparison)] if comparison.difference is not None and up * comparison.difference.estimate > 0 else []
    lines += [f"{len(comparison.won)} held-out rows answered better"] if comparison.won else []
    better_ = [line.name for line in table if line.p_adjusted is not None and line.p_adjusted < 0.05 and not _worse(line, better)]
    lines += [f"surely better in {', '.join(better_)}"] if better_ else []
    together = broke.get("together")
    return lines + ([_general(together, "rose")] if together and together["difference"] > 0 else [])


def _lost(comparison: MetricComparison, table: list[Slice], better: str, broke: Output) -> list[str]:
    """What it does worse or may do worse, a line each; few rows are no reason to keep silent."""
    up = -1 if better == "lower" else 1
    together = broke.get("together")
    lines = [_moved(comparison)] if comparison.difference is not None and up * comparison.difference.estimate < 0 else []
    lines += [_general(together, "fell")] if together and together["difference"] < 0 else []
    lines += ["what it forgot of its general abilities was not measured"] if not together else []
    lines += [f"{len(comparison.lost)} held-out rows answered worse"] if comparison.lost else []
    fell = [line for line in table if line.a is not None and line.b is not None and up * (line.b - line.a) < 0]
    for line in sorted(fell, key=lambda line: up * ((line.b or 0.0) - (line.a or 0.0)))[:_SIDES]:
        sure = "surely" if _worse(line, better) else "few rows: not sure"
        lines.append(f"{line.dimension} {line.name}: {line.a:.3f} → {line.b:.3f} over {line.n} rows ({sure})")
    return lines


def _moved(comparison: MetricComparison) -> str:
    d = comparison.difference
    if d is None or comparison.a is None or comparison.b is None:
        return comparison.sentence
    interval = f"{d.estimate:+.3f}, {100 * d.level:.3g}% interval {d.low:+.3f} to {d.high:+.3f}"
    return f"{comparison.metric}: {comparison.a.estimate:.3f} → {comparison.b.estimate:.3f} ({interval})"


def _general(together: dict[str, Any], went: str) -> str:
    sure = "surely" if together["p_value"] < 0.05 else "not sure"
    return f"general abilities {went}: {together['before']:.3f} → {together['after']:.3f} over {together['rows']} rows ({sure})"


def _worse(line: Slice, better: str) -> bool:
    """Whether B is surely worse in the slice, after correction over all slices."""
    if line.difference is None or line.p_adjusted is None or line.p_adjusted >= 0.05:
        return False
    return (line.difference.estimate > 0) == (better == "lower")


def _slice(line: Slice, better: str) -> dict[str, Any]:
    d = line.difference
    sure = line.p_adjusted is not None and line.p_adjusted < 0.05
    fell = line.a is not None and line.b is not None and (line.b - line.a) * (-1 if better == "lower" else 1) < 0
    few = "worse, few rows" if fell else "too few rows"
    verdict = few if d is None else "worse" if _worse(line, better) else "better" if sure else "cannot tell"
    return {
        "slice": f"{line.dimension}: {line.name}",
        "rows": line.n,
        "baseline": line.a,
        "tuned": line.b,
        "difference": None if d is None else {"estimate": d.estimate, "low": d.low, "high": d.high},
        "p_adjusted": line.p_adjusted,
        "verdict": verdict,
    }


def _answers(comparison: Any, table: list[Slice], better: str, broke: Output, groups: list[dict[str, Any]]) -> dict[str, str]:
    """The six questions, a sentence each."""
    d = comparison.difference
    tested = [line for line in table if line.difference is not None]
    worse = [f"{line.dimension}: {line.name}" for line in tested if _worse(line, better)]
    unsure = sum(line.p_adjusted is None or line.p_adjusted >= 0.05 for line in tested)
    where = f"surely worse in {', '.join(worse)}" if worse else f"surely worse in none of {len(tested)} slices"
    weakest = min((line for line in tested if line.b is not None), key=lambda line: _rank(line, better), default=None)
    if weakest is not None and weakest.b is not None:
        where += f"; weakest in {weakest.dimension}: {weakest.name} ({weakest.b:.3f} over {counted(weakest.n, 'row')})"
    if unsure:
        where += f"; in {unsure} the rows are too few to tell"
    first = max(groups, key=lambda group: group["collect"], default=None)
    next_, failed = "no failures to learn from.", sum(group["rows"] for group in groups)
    if first and first["support"] is not None:
        near = f"the nearest training rows are {first['support']:.0%} alike"
        next_ = f"collect rows like “{first['name']}”: {first['rows']} of {failed} failures; {near}."
    sure = comparison.sentence
    if d:
        seen = f"these rows show a difference from {comparison.smallest_detectable:.3f} on (80 % power)"
        sure = f"{100 * d.level:.3g}% interval {d.low:+.3f} to {d.high:+.3f}, p = {comparison.p_adjusted:.2g}; {seen}."
    return {
        "better": f"{comparison.verdict}.",
        "by how much": f"{d.estimate:+.3f} on {comparison.metric}." if d else "cannot be said.",
        "sure": sure,
        "where not": f"{where}.",
        "what broke": _broke(broke),
        "what next": next_,
    }


def _rank(line: Slice, better: str) -> float:
    value = line.b if line.b is not None else 0.0
    return -value if better == "lower" else value


def _broke(output: Output) -> str:
    if not output:
        return "not measured."
    if "left_out" in output:
        return f"not measured: {output['left_out']}"
    lost = [line["ability"] for line in output["abilities"] if line.get("lost")]
    all_ = output["together"]
    seen = f"{all_['before']:.3f} before, {all_['after']:.3f} after ({all_['low']:+.3f} to {all_['high']:+.3f}, {all_['rows']} rows)"
    if lost:
        return f"surely lost: {', '.join(lost)}; all abilities together {seen}."
    if all_["difference"] < 0 and all_["p_value"] < 0.05:
        return f"general abilities together fell: {seen}; no single one surely."
    return f"no ability surely lost; together {seen}; a loss under {all_['smallest']:.2f} would not be seen."


def _regression(output: Output) -> dict[str, Any]:
    if "left_out" in output:
        return dict(output)
    rows = [
        (ability["ability"], ability["difference"]["estimate"], ability["difference"]["low"], ability["difference"]["high"])
        for ability in output["abilities"]
    ]
    rows.append(("all together", output["together"]["difference"], output["together"]["low"], output["together"]["high"]))
    return {**output, "differences": rows}


def findings_html(numbers: dict[str, Any]) -> str:
    """The findings as the part of a report that holds them; everything that comes from data is escaped."""
    return render("evaluation_findings", f=numbers)
