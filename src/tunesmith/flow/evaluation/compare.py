"""`tunesmith compare` and `tunesmith gate`: two results on the same rows, where they differ, what a judge says, and whether to let B
through. Knows no formula."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
from msgspec.structs import replace

from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, NotFound, UsageError
from tunesmith.core.rows import read_lines
from tunesmith.core.stats import GateAnswer, GateRule, Interval, decide, mean_interval
from tunesmith.core.stats.gate import check_margin
from tunesmith.core.types import Example, Record, digest
from tunesmith.evaluate.compare import Comparison, compare
from tunesmith.evaluate.failures import ChangedAnswer, changed
from tunesmith.evaluate.judge import Bias, Corrected, bias, corrected, pairwise
from tunesmith.evaluate.regression import Forgotten, forgetting
from tunesmith.evaluate.slices import Slice, Slicer, by_cluster, by_label, by_length, by_meta, slices
from tunesmith.flow.evaluation.ask import Ask
from tunesmith.flow.evaluation.results import Result, load_kept, result
from tunesmith.flow.evaluation.run import Bench, measure
from tunesmith.flow.rows import Rows

# Below so many rows, groups of alike questions are too small to be tested.
_CLUSTERED_FROM = 80


class Weigh(Record, frozen=True):
    """How two results are compared; every key is an option of `tunesmith compare` and `tunesmith gate`.

    `slices`: label, length, cluster, meta.KEY (empty: the first three as far as the rows allow). `judge` is a model that compares the
    answers in both orders; `human` a JSONL file of {"id": row, "b": 1 | 0.5 | 0}, B's share of the win as people see it. `relevant` is the
    share of a metric's range below which a difference does not matter. `margin`: what the gate tolerates (or, with `superior`, demands);
    `only` the metrics that it looks at (empty: the first).
    """

    slices: tuple[str, ...] = ()
    judge: str = ""
    human: str = ""
    level: float = 0.95
    relevant: float = 0.05
    margin: float = 0.02
    superior: bool = False
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_margin(self.margin, self.superior, where="margin")

    @property
    def rule(self) -> GateRule:
        """What the gate asks."""
        return GateRule(margin=self.margin, superior=self.superior)


@dataclass(frozen=True)
class Judged:
    """What a pairwise judge says: B's share of the win with its interval, how it leans, and the share corrected by people's labels."""

    judge: str
    share: Interval
    bias: Bias
    corrected: Corrected | None


@dataclass(frozen=True)
class Compared:
    """B against A: the numbers, the slices (adjusted over all of them), the rows that changed on the first metric, worst first."""

    comparison: Comparison
    slices: list[Slice] = field(default_factory=list)
    changed: list[ChangedAnswer] = field(default_factory=list)
    judged: Judged | None = None
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """As plain JSON."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


def sides(a: str, b: str, ask: Ask, at: Bench) -> tuple[Result, Result]:
    """Both results; a word that names none is a model and is evaluated on `ask.data`. `A1,A2,A3` are runs of one model (several seeds)."""
    known = {word: result(word, at.folder, at.context) for side in (a, b) for word in side.split(",")}
    models = [word for word, known_result in known.items() if known_result is None]
    parts = _to_ask(models, ask, at)
    if len(parts) > 1:
        raise UsageError(
            f"'{ask.data}' has {counted(len(parts), 'part')}", allowed="one data set", remedy="tunesmith compare A B --data suite:general"
        )
    measured = {word: load_kept(at.folder, measure(word, parts[0], ask, at).id) for word in models}
    results = {**{word: known_result for word, known_result in known.items() if known_result is not None}, **measured}
    first, second = (_together(side, [results[word] for word in side.split(",")]) for side in (a, b))
    return first, _aligned(first, second)


def _to_ask(models: Sequence[str], ask: Ask, at: Bench) -> list[Rows]:
    """The rows that these models are to be asked, none where there is no model. A word that names nothing is told before anybody is asked,
    or sealed rows are opened. Raises as `Models.resolve` and `Bench.data`."""
    for word in models:
        at.models.resolve(word)
    return at.data(ask.data, ask) if models else []


def _together(words: str, parts: Sequence[Result]) -> Result:
    if len(parts) == 1:
        return parts[0]
    return Result(words, [run for part in parts for run in part.runs], parts[0].examples, parts[0].metrics, parts[0].clusters)


