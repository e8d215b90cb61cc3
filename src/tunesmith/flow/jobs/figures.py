"""The curves of a training while it goes on: what it measured since the last look, of a job in the store or of the project's own run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.atomic import unfinished
from tunesmith.core.types import Record
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.runner import is_busy
from tunesmith.store.job_figures import figures
from tunesmith.store.jobs import FINAL, Jobs
from tunesmith.store.store import Store
from tunesmith.train.run import reported

RUN = "run"  # the project's own training, beside jobs by their ids
_MOST = 20_000  # steps in one answer
_NO_FIGURE = frozenset({"step", "total_steps", "epoch", "seconds_left", "time", "learning_rate", "event", "cached", "best_step"})
Kind = Literal["loss", "rate"]


class Curves(Record, frozen=True):
    """Figures over steps: `values[i][j]` is of `names[i]` at `steps[j]` (None: not measured there). `after` is where the next look begins,
    `more` whether it would find something at once, `ended` whether the training has."""

    names: tuple[str, ...]
    steps: tuple[int, ...]
    values: tuple[tuple[float | None, ...], ...]
    after: int
    more: bool
    ended: bool


def curves(store: Store, job: str, kind: Kind, after: int) -> Curves:
    """What a job measured after the event `after`: its losses, or its rates and rewards. Raises Missing."""
    ended = Jobs(store).find(job, None)["status"] in (*FINAL, "paused")
    rows = figures(store, job, after=after, limit=_MOST)
    last = int(rows[-1]["seq"]) if rows else after
    return _curves((row["data"] for row in rows), kind, after=last, more=len(rows) == _MOST, ended=ended)


def run_curves(at: ProjectContext, kind: Kind, after: int) -> Curves:
    """The same of the project's own training, whose reports are counted from 0."""
    events = reported(training_folder(at))
    part = [event for event in events[after : after + _MOST] if event["event"] in ("step", "evaluation")]
    more, ended = len(events) > after + _MOST, not is_busy(at.store.folder)
    return _curves(part, kind, after=min(len(events), after + _MOST), more=more, ended=ended)


def training_folder(at: ProjectContext) -> Path:
    """Where the project's training reports: its stage, while it is under way under another name."""
    done = at.runner.folder("train")
    return done if done.is_dir() else unfinished(done)


def _curves(reports: Iterable[Mapping[str, Any]], kind: Kind, *, after: int, more: bool, ended: bool) -> Curves:
    by_step: dict[int, dict[str, float]] = {}
    for report in reports:
        step = report.get("step")
        if isinstance(step, int):
            by_step.setdefault(step, {}).update({name: value for name, value in report.items() if _wanted(name, value, kind)})
    names = sorted({name for values in by_step.values() for name in values})
    steps = sorted(step for step, values in by_step.items() if values)
    columns = tuple(tuple(by_step[step].get(name) for step in steps) for name in names)
    return Curves(names=tuple(names), steps=tuple(steps), values=columns, after=after, more=more, ended=ended)


def _wanted(name: str, value: Any, kind: Kind) -> bool:
    if name in _NO_FIGURE or name.startswith("full_") or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if not math.isfinite(value):
        return False
    if kind == "loss":
        return "loss" in name
    return any(word in name for word in ("accuracy", "reward", "margin"))
