"""The project that the pages show, as it is now: read again when its file has changed or a run has begun or ended. Knows no page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from tunesmith.core.progress import Silent
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.datasets.versions import Datasets
from tunesmith.flow.evaluation.run import Bench
from tunesmith.flow.last_run import view
from tunesmith.models.weights import Weights
from tunesmith.store.runs import Runs
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.flow.project import Project


class Workplace:
    """One project with its opened store. What it gives is shared by requests and only looked at."""

    def __init__(self, file: Path, served: ProjectContext) -> None:
        self._file, self._served, self._lock = file, served, Lock()
        self._known: tuple[object, ProjectContext] = (None, served)

    @property
    def store(self) -> Store:
        """The store that the server has opened."""
        return self._served.store

    @property
    def project(self) -> Project:
        """The project as it was last read."""
        return self._known[1].project

    def context(self) -> ProjectContext:
        """The project at its last run. Raises ConfigError for a file that is wrong by now."""
        newest = Runs(self.store).newest()
        stamp = self._file.stat().st_mtime_ns if self._file.is_file() else 0
        now = (stamp, None if newest is None else (newest.id, newest.finished))
        with self._lock:
            if self._known[0] != now:
                self._known = (now, self._again() if stamp else self._served)
            return self._known[1]

    def _again(self) -> ProjectContext:
        seen = view(self._file, whole=True)
        return replace(self._served, project=seen.project, view=seen)

    @property
    def file(self) -> Path:
        """The project's file."""
        return self._file

    def datasets(self) -> Datasets:
        """The data of the project."""
        at = self.context()
        return Datasets(at.folder, at.project, Silent(), at.catalog, context=at)

    def bench(self) -> Bench:
        """Where its evaluations are kept; a model that is asked for one leaves the memory with it."""
        at = self.context()
        return Bench(self.store, replace(at.models, weights=Weights()), Silent(), self.datasets())