def _aligned(a: Result, b: Result) -> Result:
    """B with A's row ids where both are of the same questions but of other tools, whose ids have nothing in common."""
    ids = {row.example_id for row in a.runs[0].rows}
    if not b.examples or not a.examples or ids & {row.example_id for row in b.runs[0].rows}:
        return b
    known = {_question(row): row.id for row in a.examples}
    names = {row.id: known[_question(row)] for row in b.examples if _question(row) in known}
    if not names:
        raise UsageError(f"'{a.name}' and '{b.name}' have no row in common", remedy="evaluate both on the same data")
    runs = [
        replace(
            run,
            rows=tuple(
                replace(row, example_id=own, scores=tuple(replace(score, example_id=own) for score in row.scores))
                for row in run.rows
                if (own := names.get(row.example_id))
            ),
        )
        for run in b.runs
    ]
    return Result(b.name, runs, [replace(row, id=names[row.id]) for row in b.examples if row.id in names], b.metrics, b.clusters, b.record)


def _question(row: Example) -> str:
    return digest([(message.role, message.text.strip()) for message in row.prompt])


def check(weigh: Weigh, at: Bench) -> None:
    """Raises, before anybody is asked, what would be raised after it: for a judge that is no model, labels that cannot be read, slices
    that there are none of."""
    slicers([], weigh.slices)
    if weigh.judge:
        at.models.resolve(weigh.judge)
    if weigh.human and not Path(weigh.human).is_file():
        raise NotFound("no labels", where=weigh.human, allowed='JSONL of {"id": row, "b": 1 | 0.5 | 0}')


def compare_results(a: Result, b: Result, weigh: Weigh = Weigh(), at: Bench | None = None) -> Compared:
    """B against A on every metric that both have. Raises UsageError when there is none, or a slice is asked for that cannot be made."""
    metrics = [own for own in a.metrics if own.name in {other.name for other in b.metrics}]
    if not metrics:
        raise UsageError(
            f"no common metric: {a.name} has {[m.name for m in a.metrics]}, {b.name} {[m.name for m in b.metrics]}",
            remedy="evaluate both with the same --metrics",
        )
    several = len(a.runs) > 1 or len(b.runs) > 1
    values = {m.name: tuple([v for run in side.runs if (v := run.values[m.name]) is not None] for side in (a, b)) for m in metrics}
    first, second = a.whole, b.whole
    scores = [[score for m in metrics for score in side.scores(m.name)] for side in (first, second)]
    comparison = compare(
        scores[0],
        scores[1],
        metrics=metrics,
        clusters=a.clusters or b.clusters,
        names=(a.name, b.name),
        relevant=weigh.relevant,
        level=weigh.level,
        runs={name: (x, y) for name, (x, y) in values.items() if x and y} if several else None,
    )
    notes = [f"{len(a.runs)} and {counted(len(b.runs), 'run')}: the noise between them is part of every interval."] if several else []
    same = bool(a.examples) and [row.example_id for row in first.rows] == [row.example_id for row in second.rows] == [
        e.id for e in a.examples
    ]
    if not same:
        return Compared(comparison, notes=(*notes, "The two are not of the same list of rows: no slices, no rows side by side."))
    examples = [replace(row, group=a.clusters.get(row.id, row.group)) for row in a.examples]
    chosen = slicers(examples, weigh.slices)
    table = slices(examples, metrics, chosen, second, first) if chosen else []
    moved = changed(examples, first, second, metrics[0].name)
    moved = moved[::-1] if metrics[0].better == "lower" else moved
    return Compared(comparison, table, moved, _judged(a, b, weigh, at) if weigh.judge and at else None, tuple(notes))


def slicers(examples: Sequence[Example], wanted: Sequence[str]) -> dict[str, Slicer]:
    """The slicers of these names, or those that the rows allow. Raises UsageError for a name that is none."""
    if not wanted:
        has_labels = any(row.label is not None for row in examples)
        wanted = [*(["label"] if has_labels else []), "length", *(["cluster"] if len(examples) >= _CLUSTERED_FROM else [])]
    known: dict[str, Slicer] = {"label": by_label, "length": by_length, "cluster": by_cluster()}
    chosen = {}
    for name in wanted:
        if name.startswith("meta."):
            chosen[name] = by_meta(name.removeprefix("meta."))
        elif name in known:
            chosen[name] = known[name]
        else:
            raise UsageError(f"no slices by '{name}'", allowed="label, length, cluster, meta.KEY")
    return chosen


