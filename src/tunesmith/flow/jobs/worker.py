"""The worker process: takes leases of fine-tuning jobs and runs each in a process of its own. Knows nothing about what a job does.

    python -m tunesmith.flow.jobs.worker --store .tunesmith

A child is a fork of its worker, which has imported torch once, so that a job begins at once. The worker shows that it lives while its child
trains. A child that dies counts as a try of that job; a worker that dies takes its child with it and its leases run out, which counts as
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tunesmith.core.errors import StoreError
from tunesmith.core.progress import hush
from tunesmith.core.terminal import printable
from tunesmith.deploy.processes import Fork, can_fork, start
from tunesmith.evaluate import sandbox
from tunesmith.flow.jobs.reading import folder_of
from tunesmith.flow.jobs.run import run_job
from tunesmith.flow.runner import Busy
from tunesmith.models import trust
from tunesmith.store.jobs import Jobs, Lease, Stopped
from tunesmith.store.store import Store

MODULE = "tunesmith.flow.jobs.worker"
_LOG_TAIL = 2000
_HEAVY = ("torch", "peft", "transformers.models.auto.modeling_auto", "tunesmith.train.loop", "tunesmith.train.grpo")
_BUSY = 75  # the exit code of a child that found its job's folder held by another process (sysexits' EX_TEMPFAIL)
_LOOK_S = 0.5  # how often a worker looks whether its job was cancelled


class Worker:
    """Works on one job at a time. `isolated` runs each in a child process; without it a crash would take the caller along."""

    def __init__(
        self,
        store: Store,
        *,
        lease_s: float = 30.0,
        poll_s: float = 0.5,
        per_project: int | None = None,
        threads: int | None = None,
        isolated: bool = True,
    ) -> None:
        self.store, self.lease_s, self.poll_s, self.per_project = store, lease_s, poll_s, per_project
        self.threads, self.isolated = threads, isolated
        self.stopping = threading.Event()

    def run(self) -> None:
        """Take jobs until `stopping` is set."""
        while not self.stopping.is_set():
            try:
                busy = self.once()
            except StoreError as error:  # a full disk, a database that is away for a moment
                print(printable(str(error)), file=sys.stderr, flush=True)
                busy = False
            if not busy:
                self.stopping.wait(self.poll_s)

    def once(self) -> bool:
        """Take one job and work on it to its end; False when none waits."""
        lease = Jobs(self.store).lease(seconds=self.lease_s, per_project=self.per_project)
        if lease is None:
            return False
        try:
            failure = self._child(lease) if self.isolated else self._here(lease)
            if failure is not None and not self.stopping.is_set():
                lease.crashed(failure)
            else:
                lease.release()
        except Busy:
            lease.wait()
        except Stopped:
            lease.release()
        return True

    def _here(self, lease: Lease) -> str | None:
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.lease_s / 3):
                try:
                    lease.beat()
                except (Stopped, StoreError):
                    return

        threading.Thread(target=beat, name="lease", daemon=True).start()
        try:
            return attempt(lease, self.threads)
        finally:
            ended.set()

    def _child(self, lease: Lease) -> str | None:
        """Run the job in a child; None when it ended well, else the last words of its log."""
        folder = folder_of(self.store, lease.job)
        folder.mkdir(parents=True, exist_ok=True)
        child = self._start(lease, folder / "log.txt")
        beaten = looked = time.monotonic()
        while child.poll() is None:
            if self.stopping.wait(0.05):
                child.terminate()
                child.wait()
            try:
                if time.monotonic() - beaten > self.lease_s / 3:
                    beaten = time.monotonic()
                    lease.beat()
                if time.monotonic() - looked > _LOOK_S:
                    looked = time.monotonic()
                    if lease.cancelled():
                        raise Stopped(f"{lease.job} is cancelled")
            except BaseException:  # the job is no longer ours, or the store is away: the child need not end its step
                child.kill()
                child.wait()
                raise
        code = child.wait()
        if code == 0:
            return None
        if code == _BUSY:
            raise Busy(f"another process still works on {lease.job}", where=str(folder))
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}. {_tail(folder / 'log.txt')}".strip()

    def _start(self, lease: Lease, log: Path) -> Fork | subprocess.Popen[bytes]:
        """A fork of this process where that is whole, else a new Python."""
        words = [*place(self.store), "--job", lease.job, "--token", lease.token, "--lease", str(self.lease_s)]
        words += ["--threads", str(self.threads)] if self.threads else []
        if not can_fork():
            return start(MODULE, words, log, stdin=self.store.url)
        _import_heavy()
        return Fork(lambda: main(words, url=self.store.url), log)


def _import_heavy() -> None:
    """Import once what every job needs for seconds. A package that is missing is the job's to tell."""
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def place(store: Store) -> list[str]:
    """The words with which this process starts one of `MODULE` over the same store; it is told the `database` on its standard input."""
    return ["--store", str(store.folder), "--database", "-", "--blobs", store.blobs.place, "--parent", str(os.getpid()), *trusted()]


