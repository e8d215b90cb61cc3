"""The whole circle, resumable: run it, plan it, look at it. Knows nothing about what a stage does inside."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.atomic import unfinished
from tunesmith.core.deployment import Variant
from tunesmith.core.errors import ConfigError, GateRefused, UsageError
from tunesmith.core.progress import Progress, Silent
from tunesmith.flow.context import TUNED, ProjectContext
from tunesmith.flow.evaluation.run import bench_of
from tunesmith.flow.identity import references_of, system_of
from tunesmith.flow.last_run import View
from tunesmith.flow.parity_gate import compare_first
from tunesmith.flow.pipeline.steps import steps_of
from tunesmith.flow.pipeline.timing import Expected, in_words
from tunesmith.flow.project import Project, open_store
from tunesmith.flow.runner import Done, only_one
from tunesmith.flow.temporary_server import Live, Server
from tunesmith.models.base import Model
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import TUNED_WORD
from tunesmith.store.deployments import Deployments
from tunesmith.store.runs import Run, Runs, without_secrets
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.flow.pipeline.estimate import OtherMachine

_DATA = ("collect", "split", "tokens")


@dataclass(frozen=True)
class RunCommand:
    """How a run was asked for: the command, its overrides of the file, and the project's name in the file (empty: the project's own)."""

    command: str = "tunesmith run"
    overrides: tuple[str, ...] = ()
    name: str = ""

    @property
    def text(self) -> str:
        """The command that makes the same run; what is secret is left out."""
        return f"{self.command} {shlex.join(without_secrets(self.overrides))}".rstrip()


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended: the verdict, what was computed and what was found, where the report lies."""

    verdict: str
    decision: str
    report: Path
    stages: list[Done]
    values: dict[str, dict[str, float | None]]
    times: dict[str, float] = field(default_factory=dict)  # `timing.Expected.outcome`, where something long was done
    live: str = ""  # how the canary ended, or why there was none, where the project asks for one

    @property
    def passed(self) -> bool:
        """Whether the gate let the tuned model through."""
        return self.decision == "pass"

    def summary(self) -> dict[str, Any]:
        """The outcome as one JSON object."""
        computed = [stage.name for stage in self.stages if not stage.cached]
        outcome = {"verdict": self.verdict, "decision": self.decision, "report": str(self.report), "values": self.values}
        return outcome | {"computed": computed, "times": self.times} | ({"live": self.live} if self.live else {})

    def text(self) -> str:
        """The outcome in words."""
        computed = [stage.name for stage in self.stages if not stage.cached]
        done = f"computed now: {', '.join(computed)}" if computed else "nothing to do: every stage was already done with these inputs"
        times = ""
        live = f"live: {self.live}\n" if self.live else ""
        if self.times:
            times = f"it took {in_words(self.times['took_s'])}; {in_words(self.times['estimated_s'])} were estimated\n"
        return f"{self.verdict}\n{live}{done}\n{times}report: {self.report}"


def run_pipeline(
    project: Project,
    folder: Path,
    progress: Progress,
    server: Server,
    *,
    made: RunCommand = RunCommand(),
    left_out: tuple[str, ...] = (),
) -> RunOutcome:
    """Walk the circle in `folder`; finished stages are found, an interrupted one continues.

    The tuned model is deployed (its alias recorded in the store) only when the gate passes, and adapter, export and server compute alike:
    else GateRefused is raised, with the report in its place.
    """
    with opened(project, folder, progress, server) as context, only_one(context.store.folder):
        context.command, context.left_out = made.text, left_out
        _check_metrics(context)
        run = begin(context, made)
        names = [stage.name for stage in context.runner.stages]
        waiting = [name for name in names if context.runner.peek(name) is None]
        expected = _say_beforehand(context, waiting)
        done = [_told(context, expected, name) for name in names]
        results = {stage.name: stage for stage in done}
        decision = results["compare"].output["decision"]
        live = results["live"].output if "live" in results else {}
        refused: GateRefused | None = None
        if decision == "pass" and live.get("rollout", {}).get("status", "promoted") == "promoted":
            try:
                _deploy(context, server)
            except GateRefused as error:  # the run is whole and its report says so; what it made is not let in
                refused = error
        report = folder / project.report
        _publish(results["report"].folder, report)
        values = {arm: results[f"evaluate:{arm}"].output["values"] for arm in context.arms}
        Runs(context.store).finish(run.id, decision)
        if refused is not None:
            raise refused
        times = expected.outcome() if expected.estimated_s else {}
        return RunOutcome(results["compare"].output["verdict"], decision, report / "report.html", done, values, times, _ended(live))


def dry_run(project: Project, folder: Path, progress: Progress, elsewhere: OtherMachine | None = None) -> dict[str, Any]:
    """Prepare the data (cheap and kept), then say what a run would do: time, memory, tokens; with `elsewhere`, prices too."""
    from tunesmith.flow.pipeline.estimate import estimate

    with opened(project, folder, progress) as context, only_one(context.store.folder):
        _check_metrics(context)
        _data(context)
        waiting = [stage.name for stage in context.runner.stages if context.runner.peek(stage.name) is None]
        expected = estimate(context, waiting, elsewhere)
        return expected.summary() | {"waiting": waiting, "text": expected.text()}


