"""How long work tells a person where it is; knows nothing about the work. On a terminal there are bars, in a pipe plain lines, one at
least every `EVERY_S` seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from types import TracebackType
from typing import Any, Protocol

from tunesmith.core.terminal import printable

EVERY_S = 30.0


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

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._beat = _Beat(every_s)

    def __enter__(self) -> Terminal:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._live = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        else:
            self._beat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._beat.stop()
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """One line that stays; finished bars go."""
        text = printable(text)
        self._clear()
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            self._beat.say(text)

    def bar(self, label: str, done: float, total: float) -> None:
        """Move (or start) the bar with that label."""
        label = printable(label)
        if self._live is None:
            self._beat.move(label, done, total)
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


class _Beat:
    """Lines for a pipe: what is said, and after so many silent seconds where the work is."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._started = self._last = time.monotonic()
        self._at, self._moved = "", (self._started, 0.0)

    def start(self) -> None:
        self._last = time.monotonic()
        threading.Thread(target=self._run, name="progress", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def say(self, text: str) -> None:
        with self._lock:
            self._at = f"still at: {text.strip()}"
            self._print(text)

    def move(self, label: str, done: float, total: float) -> None:
        with self._lock:
            if not self._at.startswith(f"{label}: "):
                self._moved = (time.monotonic(), done)
            began, first = self._moved
            left = (time.monotonic() - began) * (total - done) / (done - first) if total > done > first else 0.0
            of = f" of {total:,.0f} ({done / total:.0%})" if total else ""
            self._at = f"{label}: {done:,.0f}{of}" + (f", about {_spell(left)} left" if left else "")

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        print(text, file=sys.stderr, flush=True)

    def _run(self) -> None:
        while not self._stopping.wait(max(0.01, self._last + self.every_s - time.monotonic())):
            with self._lock:
                if time.monotonic() - self._last >= self.every_s and not self._stopping.is_set():
                    self._print(f"  … {self._at or 'working'}, {_spell(time.monotonic() - self._started)} so far")


def _spell(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


# Read by the libraries when they are loaded. Threads that wait by spinning collapse when another program wants the same cores; the
# progress bars of others would break ours.
_QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def hush() -> None:
    """Keep the libraries' own bars and warnings off the terminal and out of logs; for the start of a process."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
