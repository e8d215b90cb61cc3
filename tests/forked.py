"""Processes for tests that kill, or that look from outside: forks of one process that has imported what is heavy, so that each costs a moment
and not the seconds in which a new Python imports torch, transformers and peft. Knows nothing about what is run."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import until

# Imported once, before the first fork. Only imports: no thread is started, so that a fork is a whole process.
HEAVY = [
    "torch",
    "peft",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "openai",
    "scipy.stats",
    "uvicorn",
    "tunesmith.api.app",
    "tunesmith.flow.jobs.worker",
    "tunesmith.flow.pipeline.run",
    "tunesmith.models.local",
    "tunesmith.nets.decoder",
    "tunesmith.train.adapters",
    "tunesmith.train.loop",
]


@dataclass
class Running:
    """A process that was started; what it says on standard output and error is in files."""

    process: multiprocessing.process.BaseProcess
    folder: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text("utf-8", "replace")

    def alive(self) -> bool:
        return self.process.is_alive()

    def until_err(self, start: str) -> None:
        """Until a line on standard error begins so."""
        until(lambda: any(line.startswith(start) for line in self.err.splitlines()), alive=self.alive, progress=lambda: self.err)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Send the signal; the exit code that follows."""
        if self.alive():
            os.kill(self.pid, how)
        return self.wait()

    def wait(self) -> int:
        """The exit code, minus the signal's number where one ended it."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def start(function: Callable[..., Any], *arguments: Any, cwd: Path | None = None) -> Running:
    """Call a function of a module in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    folder = Path(tempfile.mkdtemp(prefix="forked"))
    (folder / "out").touch(), (folder / "err").touch()
    process = context.Process(target=_run, args=(function, arguments, cwd, folder, dict(os.environ)))
    process.start()
    return Running(process, folder)


def command(words: Sequence[str], cwd: Path) -> Running:
    """`tunesmith WORDS` in a folder."""
    return start(_command, list(words), cwd=cwd)


def script(code: str, *words: str) -> Running:
    """Python source as a program; `words` are its arguments."""
    return start(_script, code, words)


def _run(function: Callable[..., Any], arguments: Sequence[Any], cwd: Path | None, folder: Path, environment: dict[str, str]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    gc.freeze()  # what is imported stays: whoever collects garbage need not look through it
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    function(*arguments)


def _command(words: list[str]) -> None:
    from tunesmith.cli import main

    sys.argv = ["tunesmith", *words]
    main()


def _script(code: str, words: Sequence[str]) -> None:
    sys.argv = ["-c", *words]
    exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})
