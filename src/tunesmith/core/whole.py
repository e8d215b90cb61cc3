"""Files and folders that are there whole or not at all, killed at any moment; knows nothing about what is in them.

Each is written under a temporary name, fsynced, renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.core.errors import StoreError


def user_folder() -> Path:
    """Where downloads are kept between projects: the platform's data folder of the user."""
    import platformdirs

    return Path(platformdirs.user_data_dir("tunesmith", appauthor=False))


def sync(path: Path) -> None:
    """fsync one file or folder entry."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file so that it is seen complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write: {error.strerror}", where=str(path), remedy="free space on the disk, or choose another store"
        ) from error
    sync(path.parent)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to fill that appears as `final` only when the block ends without an error; a leftover of a killed process is removed."""
    work = final.with_name(f".{final.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    yield work
    put_in_place(work, final)


def put_in_place(work: Path, final: Path) -> None:
    """Let a filled folder appear under its final name, in place of what was there."""
    for path in work.rglob("*"):
        if path.is_file():
            sync(path)
    shutil.rmtree(final, ignore_errors=True)
    work.replace(final)
    sync(final.parent)
