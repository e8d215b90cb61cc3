"""What keeps a folder from being used once it is damaged: the size and digest of each of its files, written when it was filled, looked at
when it is read. Knows nothing about what is in them.

`digests.txt` stands in the folder, a line a file: digest, size, path below it. A file is hashed once a process, and again when its size or
time has changed. A folder without it was made before there was one, and is taken as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.core.digests import file_digest
from tunesmith.core.errors import StoreError

SEAL = "digests.txt"
_DEPTH = 3  # how far above a file its seal may stand
_REMEDY = "make it again, or put a backup in its place; who changed it on purpose removes the line from digests.txt"
_seen: dict[str, tuple[tuple[int, int, int], str]] = {}


def seal(folder: Path, *, leave_out: tuple[str, ...] = (), only: tuple[str, ...] | None = None) -> None:
    """Write down what the folder's files are now. `leave_out` names folders and files in it that look after themselves, or grow; `only` are
    the files of a folder in which others may be somebody else's."""
    lines = [
        f"{file_digest(path)}  {path.stat().st_size}  {path.relative_to(folder).as_posix()}\n"
        for path in (sorted(folder.rglob("*")) if only is None else [folder / name for name in only])
        if path.is_file() and path.name != SEAL and path.suffix != ".part" and not set(path.relative_to(folder).parts) & {*leave_out}
    ]
    write_atomic(folder / SEAL, "".join(lines))


def checked(path: Path) -> Path:
    """The file, once it is what was written down when its folder was filled. Raises StoreError when it is not."""
    for folder in list(path.parents)[:_DEPTH]:
        if (folder / SEAL).is_file():
            name = path.relative_to(folder).as_posix()
            for digest, size, sealed in _lines(folder):
                if sealed == name:
                    _check(path, digest, size)
            break
    return path


def check_folder(folder: Path) -> Path:
    """The folder, once all that was written down is there and unchanged. Raises StoreError about the first file that is not."""
    for digest, size, name in _lines(folder):
        _check(folder / name, digest, size)
    return folder


def damaged(folder: Path, *, hashed_up_to: int | None = None) -> list[str]:
    """The files that are gone or changed, by their path below the folder. Those of more bytes than `hashed_up_to` are only measured."""
    wrong = []
    for digest, size, name in _lines(folder):
        try:
            _check(folder / name, digest, size, measure=hashed_up_to is not None and size > hashed_up_to)
        except StoreError:
            wrong.append(name)
    return wrong


def _lines(folder: Path) -> Iterator[tuple[str, int, str]]:
    """(digest, size, path) of each file that was written down."""
    try:
        lines = (folder / SEAL).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"the digests cannot be read: {error}", where=str(folder / SEAL), remedy=_REMEDY) from error
    for line in lines:
        digest, _, rest = line.partition("  ")
        size, _, name = rest.partition("  ")
        if not size.isdigit() or not name or os.path.isabs(name) or ".." in Path(name).parts:
            raise StoreError(f"the line {line[:100]!r} names no file with its digest", where=str(folder / SEAL), remedy=_REMEDY)
        yield digest, int(size), name


def _check(path: Path, digest: str, size: int, *, measure: bool = False) -> None:
    try:
        facts = path.stat()
    except OSError as error:
        raise StoreError(f"the file is gone: {error.strerror or error}", where=str(path), remedy=_REMEDY) from error
    if facts.st_size != size:
        raise StoreError(f"the file is damaged: {facts.st_size} bytes, {size} were written", where=str(path), remedy=_REMEDY)
    if measure:
        return
    key, stamp = os.path.realpath(path), (facts.st_size, facts.st_mtime_ns, facts.st_ino)
    if _seen.get(key, (None, ""))[0] != stamp:
        _seen[key] = (stamp, file_digest(path))
    if _seen[key][1] != digest:
        raise StoreError("the file is damaged: it is not what was written", where=str(path), remedy=_REMEDY)
