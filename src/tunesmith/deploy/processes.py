"""Worker processes beside a server: started, started again when they die, ended with it; knows nothing about what they work on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_CALM_S = 5.0  # one that dies sooner is started again only after this long


class Processes:
    """`count` processes as `start` starts them. Use as a context; its end asks them to stop, and waits."""

    def __init__(self, module: str, words: Sequence[str], count: int, log: Path, *, told: str = "") -> None:
        self._module, self._words, self._count, self._log, self._told = module, words, count, log, told
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
        return start(self._module, self._words, self._log, told=self._told)


def start(module: str, words: Sequence[str], log: Path, *, told: str = "") -> subprocess.Popen[bytes]:
    """`python -m MODULE WORDS`, which adds its words to `log` and reads `told` from standard input, where no list of processes shows it."""
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", module, *words], stdin=subprocess.PIPE, stdout=out, stderr=out)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # one that died already read nothing
        process.stdin.write(told.encode())
    return process
