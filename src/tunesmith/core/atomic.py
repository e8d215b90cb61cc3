"""Files and folders that are there whole or not at all, killed at any moment; knows nothing about what is in them.

Each is written under a temporary name in the same folder, fsynced, renamed: what carries the final name is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tunesmith.core.errors import StoreError


def sync(path: Path) -> None:
    """fsync one file or folder entry."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder; its rename is durable by itself
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to that takes its name only when the block ends well; a failure leaves what was there before. A `private` one, and
    the folders made for it, are for their owner alone.

    Raises StoreError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if private:
            _private_folder(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            if private:
                os.fchmod(stream.fileno(), 0o600)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(
            f"cannot write: {error.strerror or error}", where=str(path), remedy="free space on the disk, or choose another folder"
        ) from error
    finally:
        with suppress(OSError):  # a file may lie where its folder should be
            temporary.unlink(missing_ok=True)


def _private_folder(folder: Path) -> None:
    """Make a folder, and those above it that are not there, for their owner alone."""
    if not folder.is_dir():
        _private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it is seen complete or not at all. Raises as `atomic_file`."""
    with atomic_file(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def unfinished(final: Path) -> Path:
    """The folder that is filled before it appears as `final`; one that is there was begun and not ended."""
    return final.with_name(f".{final.name}.part")


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A folder to fill that appears as `final` only when the block ends without an error; of two processes that fill it the last counts,
    and a leftover of a killed one is removed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".{final.name}.*.part"):
        if not _lives(left.name.rsplit(".", 2)[1].partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}.{os.getpid()}-", suffix=".part", dir=final.parent))
    try:
        work.chmod(0o777 & ~_umask())
        yield work
        put_in_place(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _lives(pid: str) -> bool:
    """Whether a process of that number is there, whoever's."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _umask() -> int:
    """What new files of this process are not to be, without changing it for other threads where the kernel says it."""
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
        return int(status.partition("Umask:")[2].split()[0], 8)
    except (OSError, IndexError, ValueError):
        now = os.umask(0o022)
        os.umask(now)
        return now


def put_in_place(work: Path, final: Path) -> None:
    """Let a filled folder appear under its final name, in place of what was there."""
    for path in work.rglob("*"):
        if path.is_file():
            sync(path)
    while True:
        shutil.rmtree(final, ignore_errors=True)
        try:
            work.replace(final)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process put its own there in between
                continue
            raise
        break
    sync(final.parent)
