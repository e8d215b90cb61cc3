"""Which plan a command looks at: that of the last run, as it was made, or the file as it is written now. Runs nothing, and changes nothing
but the list of runs."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.config import parse_overrides
from tunesmith.core.errors import ConfigError
from tunesmith.flow.project import DEFAULT_FILE, Project, load_project, open_store
from tunesmith.store.runs import Run, Runs, without_secrets
from tunesmith.store.store import Store

AS_WRITTEN = "--as-written looks at the file alone"


@dataclass(frozen=True)
class View:
    """A project as a command looks at it. `run` is the run whose stages are looked at; without one it is the file, changed by `given`."""

    project: Project
    folder: Path
    file: str
    run: Run | None = None
    given: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """What makes the plan another than the file's."""
        return self.run.overrides if self.run else without_secrets(self.given)

    def text(self, changed: Sequence[str] = ()) -> str:
        """In words, which plan this is; `changed` names the stages that today's file would make anew."""
        changes = f" with {shlex.join(self.overrides)}" if self.overrides else ""
        if self.run is None:
            return f"looking at {self.file}{changes or ' as it is written'}"
        when = datetime.datetime.fromtimestamp(self.run.created).isoformat(" ", "minutes")
        ended = "" if self.run.finished else ", which has not ended"
        since = f"; {self.file} or its rows have changed since: a run would do {', '.join(changed)} anew" if changed else ""
        return f"looking at the run of {when}{changes}{ended}{since} ({AS_WRITTEN})"

    @property
    def again(self) -> str:
        """The command that does what waits."""
        place = [] if Path(self.file) == DEFAULT_FILE else ["--config", self.file]
        return shlex.join(["tunesmith", "run", *place, *self.overrides])

    def summary(self, changed: Sequence[str] = ()) -> dict[str, Any]:
        """The same for programs."""
        run = self.run.id if self.run else None
        return {"run": run, "overrides": list(self.overrides), "changed": list(changed), "text": self.text(changed)}


def view(config: Path, given: Sequence[str] = (), *, as_written: bool = False, whole: bool = False, beside: Sequence[str] = ()) -> View:
    """The project as the last run was made; as the file has it where there was none, or with `as_written`, or changed by `given` words.

    `whole` prefers the last run that went to its end over one that was interrupted or that only trained. `beside` are overrides of keys
    that change no stage. Raises ConfigError as `load_project`, and when the run's own overrides no longer fit the file.
    """
    folder, file = config.resolve().parent, str(config)
    project = load_project(config, [*given, *beside])
    if given or as_written:
        return View(project, folder, file, given=tuple(given))
    with closing(open_store(project, folder)) as store:
        runs = Runs(store).listed(project.name)
    finished = [run for run in runs if run.finished and "compare" in run.digests] if whole else []
    run = next(iter([*finished, *runs]), None)
    if run is None or not run.overrides:
        return View(project, folder, file, run)
    try:
        return View(load_project(config, [*run.overrides, *beside]), folder, file, run)
    except ConfigError as error:
        raise ConfigError(
            f"the last run's {shlex.join(run.overrides)} no longer fits the file: {error.what}",
            where=error.where,
            allowed=error.allowed,
            remedy=AS_WRITTEN,
        ) from error


def last_view(project: Project, folder: Path, store: Store) -> View:
    """The stages of the last run that went to its end, else of the last one, for who looks at rows; of the plan where there was none."""
    runs = Runs(store).listed(project.name)
    whole = [run for run in runs if run.finished and "compare" in run.digests]
    return View(project, folder, str(DEFAULT_FILE), next(iter([*whole, *runs]), None))


def written_name(config: Path, overrides: Sequence[str]) -> str:
    """The project's name as the file has it, under which its runs are listed; overrides may give the run another."""
    own = [f"--{'.'.join(key)}={value}" for key, value in _texts(overrides) if key != ("name",)]
    return load_project(config, own).name


def _texts(overrides: Sequence[str]) -> list[tuple[tuple[str, ...], str]]:
    """Each override's key and its value as it was typed."""
    left, texts = list(overrides), []
    while left:
        word = left.pop(0)
        words = [word] if "=" in word else [word, *left[:1]]
        left = left if "=" in word else left[1:]
        ((key, _),) = parse_overrides(words)
        texts.append((key, word.partition("=")[2] if "=" in word else words[1]))
    return texts
