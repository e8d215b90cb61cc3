"""Worker processes beside a server: started, started again when they die, ended with it; and forks of a worker, for work that may crash.
Knows nothing about what they work on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

_CALM_S = 5.0  # one that dies sooner is started again only after this long


class Processes:
    """`count` processes as `start` starts them. Use as a context; its end asks them to stop, and waits."""

    def __init__(self, module: str, words: Sequence[str], count: int, log: Path, *, stdin: str = "") -> None:
        self._module, self._words, self._count, self._log, self._stdin = module, words, count, log, stdin
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)

    def __enter__(self) -> Processes:
        if self._count:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._count:
            self._thread.join()

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [process.pid for process in self._running if process.poll() is None]

    def _watch(self) -> None:
        # The processes are children of this thread for PR_SET_PDEATHSIG, so it lives as long as they do.
        started = [0.0] * self._count
        self._running = [self._start() for _ in started]
        while not self._stopping.wait(0.2):
            for i, process in enumerate(self._running):
                if process.poll() is not None and time.monotonic() - started[i] > _CALM_S:
                    started[i] = time.monotonic()
                    self._running[i] = self._start()
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return start(self._module, self._words, self._log, stdin=self._stdin)


def start(module: str, words: Sequence[str], log: Path, *, stdin: str = "") -> subprocess.Popen[bytes]:
    """`python -m MODULE WORDS`, adding its words to `log`; `stdin` is what it reads there, where no list of processes shows it."""
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", module, *words], stdin=subprocess.PIPE, stdout=out, stderr=out)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # one that died already read nothing
        process.stdin.write(stdin.encode())
    return process


def can_fork() -> bool:
    """Whether a fork of this process is a whole one: it has no other thread, whose locks nobody would open in the child."""
    return sys.platform == "linux" and threading.active_count() == 1


class Fork:
    """A child that calls `function` with what this process has imported, its output added to `log`; asked like a Popen.

    A new Python would first import torch and transformers for seconds. The child never returns into its parent's code and closes nothing
    that it shares with it, such as a connection to a database: it ends by `os._exit` with what `function` returned.
    """

    def __init__(self, function: Callable[[], int], log: Path) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_the_child(function, log)

    def poll(self) -> int | None:
        """The exit code, minus the signal's number where one ended it; None while it runs."""
        return self._waited(os.WNOHANG)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self._waited(0)
        assert code is not None
        return code

    def _waited(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _be_the_child(function: Callable[[], int], log: Path) -> NoReturn:
    code = 1
    try:
        with log.open("ab") as out:
            for number in (1, 2):
                os.dup2(out.fileno(), number)
        code = function()
    except BaseException:  # noqa: BLE001 - whatever it is, it ends here and not in the parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
