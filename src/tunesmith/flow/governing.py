"""A new model held against the one in force on rows that feedback cannot touch, and what opens a training. Knows nothing about bounds and
margins (`monitor/governor.py` does)."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.errors import UsageError
from tunesmith.core.progress import Progress
from tunesmith.core.rows import Row
from tunesmith.core.types import Record
from tunesmith.flow.evaluation.ask import Ask
from tunesmith.flow.evaluation.results import Result, load_kept
from tunesmith.flow.evaluation.run import Bench, bench, measure
from tunesmith.flow.harvest import proposals
from tunesmith.flow.last_run import written_name
from tunesmith.flow.pipeline.run import RunCommand, run_pipeline
from tunesmith.flow.project import Project, load_project, open_store
from tunesmith.flow.rows import Rows
from tunesmith.flow.sources import ALL
from tunesmith.flow.temporary_server import Server
from tunesmith.flow.watching import drift_of, quality_of
from tunesmith.monitor.governor import Due, Held, Retrain, Ruling, State, counter_lines, due, rule, swayed
from tunesmith.store.alerts import AlertLog
from tunesmith.store.deployments import Deployments
from tunesmith.store.runs import Runs

COMMAND = "tunesmith feedback retrain"
_LEAST_SLICE = 10  # rows that a slice of its own needs


def govern(old: str, new: str, at: Bench, settings: Retrain, *, data: str = "test", metrics: Sequence[str] = ()) -> Ruling:
    """Ask both models the sealed rows, as they are and by somebody who believes a wrong answer, and say whether the new one may be offered.

    Each source of rows, and what was harvested, is a slice of its own. Each look at sealed rows is logged. Raises as `eval`.
    """
    ask = Ask(data=data, metrics=tuple(metrics))
    held: list[Held] = []
    for rows in map(of_each_slice, at.data(data, ask)):
        before, after = _asked(old, rows, ask, at), _asked(new, rows, ask, at)
        held += _slices(before, after)
        believing = swayed(before.examples)
        if len(believing) >= 2:
            doubted = replace(
                rows, name=f"{rows.name}, by one who believes a wrong answer", splits={ALL: believing}, limit=None, clusters={}
            )
            pair = _asked(old, doubted, ask, at), _asked(new, doubted, ask, at)
            held.append(_held("asked by one who believes a wrong answer", "counter", *pair, range(len(believing))))
            held += counter_lines({"believing": (_words(pair[0]), _words(pair[1]))}, settings)
        clusters = [before.clusters.get(example.id, example.id) for example in before.examples]
        held += counter_lines({rows.name: (_words(before), _words(after))}, settings, clusters)
    return rule(held, settings)


def of_each_slice(rows: Rows) -> Rows:
    """Where an evaluation asks at most so many rows, so many of each slice: the first ones of all would be of the first source alone."""
    if rows.limit is None:
        return rows
    taken: Counter[str] = Counter()
    chosen = []
    for row in rows.rows:
        taken[_source(row)] += 1
        if taken[_source(row)] <= rows.limit:
            chosen.append(row)
    return replace(rows, splits={ALL: chosen}, limit=None)


def _asked(word: str, rows: Rows, ask: Ask, at: Bench) -> Result:
    return load_kept(at.folder, measure(word, rows, ask, at).id)


def _words(result: Result) -> list[str]:
    return [row.answer.text for row in result.whole.rows]


def _slices(before: Result, after: Result) -> list[Held]:
    """All rows, each source of them, and those that were harvested."""
    places: dict[str, list[int]] = {}
    for i, example in enumerate(before.examples):
        places.setdefault(_source(example), []).append(i)
    named = {name: some for name, some in places.items() if len(some) >= _LEAST_SLICE and len(some) < len(before.examples)}
    kinds: dict[str, Any] = {name: "corrected" if name.startswith("harvested") else "earlier" for name in named}
    lines = [_held("all sealed rows", "earlier", before, after, range(len(before.examples)))]
    return lines + [_held(name, kinds[name], before, after, some) for name, some in named.items()]


def _source(example: Row) -> str:
    if "harvested" in example.meta:
        return f"harvested: {example.meta['harvested']}"
    return example.origin.rpartition(":")[0] or example.origin


def _held(name: str, kind: Any, before: Result, after: Result, places: Sequence[int]) -> Held:
    """The first metric's scores of some rows, higher better; a score that is missing is the worst there is."""
    metric = before.metrics[0]
    sign, worst = (-1.0, metric.high) if metric.better == "lower" else (1.0, metric.low)

    def values(result: Result) -> tuple[float, ...]:
        scores = [result.whole.rows[i].scores[0].value for i in places]
        return tuple(sign * (worst if value is None else value) for value in scores)

    clusters = tuple(before.clusters.get(before.examples[i].id, before.examples[i].id) for i in places)
    return Held(name=name, kind=kind, before=values(before), after=values(after), clusters=clusters)