def trusted() -> list[str]:
    """The words that let another process trust what this one does: bases with code of their own, a weaker boundary for Python."""
    return [*(word for name in trust.allowed() for word in ("--trust", name)), "--python-boundary", sandbox.accepted()]


def attempt(lease: Lease, threads: int | None = None) -> str | None:
    """Run the job in this process; None when it ended (well, or with an error that was told), else the trace of what nobody expected.

    Raises Busy while the process that had the job before still holds its folder: it was stopped for longer than its lease, and ends as soon
    as it goes on.
    """
    try:
        run_job(lease, threads=threads)
    except Stopped:
        return None
    except Busy:
        raise
    except Exception:  # noqa: BLE001 - whatever it was, the job is tried again and its log has the trace
        traceback.print_exc()
        return traceback.format_exc(limit=-3)[-_LOG_TAIL:]
    return None


def _tail(log: Path) -> str:
    lines = log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace").strip().splitlines()
    return " ".join(lines[-3:])


def _die_with(parent: int) -> None:
    """Let the kernel end this process when its parent dies, and end now if it has died already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def main(words: Sequence[str] | None = None, *, url: str | None = None) -> int:
    """Run a worker, or (with --job) the child of one. `url`: the database, for which standard input is asked otherwise."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description="Works on fine-tuning jobs.")
    parser.add_argument("--store", required=True)
    parser.add_argument("--database", default=None, help="the store's database as a URL; - reads it from standard input")
    parser.add_argument("--blobs", default=None, help="the folder or the bucket of the store's files (default: in the store)")
    parser.add_argument("--lease", type=float, default=30.0, help="seconds after which a worker that is not heard of is thought dead")
    parser.add_argument("--per-project", type=int, default=None, help="jobs of one project at once, over all workers")
    parser.add_argument("--threads", type=int, default=None, help="threads that a job may use")
    parser.add_argument("--gpu", default=None, help="the one GPU that this worker's jobs see")
    parser.add_argument("--trust", action="append", default=[], help="a base that may run the code beside its weights")
    parser.add_argument("--python-boundary", choices=["kernel", "process"], default="kernel", help="the weakest one for Python graders")
    parser.add_argument("--parent", type=int, default=None, help="the process that starts this one: end when it ends")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--token", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = asked.gpu
    hush()
    os.umask(0o077)  # what it makes lies in the store, which is its owner's alone
    trust.allow(asked.trust)
    sandbox.accept(asked.python_boundary)
    if asked.parent is not None:
        _die_with(asked.parent)
    if asked.database == "-":
        asked.database = url or sys.stdin.readline().strip()
    store = Store.open(asked.store, url=asked.database, blobs=asked.blobs)
    if asked.job is not None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the run's folder survives any death; the parent gives the lease back
        try:
            return 1 if attempt(Lease(store, asked.job, asked.token, asked.lease), asked.threads) else 0
        except Busy:
            return _BUSY
    worker = Worker(store, lease_s=asked.lease, per_project=asked.per_project, threads=asked.threads)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stopping.set())
    worker.run()
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
