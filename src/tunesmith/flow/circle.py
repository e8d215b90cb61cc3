"""Where a project stands in its circle: what there is of data, training, evaluation, deployment and traffic, what runs, what is served,
what needs a person's decision, and the next step. Only looks; what it says is read from the store."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.deployment import Deployment
from tunesmith.core.progress import Silent
from tunesmith.data import version as versions
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.last_run import View
from tunesmith.flow.project import open_store
from tunesmith.flow.runner import is_busy
from tunesmith.flow.sources import splits_of_runs
from tunesmith.models.catalog import Catalog
from tunesmith.monitor.status import status
from tunesmith.store.deployments import Deployments
from tunesmith.store.jobs import ACTIVE, Jobs
from tunesmith.store.runs import Run, Runs

DAY_S = 86_400.0
_LOOKED_BACK = 30  # jobs and runs of which a failure is still news

State = Literal["empty", "running", "done", "attention"]


@dataclass(frozen=True)
class Stand:
    """One stretch of the circle: `text` says what is there in a few words, `detail` a little more."""

    name: Literal["data", "training", "evaluation", "deployment", "monitoring"]
    state: State
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Todo:
    """Something that waits for a person: what and why, the command that does it, and what it is about (`job ID`, `run`, `alias NAME`, `step
    STAND`)."""

    what: str
    why: str
    command: str
    about: str = ""


@dataclass(frozen=True)
class Running:
    """A piece of work under way; `share` of it is done (None: not known)."""

    id: str
    what: str
    since: float
    share: float | None = None


@dataclass(frozen=True)
class Circle:
    """The whole: `todo` is in the order of urgency, `next` the step that goes on where nothing is urgent."""

    project: str
    stands: tuple[Stand, ...]
    running: tuple[Running, ...]
    served: tuple[Deployment, ...]
    todo: tuple[Todo, ...]
    next: Todo

    def text(self) -> str:
        """For people."""
        lines = [f"{stand.name:<11} {stand.text}{f' ({stand.detail})' if stand.detail else ''}" for stand in self.stands]
        lines += [f"to decide: {todo.what}: {todo.why}\n           {todo.command}" for todo in self.todo]
        return "\n".join([*lines, f"next: {self.next.what}\n           {self.next.command}"])


def circle(at: ProjectContext) -> Circle:
    """Look at everything once. Raises StoreError when the database is away."""
    run = Runs(at.store).last(at.project.name)
    jobs, _ = Jobs(at.store).listed(None, limit=_LOOKED_BACK)
    in_force = Deployments(at.store).in_force()
    seen = status(at.store, since=time.time() - DAY_S)
    data, training = _data(at), _training(at, run, jobs)
    stands = (data, training, _evaluation(at, run), _deployment(in_force), _monitoring(seen))
    todo = [*_jobs_to_look_at(jobs), *_run_to_decide(at, run, in_force)]
    return Circle(
        project=at.project.name,
        stands=stands,
        running=tuple(_running(at, run, jobs)),
        served=tuple(in_force.values()),
        todo=tuple(todo),
        next=todo[0] if todo else _next(stands),
    )


def circle_of(seen: View) -> Circle:
    """The circle of a project as a command looks at it. Raises StoreError."""
    with closing(open_store(seen.project, seen.folder)) as store:
        return circle(ProjectContext(seen.project, seen.folder, store, Catalog(), Silent(), view=seen))


def _data(at: ProjectContext) -> Stand:
    known = [*versions.log(at.store.layout.datasets), *(split.version for split in splits_of_runs(at.store))]
    if not known:
        return Stand("data", "empty", "no data yet")
    newest = max(known, key=lambda version: version.created)
    rows, lost = sum(newest.counts.values()), sum(newest.fates.get(fate, 0) for fate in ("dropped", "duplicate_of"))
    parts = ", ".join(f"{name} {count:,}" for name, count in newest.counts.items()) if len(newest.counts) > 1 else ""
    return Stand("data", "done", f"{counted(rows, 'row')}{f', {lost:,} left out' if lost else ''}", parts)


def _training(at: ProjectContext, run: Run | None, jobs: list[Any]) -> Stand:
    active = [job for job in jobs if job["status"] in ACTIVE]
    if active or (run is not None and run.finished is None and is_busy(at.store.folder)):
        return Stand("training", "running", counted(len(active), "job") + " under way" if active else "the project's run is under way")
    done = at.store.stages("train")
    made = [job for job in jobs if job["status"] == "succeeded"]
    if not done and not made:
        return Stand("training", "empty", "nothing was trained yet")
    if done:
        output = msgspec.json.decode(done[0]["output"])
        loss = output.get("valid_loss")
        return Stand("training", "done", "trained by a run", f"validation loss {loss:.3f}" if isinstance(loss, float) else "")
    return Stand("training", "done", f"{counted(len(made), 'model')} from jobs")


def _evaluation(at: ProjectContext, run: Run | None) -> Stand:
    kept = sum(1 for _ in at.store.layout.evaluations.glob("*/kept.json"))
    words = f"{counted(kept, 'evaluation')} kept" if kept else ""
    if run is not None and run.finished is not None and run.decision is not None:
        answers = {"pass": "the gate lets the tuned model pass", "block": "the gate blocks the tuned model"}
        state: State = "done" if run.decision == "pass" else "attention"
        return Stand("evaluation", state, answers.get(run.decision, "the gate cannot tell yet"), words)
    return Stand("evaluation", "done", words) if kept else Stand("evaluation", "empty", "nothing was measured yet")


def _deployment(in_force: dict[str, Deployment]) -> Stand:
    if not in_force:
        return Stand("deployment", "empty", "nothing is deployed")
    several = [deployment.alias for deployment in in_force.values() if len(deployment.variants) > 1]
    detail = f"{', '.join(several)} with several variants" if several else ""
    count = len(in_force)
    return Stand("deployment", "done", f"{count} {'alias' if count == 1 else 'aliases'} in force", detail)


def _monitoring(seen: dict[str, Any]) -> Stand:
    if not seen["requests"]:
        return Stand("monitoring", "empty", "no request in 24 hours")
    errors = seen["errors"]
    p95 = seen["total_s"].get("p95", {}).get("value")
    detail = f"p95 {p95:.2f} s" if p95 is not None else ""
    words = f"{counted(seen['requests'], 'request')} in 24 hours, {counted(errors, 'error')}"
    return Stand("monitoring", "attention" if errors * 20 > seen["requests"] else "done", words, detail)


def _running(at: ProjectContext, run: Run | None, jobs: list[Any]) -> list[Running]:
    under_way = [
        Running(job["id"], f"{job['status'].replace('_', ' ')}: {job['model']}", job["created"], None)
        for job in jobs
        if job["status"] in ACTIVE
    ]
    if run is not None and run.finished is None and is_busy(at.store.folder):
        under_way.append(Running(run.id, run.command, run.created))
    return under_way


def _jobs_to_look_at(jobs: list[Any]) -> list[Todo]:
    since = time.time() - 7 * DAY_S
    failed = [
        Todo(
            f"job {job['id']} failed",
            str((job["error"] or {}).get("message", ""))[:200],
            f"tunesmith jobs logs {job['id']}",
            f"job {job['id']}",
        )
        for job in jobs
        if job["status"] == "failed" and (job["finished"] or 0) > since
    ]
    paused = [
        Todo(f"job {job['id']} is paused", "it goes on from its last checkpoint", f"tunesmith jobs resume {job['id']}", f"job {job['id']}")
        for job in jobs
        if job["status"] == "paused"
    ]
    return [*failed, *paused]


def _run_to_decide(at: ProjectContext, run: Run | None, in_force: dict[str, Deployment]) -> list[Todo]:
    if run is None:
        return []
    if run.finished is None:
        if is_busy(at.store.folder):
            return []
        return [Todo("the last run did not end", "it goes on from what is done", run.command, "run")]
    if run.decision == "block":
        return [Todo("the gate blocked the tuned model", "look where it loses before you train again", "tunesmith report", "run")]
    if run.decision == "cannot tell":
        return [Todo("the gate cannot tell", "more test rows, or a wider margin, would decide it", "tunesmith eval plan", "run")]
    if run.decision == "pass" and at.project.deploy.alias not in in_force:
        alias = at.project.deploy.alias
        return [Todo(f"'{alias}' is not deployed", "its model passed the gate", f"tunesmith deploy {alias} run:tuned", f"alias {alias}")]
    return []


_STEPS = {
    "data": ("bring in data", "a file of questions and answers in any usual format", "tunesmith data import FILE"),
    "training": ("train a model", "data is there; a run trains, measures and compares", "tunesmith run"),
    "evaluation": ("measure the model", "on rows that it has not seen, beside its base", "tunesmith eval MODEL --data FILE"),
    "deployment": ("deploy a model", "give it a name that clients ask for", "tunesmith deploy ALIAS MODEL"),
    "monitoring": ("send it requests", "any OpenAI client works: its base URL is this server's /v1", "tunesmith monitor status"),
}


def _next(stands: tuple[Stand, ...]) -> Todo:
    for stand in stands:
        if stand.state == "empty":
            return Todo(*_STEPS[stand.name], f"step {stand.name}")
    return Todo(
        "look at what it answers",
        "the log has every request, down to the rows that taught its model",
        "tunesmith monitor status",
        "step log",
    )
