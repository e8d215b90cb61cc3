"""Worker processes beside a server: started, started again when they die, ended with it; knows nothing about what they work on."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_CALM_S = 5.0  # one that dies sooner is started again only after this long


class Processes:
    """`count` processes of `python -m MODULE WORDS`. Use as a context; its end asks them to stop, and waits."""

    def __init__(self, module: str, words: Sequence[str], count: int, log: Path | None = None) -> None:
        self._command = [sys.executable, "-m", module, *words]
        self._count, self._log = count, log
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
        if self._log is None:
            return subprocess.Popen(self._command)
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log)
