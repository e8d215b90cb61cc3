"""How long work tells a person where it is; knows nothing about the work. On a terminal there are bars, in a pipe plain lines."""

from __future__ import annotations

import os
import sys
import time
import warnings
from types import TracebackType
from typing import Any, Protocol

from tunesmith.core.terminal import printable


class Progress(Protocol):
    """What the flows tell: a sentence that stays, or how far something is (`total` 0: unknown)."""

    def say(self, text: str) -> None: ...

    def bar(self, label: str, done: float, total: float) -> None: ...


class Silent:
    """Tells nothing: for `--json` and for tests."""

    def say(self, text: str) -> None:
        """Nothing."""

    def bar(self, label: str, done: float, total: float) -> None:
        """Nothing."""


class Terminal:
    """Bars and sentences on standard error, so that standard output stays clean; bars only where it is a terminal, and drawn only while one
    moves: what a command asks at the terminal is not painted over."""

    def __init__(self) -> None:
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Terminal:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._live = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays; finished bars go."""
        text = printable(text)
        self._clear()
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def bar(self, label: str, done: float, total: float) -> None:
        """Move (or start) the bar with that label."""
        label = printable(label)
        if self._live is None:
            return
        if not self._tasks:
            self._live.start()
        if label not in self._tasks:
            self._tasks[label] = self._live.add_task(label, total=total or None)
        self._live.update(self._tasks[label], completed=done, total=total or None)
        if self._live.finished:
            self._clear()

    def _clear(self) -> None:
        """Take finished bars off the screen and stop drawing."""
        for task in self._tasks.values():
            self._live.remove_task(task)
        self._tasks.clear()
        if self._live is not None:
            self._live.stop()


# Read by the libraries when they are loaded. Threads that wait by spinning collapse when another program wants the same cores; the
# progress bars of others would break ours.
_QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def hush() -> None:
    """Keep the libraries' own bars and warnings off the terminal and out of logs; for the start of a process."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
