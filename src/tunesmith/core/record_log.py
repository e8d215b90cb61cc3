"""A file of records that only grows, a line each, on disk before `append` returns; every line names its own content, so that one changed
letter is found. Knows nothing about what the records say.

A half-written last line (a crash) was never acknowledged: it is passed over, and taken off by the next `append`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from tunesmith.core.errors import StoreError
from tunesmith.core.types import Record, canonical, digest

R = TypeVar("R", bound=Record)
_DIGEST = "digest"  # the key beside a record's own; a line of an older version has none


def append(log: Path, record: Record) -> None:
    """Add a record; it is on disk when this returns. Raises OSError when it cannot be."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab+") as stream:
        _cut_half_line(stream)
        stream.write(canonical({**msgspec.to_builtins(record), _DIGEST: digest(record)}) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def records(log: Path, kind: type[R]) -> Iterator[R]:
    """The records in their order; none where the file is not there. Raises StoreError naming a line that is damaged."""
    if not log.exists():
        return
    lines = log.read_bytes().split(b"\n")
    for number, raw in enumerate(lines[:-1], 1):
        if not raw:
            continue
        try:
            record = _record(raw, kind)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            raise _damaged(log, number, str(error)) from error
        if record is None:
            raise _damaged(log, number, "it is not what was written")
        yield record


def _record(raw: bytes, kind: type[R]) -> R | None:
    """The record of a line; None where the digest beside it is another one's."""
    fields: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    named = fields.pop(_DIGEST, None)
    record = msgspec.convert(fields, kind)
    return record if named in (None, digest(record)) else None


def _damaged(log: Path, number: int, why: str) -> StoreError:
    remedy = "put the file back from a copy, or take the line out: what it said is then forgotten"
    return StoreError(f"a damaged line: {why}", where=f"{log}:{number}", remedy=remedy)


def _cut_half_line(stream: IO[bytes]) -> None:
    size = end = stream.seek(0, os.SEEK_END)
    while end > 0:
        stream.seek(end - 1)
        if stream.read(1) == b"\n":
            break
        end -= 1
    if end < size:
        stream.truncate(end)
    stream.seek(0, os.SEEK_END)
