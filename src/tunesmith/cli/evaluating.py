"""Commands that measure: eval, compare, gate, report. Words that a command does not know are keys of its records: --max-tokens 64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.shared import OVERRIDES, AsWritten, Json, emit, file_option, told
from tunesmith.core.counted import counted

if TYPE_CHECKING:
    from tunesmith.flow.evaluation.results import KeptEvaluation

DATA = Annotated[
    str | None,
    typer.Option(
        help="train, validation or test of the project, a file or folder, catalog:NAME, suite:general, promptfoo:FILE, openai-evals:FILE."
    ),
]


def register(app: typer.Typer) -> None:
    """Enter the commands."""
    app.command("eval", context_settings=OVERRIDES)(evaluate)
    app.command(context_settings=OVERRIDES)(compare)
    app.command(context_settings=OVERRIDES)(gate)
    app.command(context_settings=OVERRIDES)(report)


def evaluate(
    words: Annotated[list[str], typer.Argument(metavar="MODEL…", help="What answers; or `plan`: how many rows a question needs.")],
    data: DATA = None,
    metrics: Annotated[str | None, typer.Option(help="Names, or module:function, with commas between them.")] = None,
    price: Annotated[str | None, typer.Option(help="US dollars for a million tokens read and written: 0.15,0.60.")] = None,
    choose_on: Annotated[str | None, typer.Option("--choose-on", help="Pick the best on this data, measure only it on --data.")] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_written: AsWritten = False,
    as_json: Json = False,
) -> None:
    """Ask models every row and rate the answers, each number with its interval; what was answered is never asked again.

    A MODEL is a catalogue name, a folder, BASE+ADAPTER, a deployed alias, URL#MODEL, openai:MODEL or echo. More options: --options --judge
    --criterion --format --map --limit --max-tokens --temperature --samples --seed --instruction --shots --by --shots-from --concurrency
    --rate --sealed. `eval plan` takes --difference --margin --discordance --power --alpha --rows --design-effect.

    Example: tunesmith eval smollm2-135m my-alias --data test --metrics exact_match
    Example: tunesmith eval plan --difference 0.05 --discordance 0.2
    """
    from tunesmith.flow.evaluation.ask import Ask
    from tunesmith.flow.evaluation.options import Question, options, plan, split_words
    from tunesmith.flow.evaluation.run import bench, run_eval

    models, overrides = split_words(words)
    if models[:1] == ["plan"]:
        (question,) = options(overrides, Question)
        planned = plan(question)
        emit(planned, as_json, planned["text"])
        return
    given = {"data": data, "metrics": metrics, "price": price, "choose_on": choose_on}
    (ask,) = options(_words(given) + overrides, Ask)
    with told(as_json) as progress, bench(config, progress, concurrency=ask.concurrency, rate=ask.rate, as_written=as_written) as at:
        evaluations = run_eval(models, ask, at)
    emit({"evaluations": [_plain(evaluation) for evaluation in evaluations], "plan": at.plan}, as_json, "\n".join(_table(evaluations)))


def compare(
    words: Annotated[list[str], typer.Argument(metavar="A B", help="Two evaluations (ids, run:ARM, logs) or two models.")],
    data: DATA = None,
    slices: Annotated[str | None, typer.Option(help="label, length, cluster, meta.KEY, with commas between them.")] = None,
    judge: Annotated[str | None, typer.Option(help="A model that compares the answers, each pair in both orders.")] = None,
    human: Annotated[str | None, typer.Option(help='People\'s labels for the judge: JSONL of {"id": row, "b": 1 | 0.5 | 0}.')] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_written: AsWritten = False,
    as_json: Json = False,
) -> None:
    """Is B better than A, by how much, how sure, and where not? A1,A2,A3 are runs of one model: their noise is then part of the intervals.

    More options: --level --relevant, and those of `eval` for models still to be asked. With --data suite:general: what was forgotten.

    Example: tunesmith compare smollm2-135m my-alias --data test
    Example: tunesmith compare run:zero-shot run:tuned
    """
    from tunesmith.flow.evaluation.ask import Ask
    from tunesmith.flow.evaluation.compare import Weigh, check, compare_results, forgotten, sides
    from tunesmith.flow.evaluation.options import options, pair, split_words
    from tunesmith.flow.evaluation.run import bench

    names, overrides = split_words(words)
    given = _words({"slices": slices, "judge": judge, "human": human, "data": data})
    weigh, ask = options(given + overrides, Weigh, Ask)
    a, b = pair(names)
    with told(as_json) as progress, bench(config, progress, concurrency=ask.concurrency, rate=ask.rate, as_written=as_written) as at:
        check(weigh, at)
        if ask.data.startswith("suite:"):
            lines = forgotten(a, b, ask, at)
            emit({"abilities": [_plain(line) for line in lines]}, as_json, "\n".join(_ability(line) for line in lines))
            return
        compared = compare_results(*sides(a, b, ask, at), weigh, at)
    differ = [line for line in compared.slices if line.difference is not None and (line.p_adjusted or 0.0) < 1 - weigh.level]
    sentences = [measured.sentence for measured in compared.comparison.metrics]
    sentences += [
        f"  slice {line.dimension} = {line.name}: {line.difference.estimate:+.3g} (p = {line.p_adjusted:.2g})"
        for line in differ
        if line.difference
    ]
    tested = sum(line.difference is not None for line in compared.slices)
    sentences += [f"{len(differ)} of {tested} slices differ (corrected together).", *compared.notes]
    emit({**compared.summary(), "plan": at.plan}, as_json, "\n".join(sentences + _judged(compared.judged)))


def gate(
    words: Annotated[list[str], typer.Argument(metavar="A B", help="What is in force, and the candidate: evaluations or models.")],
    margin: Annotated[
        str | None,
        typer.Option(help="A loss of so much or more must be ruled out; with --superior, a larger gain shown. In the metric's unit."),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Metrics that decide, with commas between them (default: the first).")] = None,
    data: DATA = None,
    junit: Annotated[Path | None, typer.Option(help="Write the decision as a JUnit file.")] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_written: AsWritten = False,
    as_json: Json = False,
) -> None:
    """May B take A's place? pass exits 0; block and cannot tell exit 3. The whole interval must rule out a loss of the margin or more.

    With --superior it must show a gain of more than the margin; `--superior --margin 0` is what `run` asks unless its file says otherwise.
    More options: --level, and those of `eval`.

    Example: tunesmith gate run:zero-shot run:tuned --margin 0.02 --junit gate.xml
    Example: tunesmith gate run:zero-shot run:tuned --superior --margin 0
    """
    import msgspec

    from tunesmith.core.atomic import write_atomic
    from tunesmith.flow.evaluation.ask import Ask
    from tunesmith.flow.evaluation.compare import Weigh, compare_results, sides
    from tunesmith.flow.evaluation.compare import gate as decide
    from tunesmith.flow.evaluation.compare import junit as junit_of
    from tunesmith.flow.evaluation.options import options, pair, split_words
    from tunesmith.flow.evaluation.run import bench

    names, overrides = split_words(words)
    weigh, ask = options(_words({"margin": margin, "only": only, "data": data}) + overrides, Weigh, Ask)
    a, b = pair(names)
    with told(as_json) as progress, bench(config, progress, concurrency=ask.concurrency, rate=ask.rate, as_written=as_written) as at:
        first, second = sides(a, b, ask, at)
        comparison = compare_results(first, second, weigh).comparison
    lines = decide(comparison, {m.name: m.better for m in first.metrics}, weigh.rule, weigh.only)
    if junit is not None:
        write_atomic(junit, junit_of(lines, (a, b)))
    passed = all(line.decision == "pass" for line in lines)
    shown = {"passed": passed, "lines": [msgspec.structs.asdict(line) for line in lines], "comparison": _plain(comparison), "plan": at.plan}
    emit(shown, as_json, "\n".join(line.text for line in lines))
    if not passed:
        raise typer.Exit(3)


def report(
    words: Annotated[list[str] | None, typer.Argument(metavar="[A B…]", help="The baseline, and what is compared with it.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of report.html, report.json and report.md.")] = Path("evaluation-report"),
    config: file_option = Path("tunesmith.yaml"),
    as_written: AsWritten = False,
    as_json: Json = False,
) -> None:
    """The leaderboard of every evaluation in the store, and comparisons with rows side by side: one HTML file, JSON, Markdown.

    Right after a run, without words: its arms, the tuned model against each other one's baseline. `run` writes a report of its own, too.

    More options: --slices --level --relevant.

    Example: tunesmith report run:zero-shot run:tuned --out report
    """
    from tunesmith.flow.evaluation.compare import Weigh
    from tunesmith.flow.evaluation.options import options, split_words
    from tunesmith.flow.evaluation.report import markdown, write_report
    from tunesmith.flow.evaluation.run import bench

    names, overrides = split_words(words or [])
    (weigh,) = options(overrides, Weigh)
    with told(as_json) as progress, bench(config, progress, as_written=as_written) as at:
        result = write_report(names, at, out, weigh)
    run = f"\nthe last run's own report: {result['run_report']}" if result["run_report"] else ""
    emit({**result, "plan": at.plan}, as_json, f"{markdown(result)}\nreport: {out / 'report.html'}{run}")


def _words(given: dict[str, str | None]) -> list[str]:
    return [word for key, value in given.items() if value is not None for word in (f"--{key}", value)]


def _plain(record: Any) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(record)
    return plain


def _table(evaluations: Sequence[KeptEvaluation]) -> list[str]:
    lines = []
    for entry in evaluations:
        lines.append(f"{entry.id[:8]}  {entry.model} ({entry.variant}) on {entry.data}, {counted(entry.rows, 'row')}{_spent(entry)}")
        for name in entry.metrics:
            value, interval = entry.values[name], entry.intervals[name]
            span = f"  {100 * interval.level:.3g}% interval {interval.low:.4g} to {interval.high:.4g}" if interval else ""
            noise = f"  sd over {len(entry.seeds)} seeds {entry.noise[name]:.3g}" if name in entry.noise else ""
            gone = f"  missing {entry.missing[name]}" if entry.missing[name] else ""
            lines.append(f"  {name:<18} {'–' if value is None else f'{value:.4g}'}{span}{noise}{gone}")
    return lines


def _spent(evaluation: KeptEvaluation) -> str:
    cost = "" if evaluation.usd is None else f", {evaluation.usd:.4f} USD in all, {evaluation.paid_usd or 0.0:.4f} now"
    sealed = f", opening {evaluation.opening} of sealed rows" if evaluation.opening else ""
    failed = f", {evaluation.failed} without an answer" if evaluation.failed else ""
    return f", {evaluation.asked} asked now{cost}{sealed}{failed}"


def _ability(line: Any) -> str:
    d, mark = line.difference, "LOST " if line.lost else "     "
    change = f"{d.estimate:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
    return f"{mark}{line.ability:<22} {line.before:.3f} → {line.after:.3f}  {change}  p = {line.p_adjusted:.2g}"


def _judged(judged: Any) -> list[str]:
    if judged is None:
        return []
    share, lean = judged.share, judged.bias
    lines = [
        f"judge {judged.judge}: B's share of the win {share.estimate:.3f} ({share.low:.3f} to {share.high:.3f}), both orders; "
        f"{lean.flips:.0%} of the verdicts change with the order, {lean.missing} unreadable"
    ]
    if judged.corrected is None:
        return [*lines, "no human labels: how far this judge can be believed is not known"]
    fixed = judged.corrected.corrected
    lines.append(f"corrected by {judged.corrected.human} human labels: {fixed.estimate:.3f} ({fixed.low:.3f} to {fixed.high:.3f})")
    return lines if judged.corrected.believed else [*lines, "the judge does not agree with people: its own share is no result"]
