"""The store: one folder (or one PostgreSQL database and one bucket) that survives kill -9 at any moment; knows nothing about models.

Metadata through SQLAlchemy Core (SQLite in WAL mode, or PostgreSQL), blobs through fsspec.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tunesmith.core.errors import StoreError
from tunesmith.store import tables


class Store:
    """An opened store. `folder` holds local files, `engine` the tables, `blobs` an fsspec file system for uploads and artifacts."""

    def __init__(self, folder: Path, engine: sa.Engine, blobs: Any) -> None:
        self.folder, self.engine, self.blobs = folder, engine, blobs

    @classmethod
    def open(cls, folder: Path | str, *, url: str | None = None, blobs: str | None = None) -> Store:
        """Open (and create or migrate) a store.

        `url` is a SQLAlchemy URL (default: SQLite in `folder`), `blobs` an fsspec URL (default: `folder/blobs`).
        Raises StoreError when it cannot be opened, or was written by a newer Tunesmith.
        """
        import fsspec

        folder = Path(folder).expanduser().resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            engine = _engine(url or f"sqlite:///{folder / 'tunesmith.db'}")
            _migrate(engine)
        except (OSError, sa.exc.SQLAlchemyError) as error:
            raise StoreError(
                f"the store cannot be opened: {getattr(error, 'orig', error)}",
                where=without_password(url) if url else str(folder),
                remedy="check the path and its rights, and free space on the disk",
            ) from error
        except ValueError:  # its message may quote a part of the URL, and that be the password
            raise StoreError("the database's URL cannot be read", allowed="postgresql+psycopg://USER@HOST:PORT/NAME") from None
        place = blobs or str(folder / "blobs")
        if "://" not in place:
            Path(place).mkdir(parents=True, exist_ok=True)
        return cls(folder, engine, fsspec.filesystem("dir", path=place, fs=fsspec.core.url_to_fs(place)[0]))

    def close(self) -> None:
        """Close the database connections."""
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction. Raises StoreError when the database refuses it (a full disk, another writer that holds it too long)."""
        with self._told("written", "free space on the disk"), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One look at the tables. Raises StoreError when the database does not answer."""
        with self._told("read", "look whether the database runs"), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _told(self, what: str, mend: str) -> Iterator[None]:
        try:
            yield
        except sa.exc.OperationalError as error:
            raise StoreError(
                f"the store cannot be {what}: {error.orig}",
                where=str(self.folder),
                remedy=f"{mend}; what is finished is kept, run again to continue",
            ) from error

    def finished(self, digest: str) -> dict[str, Any] | None:
        """What the stage with that digest returned (with `seconds` and `created`), or None when it never finished."""
        with self.reading() as connection:
            row = connection.execute(sa.select(tables.stages).where(tables.stages.c.digest == digest)).mappings().first()
        return None if row is None else {**row, "output": json.loads(row["output"])}

    def finish(self, digest: str, *, project: str, name: str, seconds: float, output: dict[str, Any]) -> None:
        """Record a finished stage; a repeated record of the same digest is replaced."""
        row = {"digest": digest, "project": project, "name": name, "seconds": seconds, "created": time.time(), "output": json.dumps(output)}
        with self.writing() as connection:
            connection.execute(sa.delete(tables.stages).where(tables.stages.c.digest == digest))
            connection.execute(sa.insert(tables.stages), [row])

    def put_blob(self, name: str, data: bytes) -> None:
        """Write one blob whole: temporary name, fsync where the file system can, rename."""
        temporary = f"{name}.part"
        self.blobs.makedirs(os.path.dirname(name) or "/", exist_ok=True)
        with self.blobs.open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            if hasattr(file, "fileno"):
                os.fsync(file.fileno())
        self.blobs.mv(temporary, name)

    def deploy(self, alias: str, record: dict[str, Any], *, reason: str) -> int:
        """Put a new record in force for `alias`; returns its version. Nothing is overwritten: history stays."""
        row = {"alias": alias, "created": time.time(), "reason": reason, "record": json.dumps(record)}
        with self.writing() as connection:
            result = connection.execute(sa.insert(tables.deployments).values(**row))
            return int(result.inserted_primary_key[0]) if result.inserted_primary_key else 0

    def deployed(self) -> dict[str, dict[str, Any]]:
        """The record in force for each alias."""
        query = sa.select(tables.deployments).order_by(tables.deployments.c.version)
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return {row["alias"]: {**json.loads(row["record"]), "version": row["version"], "created": row["created"]} for row in rows}


def _engine(url: str) -> sa.Engine:
    engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))  # a connection may have died since it was used
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine


def without_password(url: str) -> str:
    """A database's URL without its password and options, which may hold one."""
    try:
        return sa.engine.make_url(url).set(query={}).render_as_string()
    except (sa.exc.ArgumentError, ValueError):
        return "the database's URL"


def _migrate(engine: sa.Engine) -> None:
    """Bring the tables to this version, one transaction a step, so that a kill between two leaves a whole store."""
    while True:
        with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            known = sa.inspect(connection).has_table("meta")
            row = connection.execute(sa.select(tables.meta.c.value).where(tables.meta.c.key == "version")).first() if known else None
            version = int(row[0]) if row else 0
            if version == len(tables.MIGRATIONS):
                return
            if version > len(tables.MIGRATIONS):
                raise StoreError(
                    f"the store has version {version}, this Tunesmith knows {len(tables.MIGRATIONS)}",
                    where=without_password(engine.url.render_as_string()),
                    remedy="pip install --upgrade tunesmith",
                )
            tables.MIGRATIONS[version](connection)
            connection.execute(sa.delete(tables.meta).where(tables.meta.c.key == "version"))
            connection.execute(sa.insert(tables.meta).values(key="version", value=str(version + 1)))
