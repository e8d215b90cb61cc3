"""A server of another program as a process of ours: started on a free port of this machine, asked whether it is well, started again when it
is not, and ended with us. Knows nothing about models or what it answers.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.core.errors import SourceUnavailable

_log = logging.getLogger("tunesmith.models")
GUARDIAN = Path(__file__).with_name("guardian.py")  # started as a file: as a module it would import the package first
_LOOK_S = 0.2  # how soon is seen that a process has ended
_LOG_LINES = 6  # of its log stand in an error


@dataclass(frozen=True, slots=True)
class Care:
    """How a server is looked after, in seconds: it must be well within `ready_s` of its start and is asked every `every_s`; after
    `failures` wrong answers in a row, each awaited for `answer_s`, it is started again after pauses that
    double from `pause_s` to `longest_pause_s` and begin anew once it was well for `longest_pause_s`. At its end it has `grace_s`."""

    ready_s: float = 900.0
    every_s: float = 5.0
    answer_s: float = 10.0
    failures: int = 3
    pause_s: float = 1.0
    longest_pause_s: float = 60.0
    grace_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started: its words, where `{port}` stands for the port, what its environment has besides, and where it says that it
    is well."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"


class ChildServer:
    """One server, called `name` in the log. `on_ready` is called in a thread each time that it is well after a start, before it counts as
    ready; what it raises is a start that failed. Its output is added to the file `log`; `starts` counts how often it was started."""

    def __init__(
        self, name: str, launch: Launch, log: Path, *, care: Care | None = None, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        self.name, self.log, self.port = name, log, _free_port()
        self.starts = 0
        self._launch, self._care, self._on_ready = launch, care or Care(), on_ready
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping, self._ready, self._settled = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._why = "it was not started"

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ready(self) -> bool:
        """Whether it is well."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """The process that guards it, while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it, once; returns at once."""
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._look_after, name=f"engine {self.name}", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Start it and wait until it is well. Raises SourceUnavailable with the end of its log when its first start fails."""
        self.start()
        while not self._ready.wait(0.05):
            if self._settled.is_set() and not self._ready.is_set():
                raise SourceUnavailable(f"'{self.name}' does not start: {self._why}", where=str(self.log), remedy=self._tail())

    def stop(self) -> None:
        """End it: asked first, killed after a while; returns when it is gone."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _look_after(self) -> None:
        pause, care = 0.0, self._care
        while not self._stopping.wait(pause):
            started = time.monotonic()
            self._process = process = self._spawn()
            self.starts += 1
            if self._came_up(process):
                self._why = ""
                self._ready.set()
                _log.info("'%s' is ready at %s", self.name, self.url)
            self._settled.set()
            if self._ready.is_set():
                self._why = self._until_unwell(process)
                self._ready.clear()
            self._end(process)
            if self._stopping.is_set():
                break
            lived = time.monotonic() - started
            pause = care.pause_s if pause == 0.0 or lived > care.longest_pause_s else min(2 * pause, care.longest_pause_s)
            _log.warning("'%s' %s; it is started again in %g s (%s)", self.name, self._why, pause, self.log)
        self._why = self._why or "it was stopped"
        self._settled.set()

    def _spawn(self) -> subprocess.Popen[bytes]:
        words = [word.replace("{port}", str(self.port)) for word in self._launch.words]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            command = [sys.executable, str(GUARDIAN), str(self._care.grace_s), *words]
            environment = {**os.environ, **self._launch.environment}
            # In a session of its own: a ctrl-C is for us, who let what is open end before the server does.
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment, start_new_session=True)

    def _came_up(self, process: subprocess.Popen[bytes]) -> bool:
        until = time.monotonic() + self._care.ready_s
        while not self._stopping.wait(min(0.1, self._care.every_s)):
            if (code := process.poll()) is not None:
                self._why = f"ended with code {code} before it was ready"
                return False
            if self._well():
                return self._told_ready()
            if time.monotonic() > until:
                self._why = f"was not ready within {self._care.ready_s:g} s"
                return False
        return False

    def _told_ready(self) -> bool:
        try:
            self._on_ready()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it must be ended and started again, and that be said
            self._why = f"is well, but {error}"
            return False
        return True

    def _until_unwell(self, process: subprocess.Popen[bytes]) -> str:
        """Why it is well no longer; returns when it is to end, too."""
        wrong, asked = 0, time.monotonic()
        while not self._stopping.wait(min(_LOOK_S, self._care.every_s)):
            if (code := process.poll()) is not None:
                return f"ended with code {code}"
            if time.monotonic() - asked < self._care.every_s:
                continue
            wrong = 0 if self._well() else wrong + 1
            asked = time.monotonic()
            if wrong >= self._care.failures:
                return f"gave no answer at {self._launch.health} {wrong} times"
        return "was stopped"

    def _well(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self._care.answer_s)
        try:
            connection.request("GET", self._launch.health)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End the guardian, which ends the server's whole group."""
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(self._care.grace_s + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _tail(self) -> str:
        lines = self.log.read_text("utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return " | ".join(line.strip() for line in lines[-_LOG_LINES:] if line.strip()) or "it wrote nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
