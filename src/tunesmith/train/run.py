"""The folder of one training run: who it belongs to, its resolved plan, its events. Knows nothing about models or arithmetic.

run.json        identity (plan + data + base), the plan as given and as resolved with reasons, the environment
events.jsonl    everything that was reported, one JSON object a line
checkpoints/    checkpoint-N/
fallen.json     the steps that went wrong, where the run fell back to, and why
adapter/        the result in peft's format (model/ after full training)
result.json     written last
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import msgspec
import numpy as np

from tunesmith.core.atomic import write_atomic
from tunesmith.core.digests import files_digest
from tunesmith.core.errors import TrainingError
from tunesmith.core.types import Record, digest
from tunesmith.train.facts import SETTINGS, WEIGHTS, environment, gather, header, require_same_tokens
from tunesmith.train.items import Item
from tunesmith.train.plan import Facts, Plan, Reason, ResolvedPlan
from tunesmith.train.resolve import resolve

OnEvent = Callable[[dict[str, Any]], None]


class Paused(Exception):
    """Training was asked to stop and did, after `step`; the same call goes on from there."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"paused after step {step}; the same call continues")


class Ended(Protocol):
    """What every result of a run says."""

    @property
    def identity(self) -> str: ...
    @property
    def artifact(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def seconds(self) -> float: ...


Result = TypeVar("Result", bound=Ended)


class Manifest(Record, frozen=True):
    """What run.json holds. Same identity, environment and threads: same bytes."""

    identity: str
    plan: Plan
    data: str
    base: str
    resolved: ResolvedPlan
    reasons: tuple[Reason, ...]
    facts: Facts
    environment: dict[str, str]


P = ParamSpec("P")
T = TypeVar("T")


def alone(work: Callable[P, T]) -> Callable[P, T]:
    """A training that holds the folder `out` while it lasts: two processes in one folder would take each other's steps for their own. The
    kernel lets go of it when the process dies. Raises TrainingError when another process has it."""

    @functools.wraps(work)
    def held(*args: P.args, **kwargs: P.kwargs) -> T:
        out = Path(cast(Path, kwargs["out"]))
        out.mkdir(parents=True, exist_ok=True)
        if os.name != "posix":
            return work(*args, **kwargs)
        import fcntl

        place = os.open(out, os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                remedy = "wait for it, or train into another folder"
                raise TrainingError("another process trains into this folder", where=str(out), remedy=remedy) from error
            return work(*args, **kwargs)
        finally:
            os.close(place)

    return held


def data_digest(items: Sequence[Item]) -> str:
    """Names the items as the model sees them: tokens, masks and labels, in order."""
    h = hashlib.blake2b(digest_size=16)
    for item in items:
        h.update(f"{len(item.rows)} {item.label};".encode())
    for row in (row for item in items for row in item.rows):
        h.update(len(row.ids).to_bytes(8, "little"))
        h.update(np.ascontiguousarray(row.ids, "<i4").tobytes())
        h.update(np.ascontiguousarray(row.mask, np.uint8).tobytes())
    return h.hexdigest()


def base_digest(base: Path) -> str:
    """Names a base: its configuration, the weights' headers, and samples of the weights (1 MB every 64 MB)."""
    try:
        h = hashlib.blake2b((base / "config.json").read_bytes(), digest_size=16)
    except OSError as error:
        raise TrainingError(f"no model: {error}", where=str(base), remedy="give the folder of a prepared base") from error
    for path in sorted(base.glob("*.safetensors")):
        h.update(json.dumps(header(path), sort_keys=True).encode())
        with path.open("rb") as file:
            for offset in range(0, path.stat().st_size, 64 << 20):
                file.seek(offset)
                h.update(file.read(1 << 20))
    return h.hexdigest()


def adapter_digest(folder: Path) -> str:
    """Names an adapter in peft's format by its two files. Raises TrainingError when it is none."""
    try:
        return files_digest(folder / name for name in (SETTINGS, WEIGHTS))
    except OSError as error:
        raise TrainingError(
            f"no adapter to start from: {error}", where="train.adapter.start_from", allowed=f"{SETTINGS}, {WEIGHTS}"
        ) from error


def reported(out: Path) -> list[dict[str, Any]]:
    """What the run in a folder reported so far."""
    path, events = out / "events.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed process may be cut
    return events


@dataclass(slots=True)
class RunFolder:
    """One run's folder, open for writing."""

    out: Path
    manifest: Manifest
    on_event: OnEvent
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return self.manifest.identity

    def emit(self, event: str, **values: Any) -> None:
        """Report one event to the caller and to events.jsonl."""
        record = {"event": event, **values}
        with (self.out / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.on_event(record)

    def rewind(self, step: int) -> None:
        """Forget the events after `step`, which are reported again; that the run fell back is not forgotten."""
        earlier = [event for event in reported(self.out) if event.get("step", 0) <= step or event["event"] == "fell_back"]
        write_atomic(self.out / "events.jsonl", "".join(f"{json.dumps(event)}\n" for event in earlier))

    def finished(self, kind: type[Result]) -> Result | None:
        """The result of a run that has ended and whose artifact is still there, else None."""
        try:
            done = msgspec.json.decode((self.out / "result.json").read_bytes(), type=kind)
        except (OSError, msgspec.DecodeError):
            return None
        return done if done.identity == self.identity and Path(done.artifact).exists() else None

    def finish(self, result: Result) -> Result:
        """Keep the result, which ends the run."""
        write_atomic(self.out / "result.json", msgspec.json.format(msgspec.json.encode(result)))
        self.emit("finished", step=result.steps, seconds=result.seconds)
        return result


def open_run(
    plan: Plan, rows: Sequence[Item], validation: Sequence[Item], base: Path, out: Path, on_event: OnEvent, *, beside: str | None = None
) -> RunFolder:
    """Start a run in `out`, or take over the one that began there: its resolved plan holds, so that "auto" cannot change underway.

    `beside` names what the rows come with that is no token of theirs. Raises TrainingError when `out` belongs to another plan, other data
    or another base.
    """
    data, weights = digest(data_digest(rows), data_digest(validation), *([] if beside is None else [beside])), base_digest(base)
    if plan.adapter.start_from is not None:
        weights = digest(weights, adapter_digest(Path(plan.adapter.start_from)))
    if plan.distillation.teacher is not None:
        require_same_tokens(base, Path(plan.distillation.teacher))
        weights = digest(weights, base_digest(Path(plan.distillation.teacher)))
    identity = digest(plan, data, weights)
    path = out / "run.json"
    if path.exists():
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except msgspec.DecodeError as error:
            raise TrainingError(f"run.json cannot be read: {error}", where=str(path), remedy="train into another folder") from error
        if manifest.identity != identity:
            raise TrainingError(
                f"the folder holds another run ({_difference(manifest, plan, data, weights)})",
                where=str(out),
                remedy="train into another folder, or remove this one",
            )
        return RunFolder(out, manifest, on_event)
    facts = gather(plan, rows, base)
    resolved, reasons = resolve(plan, facts)
    manifest = Manifest(
        identity=identity, plan=plan, data=data, base=weights, resolved=resolved, reasons=reasons, facts=facts, environment=environment()
    )
    write_atomic(path, msgspec.json.format(msgspec.json.encode(manifest)))
    return RunFolder(out, manifest, on_event)


def _difference(manifest: Manifest, plan: Plan, data: str, base: str) -> str:
    old, new = msgspec.to_builtins(manifest.plan), msgspec.to_builtins(plan)
    parts = [
        f"{key}: {old.get(key, 'default')} there, {new.get(key, 'default')} here"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    parts += ["other rows"] * (manifest.data != data)
    if manifest.base != base:
        others = [" adapter to start from"] * (manifest.plan.adapter.start_from is not None)
        others += [" teacher"] * (manifest.plan.distillation.teacher is not None)
        parts.append(" or".join(["another base", *others]))
    return "; ".join(parts)
