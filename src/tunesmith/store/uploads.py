"""Files that come in parts: begun, filled, completed or cancelled; knows nothing about HTTP."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import IO, Any, cast

import sqlalchemy as sa

from tunesmith.store.files import Files, no_larger, safe_name
from tunesmith.store.paging import Missing, Refused, Row, new_id
from tunesmith.store.store import Store
from tunesmith.store.tables import files, upload_parts, uploads

LIFE_S = 3600.0
MAX_BYTES = 8 << 30
_CHUNK = 1 << 20


class Uploads:
    """The uploads of all projects in one store. Repeating a call that already took effect gives the same upload."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, *, project: str, filename: str, purpose: str, size: int, keep_s: float | None = None) -> Row:
        """Begin an upload of `size` bytes; it is open for an hour."""
        now = time.time()
        row = {"id": new_id("upload_"), "created": now, "project": project, "expires": now + LIFE_S, "bytes": size, "keep_s": keep_s}
        with self._store.writing() as connection:
            statement = sa.insert(uploads).values(**row, filename=safe_name(filename), purpose=purpose, status="pending")
            connection.execute(statement)
        return self.find(str(row["id"]), project)

    def find(self, number: str, project: str) -> Row:
        """An upload. Raises Missing."""
        with self._store.reading() as connection:
            row = connection.execute(sa.select(uploads).where(uploads.c.id == number, uploads.c.project == project)).mappings().first()
        if row is None:
            raise Missing("Upload object", number, param="upload_id")
        return row

    def add(self, number: str, project: str, stream: IO[bytes], *, most: int) -> Row:
        """Add a part. Parts may come side by side; their order is given at the end. Raises Missing, Refused."""
        self._pending(number, project)
        part = new_id("part_")
        size, _ = self._store.blobs.put(f"uploads/{number}/{part}", stream, refuse=no_larger(most))
        with self._store.writing() as connection:
            connection.execute(sa.insert(upload_parts).values(id=part, created=time.time(), upload=number, bytes=size))
            return connection.execute(sa.select(upload_parts).where(upload_parts.c.id == part)).mappings().one()

    def complete(self, number: str, project: str, parts: Sequence[str], md5: str | None = None) -> tuple[Row, Row]:
        """(the upload, its file) of the parts in the order given. Raises Refused when bytes or `md5` are not what was said."""
        upload = self.find(number, project)
        if upload["status"] == "completed":
            return upload, Files(self._store).find(upload["file"], project)
        self._pending(number, project)
        with self._store.reading() as connection:
            sizes = dict(
                connection.execute(sa.select(upload_parts.c.id, upload_parts.c.bytes).where(upload_parts.c.upload == number)).all()
            )
        unknown = [part for part in parts if part not in sizes]
        if unknown or len(set(parts)) < len(parts) or not parts:
            reason = f"'{unknown[0][:100]}' is no part of {number}" if unknown else "'part_ids' is empty or names a part twice"
            raise Refused(reason, param="part_ids", code="invalid_part_ids")
        total = sum(sizes[part] for part in parts)
        if total != upload["bytes"]:
            raise Refused(f"The parts have {total} bytes, {upload['bytes']} were announced", param="part_ids", code="invalid_upload_size")
        joined = _Joined(self._store, [f"uploads/{number}/{part}" for part in parts])
        with closing(joined):
            row = Files(self._store).prepare(
                cast(IO[bytes], joined), project=project, filename=upload["filename"], purpose=upload["purpose"], keep_s=upload["keep_s"]
            )
        if md5 is not None and joined.md5.hexdigest() != md5.lower():
            self._store.blobs.remove(f"files/{row['id']}")
            raise Refused(f"The MD5 of the parts is {joined.md5.hexdigest()}, not {md5[:64]}", param="md5", code="invalid_md5")
        with self._store.exclusive() as connection:
            changed = (
                sa.update(uploads).where(uploads.c.id == number, uploads.c.status == "pending").values(status="completed", file=row["id"])
            )
            if connection.execute(changed).rowcount:  # else another request was faster; its file counts
                connection.execute(sa.insert(files).values(**row))
        self._clear(number)
        upload = self.find(number, project)
        return upload, Files(self._store).find(upload["file"], project)

    def cancel(self, number: str, project: str) -> Row:
        """Give an upload up. Raises Missing, Refused."""
        if self.find(number, project)["status"] != "cancelled":
            self._pending(number, project)
            with self._store.writing() as connection:
                connection.execute(sa.update(uploads).where(uploads.c.id == number).values(status="cancelled"))
            self._clear(number)
        return self.find(number, project)

    def sweep(self) -> int:
        """Remove the parts of uploads whose time is up; returns of how many."""
        over = [uploads.c.status == "pending", uploads.c.expires < time.time()]
        with self._store.reading() as connection:
            old = list(connection.execute(sa.select(uploads.c.id).where(*over)).scalars())
        for number in old:
            with self._store.writing() as connection:
                connection.execute(sa.update(uploads).where(uploads.c.id == number, *over).values(status="expired"))
            self._clear(number)
        return len(old)

    def _pending(self, number: str, project: str) -> None:
        upload = self.find(number, project)
        status = "expired" if upload["status"] == "pending" and upload["expires"] < time.time() else upload["status"]
        if status != "pending":
            raise Refused(f"Upload '{number}' is {status}", param="upload_id", code="invalid_upload_status", allowed="pending")

    def _clear(self, number: str) -> None:
        with self._store.writing() as connection:
            connection.execute(sa.delete(upload_parts).where(upload_parts.c.upload == number))
        self._store.blobs.remove_below(f"uploads/{number}")


class _Joined:
    """Blobs read one after the other, hashed on the way."""

    def __init__(self, store: Store, names: Sequence[str]) -> None:
        self.md5 = hashlib.md5(usedforsecurity=False)
        self._blocks = self._read(store, names)

    def _read(self, store: Store, names: Sequence[str]) -> Iterator[bytes]:
        for name in names:
            with store.blobs.open(name) as stream:
                while block := stream.read(_CHUNK):
                    self.md5.update(block)
                    yield block

    def read(self, _size: int = -1) -> bytes:
        """The next block, empty at the end."""
        return next(self._blocks, b"")

    def close(self) -> None:
        """Nothing is held between blocks but the generator."""
        self._blocks.close()  # type: ignore[attr-defined]


def upload_object(upload: Row, file: dict[str, Any] | None = None) -> dict[str, Any]:
    """An upload as the API shows it; `file` is there once it is complete."""
    pending = upload["status"] == "pending" and upload["expires"] < time.time()
    body = {
        "id": upload["id"],
        "object": "upload",
        "bytes": upload["bytes"],
        "created_at": int(upload["created"]),
        "expires_at": int(upload["expires"]),
        "filename": upload["filename"],
        "purpose": upload["purpose"],
        "status": "expired" if pending else upload["status"],
    }
    return body if file is None else body | {"file": file}