def _judged(a: Result, b: Result, weigh: Weigh, at: Bench) -> Judged:
    judge = at.models.resolve(weigh.judge)
    texts = [[row.answer for row in side.runs[0].rows] for side in (a, b)]
    verdicts = pairwise(judge, a.examples, texts[0], texts[1], cache=at.folder / "answers" / "judge.jsonl")
    read = [verdict.value for verdict in verdicts if verdict.value is not None]
    lean = bias(judge, verdicts, texts[0], texts[1], (a.name, b.name))
    groups = [a.clusters.get(v.example_id, v.example_id) for v in verdicts if v.value is not None]
    human = _labels(Path(weigh.human), [row.id for row in a.examples]) if weigh.human else None
    fixed = corrected([verdict.value for verdict in verdicts], human) if human else None
    return Judged(weigh.judge, mean_interval(read, groups), lean, fixed)


class _Label(Record, frozen=True):
    id: str
    b: float


def _labels(path: Path, ids: Sequence[str]) -> list[float | None]:
    """People's verdicts in the order of the rows. Raises DataError for a line that is none, NotFound when no row is labelled."""
    known = {}
    for line in read_lines(path):
        try:
            label = msgspec.json.decode(line.data, type=_Label)
        except msgspec.DecodeError as error:
            raise DataError(str(error), where=f"{path}:{line.number}", allowed='{"id": row, "b": 1 | 0.5 | 0}') from error
        known[label.id] = label.b
    if not set(known) & set(ids):
        raise NotFound("no label is of a row of this comparison", where=str(path), allowed=f"ids such as {ids[0]}")
    return [known.get(i) for i in ids]


def forgotten(a: str, b: str, ask: Ask, at: Bench) -> list[Forgotten]:
    """The abilities of a suite, B after A, the worst first."""
    parts = _to_ask((a, b), ask, at)
    measured = {word: {part.name: load_kept(at.folder, measure(word, part, ask, at).id).whole for part in parts} for word in (a, b)}
    return forgetting(measured[a], measured[b])


class GateLine(Record, frozen=True):
    """The gate on one metric, as it is printed, stored and written for CI. `power`: the chance to pass of a candidate of equal quality on
    these rows (superiority: one better by twice the margin); `rows_needed` for a chance of 80 % (None: no number gives it)."""

    metric: str
    decision: GateAnswer
    reason: str
    sentence: str
    power: float | None = None
    rows_needed: int | None = None

    @property
    def text(self) -> str:
        """The decision in one line."""
        rows = "" if self.rows_needed is None else f"; about {counted(self.rows_needed, 'row')} for 80 %"
        power = "" if self.power is None else f" Power {self.power:.0%}{rows}."
        return f"{self.decision}: {self.metric}. {self.sentence}{power}"


def gate(comparison: Comparison, directions: Mapping[str, str], rule: GateRule, only: Sequence[str] = ()) -> list[GateLine]:
    """The decision on each metric of `only` (empty: the first). `directions`: metric → higher | lower | neither is better."""
    lines = []
    for name in only or (comparison.metrics[0].metric,):
        measured = comparison.metric(name)
        decided = decide(measured.difference, rule, better=directions[name])
        sentence = measured.sentence if measured.difference is None else decided.sentence
        lines.append(
            GateLine(
                metric=name,
                decision=decided.decision,
                reason=decided.reason,
                sentence=sentence,
                power=decided.power,
                rows_needed=decided.rows_needed,
            )
        )
    return lines


def junit(lines: Sequence[GateLine], names: tuple[str, str]) -> bytes:
    """The gate as a JUnit file: one test case a metric; blocked and undecided ones are failures, told apart by their type."""
    failed = sum(line.decision != "pass" for line in lines)
    suite = ElementTree.Element("testsuite", name="tunesmith gate", tests=str(len(lines)), failures=str(failed), errors="0", skipped="0")
    for line in lines:
        case = ElementTree.SubElement(suite, "testcase", classname=f"{names[1]} against {names[0]}", name=line.metric)
        if line.decision != "pass":
            kind = "block" if line.decision == "block" else "cannot-tell"
            ElementTree.SubElement(case, "failure", type=kind, message=line.sentence).text = line.sentence
        ElementTree.SubElement(case, "system-out").text = line.text
    body: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return body
