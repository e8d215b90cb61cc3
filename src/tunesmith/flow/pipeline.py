"""The whole circle, resumable: run it, plan it, look at it. Knows nothing about what a stage does inside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tunesmith.core.errors import UsageError
from tunesmith.core.progress import Progress, Silent
from tunesmith.flow.circle import TUNED, Circle, Server
from tunesmith.flow.project import Project, open_store
from tunesmith.flow.stages import Done, only_one
from tunesmith.models.base import Model
from tunesmith.models.catalog import Catalog

if TYPE_CHECKING:
    from tunesmith.flow.estimate import Elsewhere

_DATA = ("collect", "split", "tokens")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the verdict, what was computed and what was found, where the report lies."""

    verdict: str
    decision: str
    report: Path
    stages: list[Done]
    values: dict[str, dict[str, float | None]]

    @property
    def passed(self) -> bool:
        """Whether the gate let the tuned model through."""
        return self.decision == "pass"

    def summary(self) -> dict[str, Any]:
        """The outcome as one JSON object."""
        computed = [stage.name for stage in self.stages if not stage.cached]
        return {"verdict": self.verdict, "decision": self.decision, "report": str(self.report), "values": self.values, "computed": computed}

    def text(self) -> str:
        """The outcome in words."""
        computed = [stage.name for stage in self.stages if not stage.cached]
        done = f"computed now: {', '.join(computed)}" if computed else "nothing to do: every stage was already done with these inputs"
        return f"{self.verdict}\n{done}\nreport: {self.report}"


def run_circle(
    project: Project,
    folder: Path,
    progress: Progress,
    server: Server,
    *,
    command: str = "tunesmith run",
    left_out: tuple[str, ...] = (),
) -> Outcome:
    """Walk the circle in `folder`; finished stages are found, an interrupted one continues.

    The tuned model is deployed (its alias recorded in the store) only when the gate passes.
    """
    with opened(project, folder, progress, server) as circle, only_one(circle.store.folder):
        circle.command, circle.left_out = command, left_out
        names = [stage.name for stage in circle.runner.stages]
        waiting = [name for name in names if circle.runner.peek(name) is None]
        if waiting:
            _say_beforehand(circle, waiting)
        done = [circle.runner.run(name) for name in names]
        results = {stage.name: stage for stage in done}
        decision = results["compare"].output["decision"]
        if decision == "pass":
            _deploy(circle)
        report = folder / project.report
        _publish(results["report"].folder, report)
        values = {arm: results[f"evaluate:{arm}"].output["values"] for arm in circle.arms}
        return Outcome(results["compare"].output["verdict"], decision, report / "report.html", done, values)


def dry_run(project: Project, folder: Path, progress: Progress, elsewhere: Elsewhere | None = None) -> dict[str, Any]:
    """Prepare the data (cheap and kept), then say what a run would do: time, memory, tokens; with `elsewhere`, prices too."""
    from tunesmith.flow.estimate import estimate

    with opened(project, folder, progress) as circle, only_one(circle.store.folder):
        _data(circle)
        waiting = [stage.name for stage in circle.runner.stages if circle.runner.peek(stage.name) is None]
        found = estimate(circle, waiting, elsewhere)
        return found.summary() | {"waiting": waiting, "text": found.text()}


def stage_states(project: Project, folder: Path) -> list[dict[str, Any]]:
    """Each stage with its state, digest, and seconds when it is done."""
    with opened(project, folder, Silent()) as circle:
        rows = []
        for stage in circle.runner.stages:
            done = circle.runner.peek(stage.name)
            started = circle.runner.folder(stage.name).with_name(f".{circle.runner.digests[stage.name]}.part").is_dir()
            state = "done" if done else "started" if started else "waiting"
            rows.append(
                {
                    "name": stage.name,
                    "state": state,
                    "digest": circle.runner.digests[stage.name],
                    "seconds": round(done.seconds, 1) if done else None,
                }
            )
        return rows


def _no_server(models: Mapping[str, Model], log: sa.Engine) -> AbstractContextManager[str]:
    raise UsageError(f"{', '.join(models)} cannot be served: this look at the stages brought no server")


@contextmanager
def opened(project: Project, folder: Path, progress: Progress, server: Server = _no_server) -> Iterator[Circle]:
    """The circle of a project over its opened store."""
    store = open_store(project, folder)
    try:
        yield Circle(project, folder, store, Catalog(progress=progress.bar), progress, server)
    finally:
        store.close()


def _data(circle: Circle) -> None:
    """The stages of data; a metric that does not exist is said before them, not when the first answers are rated."""
    circle.metrics  # noqa: B018 raises
    for name in _DATA:
        circle.runner.run(name)


def _say_beforehand(circle: Circle, waiting: list[str]) -> None:
    """Data first (seconds), then how long the rest will take."""
    from tunesmith.flow.estimate import estimate

    _data(circle)
    left = [name for name in waiting if name not in _DATA]
    if any(name == "train" or name.startswith("evaluate:") for name in left):
        circle.progress.say(estimate(circle, left).text())


def _deploy(circle: Circle) -> None:
    """Put the tuned model in force for its alias, unless it already is."""
    record = {
        "base": str(circle.base),
        "adapter": str(circle.adapter),
        "base_name": circle.project.base,
        "run": circle.runner.digests["train"],
    }
    alias = circle.project.deploy.alias
    in_force = circle.store.deployed().get(alias, {})
    if any(in_force.get(key) != value for key, value in record.items()):
        version = circle.store.deploy(alias, record, reason=f"run of {circle.project.name}: gate passed")
        circle.progress.say(f"deployed: '{alias}' answers with {TUNED} weights of this run (version {version})")


def _publish(source: Path, target: Path) -> None:
    """Copy the report to where people look for it, when it is not the same already."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        other = target / path.name
        if not other.is_file() or other.read_bytes() != path.read_bytes():
            shutil.copyfile(path, other)
