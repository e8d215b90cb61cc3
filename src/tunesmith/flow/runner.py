"""Stages that are done once: each is named by the hash of all its inputs, and its folder appears whole or not at all. Knows nothing
about what a stage does.

A stage that was killed finds its unfinished folder again and may continue in it; a finished one is never run twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import put_in_place, unfinished, write_atomic
from tunesmith.core.errors import StoreError
from tunesmith.core.memory import give_back
from tunesmith.core.progress import Progress
from tunesmith.core.seal import SEAL, damaged, seal
from tunesmith.core.types import digest
from tunesmith.store.store import Store

Output = dict[str, Any]
# What a stage does: fills the folder and returns a small JSON-able summary.
Step = Callable[[Path], Output]
_OWN = ("checkpoints", "answers.jsonl", "judge.jsonl")  # they carry digests of their own, or one for each line
_HASHED_AT_A_LOOK = 1 << 24  # bytes of a file
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class Stage:
    """What a stage is known by, without what it does. `inputs` is everything besides earlier stages that its result depends on. Raise
    `version` when the code changes what comes out."""

    name: str
    inputs: Any = None
    needs: tuple[str, ...] = ()
    version: int = 1
    about: str = ""


@dataclass(frozen=True)
class Done:
    """A finished stage: its digest, folder, summary, seconds, and whether it was already there."""

    name: str
    digest: str
    folder: Path
    output: Output
    seconds: float
    cached: bool


@dataclass
class Runner:
    """The stages of one project in their order, over one store. A stage's digest follows from its inputs and the digests of what it
    needs, never from results, so all of them are known before anything runs. One that was wished anew has how often among its inputs.
    Who only looks needs no `steps`."""

    store: Store
    project: str
    progress: Progress
    stages: Sequence[Stage]
    steps: Mapping[str, Step] = field(default_factory=dict)
    digests: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._name()

    def _name(self) -> None:
        anew = self._anew()
        for stage in self.stages:
            plain = self._plain(stage)
            self.digests[stage.name] = digest(plain, anew[plain]) if plain in anew else plain

    def _plain(self, stage: Stage) -> str:
        """What the stage is called the first time that it is done."""
        return digest(stage.name, stage.version, stage.inputs, [self.digests[name] for name in stage.needs])

    def _anew(self) -> dict[str, int]:
        """How often each stage was wished anew, by its first digest."""
        file = self.store.layout.anew
        known: dict[str, int] = msgspec.json.decode(file.read_bytes()) if file.is_file() else {}
        return known

    def begin_anew(self, name: str) -> None:
        """Forget what was begun of a stage. One that was finished gets another digest, and so does all that needs it: its result stays,
        since a deployment may answer with it, and nothing that was made of it is taken for made of the next one."""
        shutil.rmtree(unfinished(self.folder(name)), ignore_errors=True)
        if self.store.finished(self.digests[name]) is not None:
            plain, anew = self._plain(next(stage for stage in self.stages if stage.name == name)), self._anew()
            write_atomic(self.store.layout.anew, msgspec.json.encode({**anew, plain: anew.get(plain, 0) + 1}))
            self._name()

    def folder(self, name: str) -> Path:
        """Where the result of that stage lies (or will lie)."""
        return self.store.layout.stage(self.digests[name])

    def pin(self, digests: Mapping[str, str]) -> list[str]:
        """Look at these results from now on. Returns the stages that today's inputs would make anew."""
        others = [name for name in self.digests if digests.get(name, self.digests[name]) != self.digests[name]]
        self.digests |= {name: digests[name] for name in self.digests if name in digests}
        return others

    def peek(self, name: str) -> Done | None:
        """The stage's result if it is finished and all of it is still there and whole. Large files are only measured: who reads one looks
        at its digest, and so does `run`."""
        key = self.digests[name]
        stored, folder = self.store.finished(key), self.folder(name)
        if stored is None or not folder.is_dir() or damaged(folder, hashed_up_to=_HASHED_AT_A_LOOK):
            return None
        return Done(name, key, folder, stored["output"], stored["seconds"], cached=True)

    def run(self, name: str) -> Done:
        """The stage's result, computed now or found; whatever it needs comes first. One that lost a file, or has one that is no longer what
        was written, is done again from what is whole."""
        done = self.peek(name)
        if done is not None and not damaged(done.folder):
            return done
        stage = next(stage for stage in self.stages if stage.name == name)
        for needed in stage.needs:
            self.run(needed)
        return self._compute(stage)

    def _compute(self, stage: Stage) -> Done:
        key, folder = self.digests[stage.name], self.folder(stage.name)
        work = unfinished(folder)
        self._go_on(stage.name, folder, work)
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.progress.say(f"{stage.name}: {stage.about}" if stage.about else stage.name)
        started = time.monotonic()
        try:
            output = self.steps[stage.name](work)
            give_back(cycles=True)  # or the next stage's peak comes on top of this one's
            seal(work, leave_out=_OWN)
            put_in_place(work, folder)
            seconds = time.monotonic() - started
            needs = [self.digests[name] for name in stage.needs]
            self.store.finish(key, project=self.project, name=stage.name, seconds=seconds, output=output, needs=needs)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise StoreError(
                f"stage '{stage.name}' cannot write: {error.strerror or error}",
                where=str(work),
                remedy="free space on the disk; what is finished is kept, run again to continue",
            ) from error
        return Done(stage.name, key, folder, output, seconds, cached=False)

    def _go_on(self, name: str, folder: Path, work: Path) -> None:
        """Begin a stage again that is damaged: what is whole of it is kept, as of one that was killed."""
        wrong = damaged(folder) if folder.is_dir() else []
        if not wrong:
            return
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        self.progress.say(f"{name}: {wrong[0]}{more} is gone or damaged since it was made; done again from what is whole")
        shutil.rmtree(work, ignore_errors=True)
        folder.rename(work)
        (work / SEAL).unlink()
        for path in wrong:
            top = work / Path(path).parts[0]
            shutil.rmtree(top) if top.is_dir() else top.unlink(missing_ok=True)


class Busy(StoreError):
    """Another process works on the same folder."""


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the project's lock; raises Busy when another process works on it. The kernel frees it when the holder dies."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise Busy(
                f"another run works here (process {file.read().strip() or 'unknown'})", where=str(folder), remedy="wait for it, or stop it"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_busy(folder: Path) -> bool:
    """Whether a process holds the project's lock now."""
    import fcntl

    try:
        with (folder / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False
