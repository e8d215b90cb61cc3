"""Bytes under a name, in a folder or in object storage (S3, Google, Azure): each whole or not there; knows nothing about what they are.

In a folder a blob has a temporary name until it is on disk; object storage shows an object only once it is complete. Credentials of object
storage come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …), never from a URL.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Protocol

from tunesmith.core.atomic import atomic_file
from tunesmith.core.errors import StoreError, UsageError
from tunesmith.core.load import need

BUCKETS = ("s3", "gs", "az")
_CHUNK = 1 << 20
_MEND = "look at the address, and at the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)"


class _Backend(Protocol):
    def write(self, name: str, chunks: Iterator[bytes]) -> None: ...
    def open(self, name: str) -> IO[bytes]: ...
    def remove(self, name: str) -> None: ...
    def remove_below(self, name: str) -> None: ...


class BlobDamaged(StoreError):
    """Bytes that are no longer those that were put."""


_whole: dict[tuple[str, str, str], tuple[int, ...]] = {}  # what was hashed and found whole, with the file's stamp


class Blobs:
    """The blobs of one store. `place` is a folder, or the URL of a bucket with a prefix: `s3://BUCKET/PREFIX`."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._backend: _Backend = _Bucket(place) if "://" in place else _Folder(Path(place))

    def put(self, name: str, stream: IO[bytes], *, refuse: Callable[[int], None] | None = None) -> tuple[int, str]:
        """Keep what `stream` has under a name; returns (bytes, SHA-256).

        `refuse` is called with the bytes so far and may raise, which leaves nothing. Raises StoreError when it cannot be written.
        """
        size, whole = 0, hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            nonlocal size
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                if refuse is not None:
                    refuse(size)
                whole.update(chunk)
                yield chunk

        self._backend.write(name, chunks())
        return size, whole.hexdigest()

    def open(self, name: str, *, sha256: str | None = None) -> IO[bytes]:
        """The bytes of a blob, to be read from the beginning. Raises FileNotFoundError for one that is not there, BlobDamaged for one that
        has not the hash that is given (looked at once a process), StoreError."""
        stream = self._backend.open(name)
        if not sha256:
            return stream
        key, stamp = (self.place, name, sha256), _stamp(stream)
        if _whole.get(key, ()) == stamp:
            return stream
        try:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        finally:
            if not stream.seekable():
                stream.close()
        if digest != sha256:
            stream.close()
            raise BlobDamaged(f"'{name}' has the SHA-256 {digest}, {sha256} was written", where=self.place)
        _whole[key] = stamp
        if stream.closed:
            return self._backend.open(name)
        stream.seek(0)
        return stream

    def remove(self, name: str) -> None:
        """Remove a blob if it is there."""
        self._backend.remove(name)

    def remove_below(self, name: str) -> None:
        """Remove every blob whose name begins with `name/`."""
        self._backend.remove_below(name)

    def check(self) -> None:
        """Write, read and remove a blob, to find out before anybody's upload whether that can be done. Raises StoreError."""
        self.put("check", io.BytesIO(b"can this be written?"))
        self.open("check").close()
        self.remove("check")


def _stamp(stream: IO[bytes]) -> tuple[int, ...]:
    """What changes with a file; of an object in a bucket nothing is asked."""
    try:
        facts = os.fstat(stream.fileno())
    except OSError:
        return (0,)
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, chunks: Iterator[bytes]) -> None:
        with atomic_file(self._folder / name, private=True) as file:
            for chunk in chunks:
                file.write(chunk)

    def open(self, name: str) -> IO[bytes]:
        return (self._folder / name).open("rb")

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def remove_below(self, name: str) -> None:
        shutil.rmtree(self._folder / name, ignore_errors=True)


class _Bucket:
    """Object storage through `obstore`: what is written in parts becomes an object at the end, and a failure in between leaves nothing.

    What comes is laid down in a temporary file first: it may be read from the same bucket, and what is refused costs no traffic.
    """

    def __init__(self, url: str) -> None:
        self._url, self._obstore = url, need("obstore", extra="s3")
        retry = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}
        try:
            self._bucket = need("obstore.store", extra="s3").from_url(url, retry_config=retry)
        except (ValueError, self._obstore.exceptions.BaseError) as error:
            allowed = ", ".join(f"{kind}://BUCKET/PREFIX" for kind in BUCKETS)
            raise UsageError(f"'{url}' names no bucket: {_first_line(error)}", allowed=f"a folder, {allowed}") from error

    def write(self, name: str, chunks: Iterator[bytes]) -> None:
        with tempfile.NamedTemporaryFile() as file:
            try:
                file.writelines(chunks)
                file.flush()
            except OSError as error:
                raise StoreError(
                    f"cannot write: {error.strerror or error}",
                    where=file.name,
                    remedy="free space there, or let TMPDIR name another folder",
                ) from error
            with self._in_words("written"):
                self._obstore.put(self._bucket, name, Path(file.name))

    def open(self, name: str) -> IO[bytes]:
        try:
            with self._in_words("read"):
                return io.BufferedReader(_Raw(self._obstore.open_reader(self._bucket, name)), _CHUNK)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            raise

    def remove(self, name: str) -> None:
        try:
            with self._in_words("written"):
                self._obstore.delete(self._bucket, name)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise

    def remove_below(self, name: str) -> None:
        with self._in_words("written"):
            for page in self._obstore.list(self._bucket, f"{name}/"):
                self._obstore.delete(self._bucket, [entry["path"] for entry in page])

    @contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, self._obstore.exceptions.BaseError) as error:
            raise StoreError(f"the blobs cannot be {what}: {_first_line(error)}", where=self._url, remedy=_MEND) from error


class _Raw(io.RawIOBase):
    """What `obstore` reads, as a file of Python's."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = bytes(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def _first_line(error: BaseException) -> str:
    """What went wrong without the traces that come after it."""
    return str(error).partition("\n")[0].strip() or type(error).__name__