def begin(context: ProjectContext, made: RunCommand, stages: Sequence[str] = ()) -> Run:
    """Remember what this run is made with, for the commands that look at it. `stages`: those that it may do (empty: all)."""
    name, runs = made.name or context.project.name, Runs(context.store)
    digests = {key: value for key, value in context.runner.digests.items() if not stages or key in stages}
    before = runs.last(name)
    if before is not None and before.overrides != without_secrets(made.overrides):
        words = shlex.join(before.overrides) or "no change of the file"
        context.progress.say(f"the last run was made with {words}, this one with {shlex.join(without_secrets(made.overrides)) or 'none'}")
    return runs.begin(name, made.text, made.overrides, digests)


def stage_states(view: View) -> dict[str, Any]:
    """Which plan is looked at, each of its stages with state, digest, and seconds when it is done, and what would do those that wait."""
    with opened(view.project, view.folder, Silent(), view=view) as context:
        rows = []
        for stage in context.runner.stages:
            done = context.runner.peek(stage.name)
            started = unfinished(context.runner.folder(stage.name)).is_dir()
            state = "done" if done else "started" if started else "waiting"
            rows.append(
                {
                    "name": stage.name,
                    "state": state,
                    "digest": context.runner.digests[stage.name],
                    "seconds": round(done.seconds, 1) if done else None,
                }
            )
        waiting = any(row["state"] != "done" for row in rows)
        return {"stages": rows, "plan": context.plan, "next": view.again if waiting else None}


def _no_server(models: Mapping[str, Model], log: Store, live: Live | None = None) -> AbstractContextManager[str]:
    raise UsageError(f"{', '.join(models)} cannot be served: this look at the stages brought no server")


@contextmanager
def opened(
    project: Project, folder: Path, progress: Progress, server: Server = _no_server, view: View | None = None
) -> Iterator[ProjectContext]:
    """The circle of a project over its opened store; with a `view`, to look at its run's stages, and then no URL or query is read."""
    store = open_store(project, folder)
    try:
        catalog = Catalog(progress=progress.bar)
        context = ProjectContext(project, folder, store, catalog, progress, view=view, reading=view is None)
        context.runner.steps = steps_of(context, server)
        yield context
    finally:
        store.close()


def _check_metrics(context: ProjectContext) -> None:
    """A metric that does not exist, or by which nothing can be better, is said before any work and not after training."""
    first = context.metrics[0]
    if first.better == "neither":
        raise ConfigError(
            f"no value of {first.name} is better than another, and the first metric decides",
            where="evaluate.metrics",
            remedy="another metric first",
        )


def _data(context: ProjectContext) -> None:
    """The stages of data."""
    for name in _DATA:
        context.runner.run(name)


def _say_beforehand(context: ProjectContext, waiting: list[str]) -> Expected:
    """Data first (seconds), then how long the rest will take."""
    from tunesmith.flow.pipeline.estimate import estimate

    left = [name for name in waiting if name not in _DATA]
    if waiting:
        _data(context)
    if not any(name == "train" or name.startswith("evaluate:") for name in left):
        return Expected({})
    before = estimate(context, left)
    context.progress.say(before.text())
    return Expected(dict(before.seconds))


def _told(context: ProjectContext, expected: Expected, name: str) -> Done:
    """The stage done; where it took another time than was said, what is left is said anew."""
    done = context.runner.run(name)
    sentence = "" if done.cached else expected.took(name, done.seconds)
    if sentence:
        context.progress.say(sentence)
    return done


def _ended(live: dict[str, Any]) -> str:
    """How the stage `live` ended, in words."""
    if not live or "left_out" in live:
        return f"left out: {live['left_out']}" if live else ""
    status, outcome = live["rollout"]["status"], live["rollout"]["outcome"]
    return f"{status.replace('_', ' ')}: {outcome}" + ("" if status == "promoted" else "; nothing is deployed")


def _deploy(context: ProjectContext, server: Server) -> None:
    """Put the tuned model in force for its alias, unless it already is, or several variants answer there: no run ends a canary unasked.
    Raises GateRefused."""
    alias, model, deployments = context.project.deploy.alias, context.tuned, Deployments(context.store)
    in_force = deployments.in_force().get(alias)
    if in_force is not None and any(model.same_as(variant.model) for variant in in_force.variants):
        return
    if names := deployments.side_by_side(alias):
        context.progress.say(
            f"not deployed: '{alias}' answers with several variants ({', '.join(names)}); beside them: "
            f"tunesmith deploy {alias} run:tuned --canary 0.1; in their place: the same without --canary"
        )
        return
    compare_first(TUNED_WORD, bench_of(context), server)
    digest = context.models.lazy(model, alias).digest
    variant = Variant(name=TUNED, model=msgspec.structs.replace(model, digest=digest))
    asked = references_of([variant], context.models, context.store, alias, system=system_of(context))
    reason = f"run of {context.project.name}: gate passed"
    made = Deployments(context.store, references=asked).put(alias, [variant], reason=reason, by="tunesmith run")
    context.progress.say(f"deployed: '{alias}' answers with the {TUNED} model of this run (version {made.version})")


def _publish(source: Path, target: Path) -> None:
    """Copy the report to where people look for it, when it is not the same already."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        other = target / path.name
        if not other.is_file() or other.read_bytes() != path.read_bytes():
            shutil.copyfile(path, other)
