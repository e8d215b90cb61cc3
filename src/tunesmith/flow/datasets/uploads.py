"""Files that people bring through a page, kept in the project's folder so that rows can say which file and line they came from; knows
nothing about formats."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from typing import IO

from tunesmith.core.atomic import atomic_file
from tunesmith.core.digests import file_digest
from tunesmith.core.errors import NotFound, UsageError

_FOLDER = "imports"


def keep_upload(folder: Path, filename: str, stream: IO[bytes], *, most: int | None = None) -> Path:
    """Keep what `stream` has in `imports/` of a project; another file of that name gets a number. The same file twice is kept once. Raises
    UsageError for an empty file, and above `most` bytes."""
    name = _plain(filename)
    stream.seek(0, 2)
    size = stream.tell()
    stream.seek(0)
    if not size:
        raise UsageError(f"'{name}' is empty", allowed="a file with rows")
    if most is not None and size > most:
        raise UsageError(f"'{name}' has {size:,} bytes", allowed=f"{most:,} at most", remedy="tunesmith data import FILE takes any size")
    place = folder / _FOLDER
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / f".{uuid.uuid4().hex}"
    with atomic_file(fresh) as out:
        shutil.copyfileobj(stream, out)
    digest = file_digest(fresh)
    for number in range(1, 10_000):
        target = place / name if number == 1 else place / f"{Path(name).stem}-{number}{Path(name).suffix}"
        if not target.exists():
            fresh.replace(target)
            return target
        if file_digest(target) == digest:
            fresh.unlink()
            return target
    fresh.unlink()
    raise UsageError(f"there are 10,000 files called '{name}'", remedy="give it another name")


def upload_of(folder: Path, name: str) -> Path:
    """A file that was kept, by its name. Raises NotFound."""
    there = folder / _FOLDER / name
    if _plain(name) != name or not there.is_file():
        raise NotFound(f"no file '{name[:100]}' was brought here", remedy="choose it again")
    return there


def _plain(filename: str) -> str:
    """The last part of a name as a name of a file: letters, digits, dots and dashes, so that it is no pattern and no path."""
    last = re.split(r"[/\\]", filename)[-1]
    return re.sub(r"[^\w.-]+", "_", last)[-120:].lstrip(".") or "rows.jsonl"
