"""What `tunesmith tune` does: carry a study out, look at it, stop it, add a trial, clone it, write its plan. Knows no formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.config import parse_overrides
from tunesmith.core.errors import ConfigError, TunesmithError, UsageError
from tunesmith.core.load import need
from tunesmith.core.progress import Progress, Silent
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.pipeline.run import opened
from tunesmith.flow.plan_file import write_plan
from tunesmith.flow.project import Project
from tunesmith.flow.runner import only_one
from tunesmith.flow.tuning import finals
from tunesmith.flow.tuning.bench import StudyMaterials, StudyStopped
from tunesmith.flow.tuning.report import write_report
from tunesmith.flow.tuning.study import STOP, Study, begin, database, facts_of, held
from tunesmith.flow.tuning.summary import summary
from tunesmith.tune.search import Search
from tunesmith.tune.space import given
from tunesmith.tune.trials import DEFAULT, Trial, find
from tunesmith.tune.verdict import StudyVerdict


def tune(project: Project, folder: Path, progress: Progress, name: str = "") -> dict[str, Any]:
    """Begin a study, or go on with it, until its budget is spent, nothing is left, or it is asked to stop."""
    need("optuna", extra="tune")  # before any work
    with _study(project, folder, progress, name) as study:
        ended = _search(study)
        verdict = None
        if ended in ("done", "budget"):
            try:
                verdict = finals.judged(study)
            except StudyStopped:
                ended = "stopped"
        page = write_report(study.search, study.folder, folder / project.report)
        return summary(study.search, study.folder) | {"ended": ended, "verdict": _plain(verdict), "report": str(page)}


@contextmanager
def _study(project: Project, folder: Path, progress: Progress, name: str) -> Iterator[Study]:
    with opened(project, folder, progress) as context:
        _prepared(context)
        yield begin(context, name)


def _prepared(context: ProjectContext) -> None:
    """The rows tokenised. The project is held only while they are prepared: several processes may work on one study."""
    if context.runner.peek("tokens") is None:
        with only_one(context.store.folder):
            context.runner.run("tokens")


def _search(study: Study) -> str:
    """Some legs after the others; why it ended: `stopped`, `budget`, `done`, or `elsewhere` when the rest is with other processes."""
    say = study.context.progress.say
    while legs := study.take():
        try:
            trials = study.carry_out(legs)
        except StudyStopped:
            return "stopped"
        finally:
            for leg in legs:
                leg.lock.close()
        for trial in trials:
            say(line(trial, study))
        for number in study.prune(legs[0].rung) if any(trial.state == "paused" for trial in trials) else ():
            say(f"trial {number}: given up, {find(study.search.trials(), number).note}")
    if study.stop_file.exists():
        return "stopped"
    if any(trial.state == "running" for trial in study.search.trials()):
        return "elsewhere"
    return "done" if study.affordable() else "budget"


def line(trial: Trial, study: Study) -> str:
    """A trial in one line of the table that a person sees grow."""
    look, params = trial.last, " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
    if trial.state == "failed" or look is None:
        return f"trial {trial.number:>3}  {'':>12}  failed: {trial.note}  {params}"
    value = "–" if look.value is None else f"{look.value:.4g}"
    spread = f" [{look.low:.3g}, {look.high:.3g}]" if look.low is not None and look.high is not None and study.tune.by == "metric" else ""
    origin = "" if trial.origin == "search" else f" ({trial.origin})"
    rung = study.rungs[look.rung].name
    return f"trial {trial.number:>3}  {rung:>12}  {study.search.facts.metric} {value}{spread}  {look.tokens:,} tokens  {params}{origin}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(verdict: StudyVerdict | None) -> Any:
    return None if verdict is None else msgspec.to_builtins(verdict)


# Looking at a study


@contextmanager
def _known(project: Project, folder: Path, name: str) -> Iterator[tuple[ProjectContext, Search, Path]]:
    """The study of that name in the project's database, without its rows. Raises NotFound."""
    with opened(project, folder, Silent()) as context:
        search = Search.open(database(context), name or project.name)
        yield context, search, context.store.layout.tuning / search.name


def status(project: Project, folder: Path, name: str = "") -> dict[str, Any]:
    """Every trial with what was seen of it, the front of quality against cost, and the verdict if there is one."""
    with _known(project, folder, name) as (_, search, place):
        return summary(search, place) | {"verdict": _plain(finals.read_verdict(place))}


# Changing a study