# --- when --------------------------------------------------------------------------------------------------------------------------------


def training_due(project: Project, at: Bench, *, harvested: str = "") -> Due:
    """Whether a training is due; `harvested` names reviewed rows (empty: what could be harvested now is counted)."""
    alias, monitor, settings = project.deploy.alias, project.monitor, project.retrain
    trained = {row.id for row in at.reader.find("run:train").rows} if at.reader.splits_of_runs() else set()
    rows = at.reader.find(harvested).rows if harvested else proposals(at.store, monitor).of("correction", "agreed")
    last = next((run for run in Runs(at.store).listed(project.name) if run.command.startswith(COMMAND)), None)
    state = State(
        proposed=sum(row.id not in trained for row in rows),
        trained=len(trained),
        drift=settings.when.drift and drift_of(alias, at, monitor).alarm,
        quality=settings.when.quality and quality_of(alias, at, monitor, score=False).alarm,
        firing=tuple(name for (name, _), row in AlertLog(at.store).states().items() if row["state"] == "firing"),
        last=last.created if last is not None else None,
    )
    return due(settings, state, time.time())


class Retrained(Record, frozen=True):
    """What came of a training: what the run's gate said, the governor's ruling (None: the gate said no), and the command that puts the new
    model beside the one in force (None: it is not offered)."""

    gate: str
    ruling: Ruling | None
    offer: str | None
    text: str


def retrained(config: Path, words: Sequence[str], harvested: str, progress: Progress, server: Server) -> Retrained:
    """Train on the project's sources and the reviewed rows, under a name of its own; what passes the run's gate is held against the model
    in force. Nothing is put in force. Raises UsageError without rows, and as `run`."""
    project = load_project(config, list(words))
    whole = [*words, *overrides_of(project, harvested), *_going_on(config, project)]
    made = RunCommand(f"{COMMAND} --rows {shlex.quote(harvested)} --start", tuple(whole), written_name(config, whole))
    outcome = run_pipeline(load_project(config, whole), config.resolve().parent, progress, server, made=made)
    if not outcome.passed:
        return Retrained(gate=outcome.decision, ruling=None, offer=None, text=outcome.text())
    alias, candidate = project.deploy.alias, candidate_of(project)
    with bench(config, progress) as at:
        ruling = govern(alias, candidate, at, project.retrain)
    offer = f"tunesmith deploy canary {alias} {candidate}" if ruling.promote else None
    text = "\n".join([outcome.text(), ruling.text(), *([f"offered: {offer}"] if offer else [])])
    return Retrained(gate=outcome.decision, ruling=ruling, offer=offer, text=text)


def overrides_of(project: Project, harvested: str) -> list[str]:
    """The words of a run that adds reviewed rows to the project's sources and answers to a name of its own. Raises UsageError without
    rows."""
    if not harvested:
        remedy = "tunesmith feedback harvest, tunesmith data review VERSION --apply, then --rows VERSION"
        raise UsageError("no rows to train on", remedy=remedy)
    sources = [*msgspec.to_builtins(project.sources), {"path": harvested}]
    return [f"--sources={json.dumps(sources)}", f"--deploy.alias={candidate_of(project)}", "--deploy.live_questions=0"]


def _going_on(config: Path, project: Project) -> list[str]:
    """The words of a run that goes on from the version in force and repeats a share of what it was trained on, where `retrain.replay` says
    so. Its gate then asks whether it is no worse than that version; whether it is better on what was corrected the governor asks. Raises
    UsageError where the alias answers with nothing, or with several variants."""
    replay, alias = project.retrain.replay, project.deploy.alias
    if replay is None:
        return []
    with closing(open_store(project, config.resolve().parent)) as store:
        in_force = Deployments(store).in_force().get(alias)
    if in_force is None or len(in_force.variants) > 1:
        answers = "nothing" if in_force is None else "several variants"
        raise UsageError(f"'{alias}' answers with {answers}, and retrain.replay goes on from one model", remedy="leave it out")
    gate = [f"--gate={json.dumps({'superior': False, 'margin': project.retrain.margin})}"]
    return [f"--base={alias}@{in_force.version}", f"--train.replay={replay:g}", *gate]


def candidate_of(project: Project) -> str:
    """The name that a retrained model answers to until it is put beside the one in force."""
    return f"{project.deploy.alias}-next"
