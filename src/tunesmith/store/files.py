"""Files that clients upload and jobs produce: a row in the store and the bytes as a blob; knows nothing about HTTP or what is in them.

The blob is written whole before the row appears, and the row goes before the blob: a file that is listed can be read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from typing import IO, Any

import sqlalchemy as sa

from tunesmith.core.errors import StoreError
from tunesmith.store.blobs import BlobDamaged
from tunesmith.store.paging import Missing, Refused, Row, new_id, page
from tunesmith.store.store import Store
from tunesmith.store.tables import files


class BytesGone(StoreError):
    """A file whose bytes are no longer where they were put, or no longer what they were: trying again does not help."""


class Files:
    """The files of all projects in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(
        self, stream: IO[bytes], *, project: str, filename: str, purpose: str, keep_s: float | None = None, most: int | None = None
    ) -> Row:
        """Store what `stream` has; returns the row. Raises Refused above `most` bytes, StoreError when the disk is full."""
        row = self.prepare(stream, project=project, filename=filename, purpose=purpose, keep_s=keep_s, most=most)
        with self._store.writing() as connection:
            connection.execute(sa.insert(files).values(**row))
        return self.find(row["id"], project)

    def prepare(
        self, stream: IO[bytes], *, project: str, filename: str, purpose: str, keep_s: float | None = None, most: int | None = None
    ) -> dict[str, Any]:
        """Store the bytes only; the row is for the caller to insert, in the transaction that makes the file known."""
        now, number = time.time(), new_id("file-")
        size, sha256 = self._store.blobs.put(f"files/{number}", stream, refuse=no_larger(most))
        return {
            "id": number,
            "project": project,
            "created": now,
            "expires": None if keep_s is None else now + keep_s,
            "bytes": size,
            "filename": safe_name(filename),
            "purpose": purpose,
            "sha256": sha256,
        }

    def find(self, number: str, project: str, param: str = "id", *, hidden: Collection[str] = ()) -> Row:
        """The row of a file. Raises Missing, also for one that has expired, and for one of a purpose that is `hidden`."""
        query = sa.select(files).where(files.c.id == number, *self._visible(project, hidden))
        with self._store.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise Missing("File object", number, param=param)
        return row

    def listed(
        self,
        project: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 10_000,
        oldest_first: bool = False,
        hidden: Collection[str] = (),
    ) -> tuple[list[Row], bool]:
        """A page of files, and whether more follow; none of a purpose that is `hidden`."""
        where = [*self._visible(project, hidden), *([files.c.purpose == purpose] if purpose else [])]
        return page(self._store, files, where, after=after, limit=min(limit, 10_000), oldest_first=oldest_first)

    def open(self, number: str) -> IO[bytes]:
        """The bytes of a file, once they are those that came: they are hashed once a process, and again when the file has changed. Raises
        BytesGone for those that are gone or others."""
        with self._store.reading() as connection:
            sha256 = connection.execute(sa.select(files.c.sha256).where(files.c.id == number)).scalar()
        try:
            return self._store.blobs.open(f"files/{number}", sha256=sha256)
        except FileNotFoundError as error:
            remedy = "upload the file again, or let serve.blobs name the place where it was put"
            raise BytesGone(f"the bytes of '{number}' are gone", where=self._store.blobs.place, remedy=remedy) from error
        except BlobDamaged as error:
            remedy = "upload the file again, or put a backup of its bytes in their place"
            raise BytesGone(f"the bytes of '{number}' are not those that came", where=self._store.blobs.place, remedy=remedy) from error

    def delete(self, number: str, project: str, *, hidden: Collection[str] = ()) -> None:
        """Forget a file and its bytes. Raises Missing."""
        self.find(number, project, hidden=hidden)
        with self._store.writing() as connection:
            connection.execute(sa.delete(files).where(files.c.id == number))
        self._store.blobs.remove(f"files/{number}")

    def sweep(self) -> int:
        """Remove what has expired; returns how many files."""
        expired = files.c.expires < time.time()
        with self._store.reading() as connection:  # usually nothing has, and who only looks takes no lock
            if connection.execute(sa.select(files.c.id).where(expired).limit(1)).first() is None:
                return 0
        with self._store.exclusive() as connection:
            old = list(connection.execute(sa.select(files.c.id).where(expired)).scalars())
            connection.execute(sa.delete(files).where(expired))
        for number in old:
            self._store.blobs.remove(f"files/{number}")
        return len(old)

    @staticmethod
    def _visible(project: str, hidden: Collection[str] = ()) -> list[Any]:
        alive = sa.or_(files.c.expires.is_(None), files.c.expires > time.time())
        return [files.c.project == project, alive, *([files.c.purpose.not_in(hidden)] if hidden else [])]


def safe_name(filename: str) -> str:
    """The last part of a name, printable and short: it is shown and sent back, never used as a path."""
    last = re.split(r"[/\\]", filename)[-1]
    return "".join(c for c in last if c.isprintable())[:255] or "file"


def no_larger(most: int | None) -> Callable[[int], None] | None:
    """Refuses a file once it has more than `most` bytes (None: never)."""

    def refuse(size: int) -> None:
        if most is not None and size > most:
            raise Refused(f"The file is larger than {most} bytes", param="file", code="file_too_large", allowed=f"{most} bytes")

    return None if most is None else refuse