def stop(project: Project, folder: Path, name: str = "") -> dict[str, Any]:
    """Ask every process of a study to stop after the step that it is in."""
    with _known(project, folder, name) as (_, search, place):
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / STOP, b"")
        return {"study": search.name, "stopping": True}


def add(project: Project, folder: Path, words: list[str], name: str = "") -> dict[str, Any]:
    """Let a plan be tried next: KEY=VALUE words, the default's value for every other key."""
    if not words:
        raise UsageError("no plan", where="tune add", allowed="KEY=VALUE, such as learning_rate=3e-4")
    wrong = next((word for word in words if "=" not in word), None)
    if wrong is not None:
        raise UsageError(f"unexpected '{wrong}'", where="tune add", allowed="KEY=VALUE, such as learning_rate=3e-4")
    asked = {".".join(key): value for key, value in parse_overrides([f"--{word.removeprefix('--')}" for word in words])}
    with _known(project, folder, name) as (_, search, place), held(place):
        params = given(search.facts.space, asked)
        return {"study": search.name, "trial": search.add(params, "added"), "params": params}


def clone(project: Project, folder: Path, progress: Progress, name: str, new: str) -> dict[str, Any]:
    """A new study of the project as it is configured now, with the finished trials of another that fit its rows and space."""
    with opened(project, folder, progress) as context:
        _prepared(context)
        url = database(context)
        old = Search.open(url, name or project.name)
        if new == old.name:
            raise UsageError(f"'{new}' is the study itself", allowed="another name")
        facts = facts_of(StudyMaterials(context, project.tune.rows), project.tune)
        other = [key for key in ("data", "base", "plan", "measure") if old.facts.about[key] != facts.about[key]]
        study = begin(context, new, alone=True)
        with held(study.folder):
            trials = study.search.trials()
            taken = 0 if other or any(trial.origin == "cloned" for trial in trials) else study.search.take_over(_fitting(old, study))
        reason = f"another {' and another '.join(other)}" if other else ""
        return {"study": new, "of": old.name, "taken": taken, "reason": reason}


def _fitting(old: Search, study: Study) -> list[Trial]:
    """Whole trials of another study that this one's space holds, as its parameters."""
    rung, fitting = len(study.rungs) - 1, []
    for trial in old.trials():
        if (
            trial.state != "finished"
            or trial.number == DEFAULT
            or any(key not in {v.key for v in study.search.facts.space} for key in trial.params)
        ):
            continue
        try:
            params = given(study.search.facts.space, trial.params)
        except ConfigError:
            continue
        looks = (msgspec.structs.replace(trial.looks[-1], rung=rung),)
        fitting.append(msgspec.structs.replace(trial, params=params, looks=looks, note=f"trial {trial.number} of {old.name}"))
    return fitting


# The plan that a study recommends


def best(project: Project, folder: Path, out: Path, name: str = "", number: int | None = None) -> dict[str, Any]:
    """Write the recommended plan (or that of a trial by number) as a file that `run --plan` takes; what is recommended, and why."""
    with _study_to_read(project, folder, name) as study:
        verdict = finals.read_verdict(study.folder)
        trials = study.search.trials()
        chosen = DEFAULT if verdict is None or verdict.recommended == "default" or verdict.trial is None else verdict.trial
        chosen = chosen if number is None else find(trials, number).number
        plan = study.written(find(trials, chosen))
        sentence = (
            verdict.sentence if verdict is not None else "There is no verdict yet, so the default plan stands: tunesmith tune goes on."
        )
        if number is not None:
            sentence = f"Trial {number}, as it was asked for. {sentence}"
        write_plan(out, plan, f"{sentence}\nStudy {study.search.name}, trial {chosen}: tunesmith run --plan {out.name}")
        return {
            "study": study.search.name,
            "trial": chosen,
            "recommended": "default" if chosen == DEFAULT else "trial",
            "sentence": sentence,
            "written": str(out),
            "train": msgspec.to_builtins(plan),
        }


@contextmanager
def _study_to_read(project: Project, folder: Path, name: str) -> Iterator[Study]:
    """A study that is there, with the materials to make plans from; it is not begun where it is not there."""
    with opened(project, folder, Silent()) as context:
        search = Search.open(database(context), name or project.name)
        if context.runner.peek("tokens") is None:
            raise TunesmithError("the rows of the study are no longer there as they were", remedy="tunesmith tune prepares them again")
        yield Study(context, StudyMaterials(context, project.tune.rows), search, project.tune)
