"""The store: one folder (or one PostgreSQL database and one bucket) that survives kill -9 at any moment; knows nothing about models.

Tables through SQLAlchemy Core (SQLite in WAL mode, or PostgreSQL); blobs in a folder or in object storage.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tunesmith.core.errors import StoreError
from tunesmith.store import tables
from tunesmith.store.blobs import Blobs
from tunesmith.store.database import engine_of, store_error, without_password
from tunesmith.store.layout import Layout
from tunesmith.store.migrations import migrate

Row = sa.RowMapping  # one row by the names of its columns


class Store:
    """An opened store. `folder` holds local files (by `layout`), `engine` the tables, `blobs` the bytes of uploads and results."""

    def __init__(self, folder: Path, engine: sa.Engine, blobs: Blobs) -> None:
        self.folder, self.layout, self.engine, self.blobs = folder, Layout(folder), engine, blobs

    @classmethod
    def open(cls, folder: Path | str, *, url: str | None = None, blobs: str | None = None) -> Store:
        """Open (and create or migrate) a store.

        `url` is a SQLAlchemy URL (default: SQLite in `folder`), `blobs` a folder or the URL of a bucket (default: `folder/blobs`).
        Raises StoreError when it cannot be opened, or was written by a newer Tunesmith.
        """
        folder = Path(folder).expanduser().resolve()
        try:
            if url is None:
                _private(folder)
            else:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            engine = engine_of(url or f"sqlite:///{Layout(folder).database}")
            migrate(engine, folder)
        except (OSError, sa.exc.SQLAlchemyError) as error:
            raise store_error("the store cannot be opened", error, where=without_password(url) if url else str(folder)) from error
        except ValueError:  # its message may quote a part of the URL, and that be the password
            raise StoreError("the database's URL cannot be read", allowed="postgresql+psycopg://USER@HOST:PORT/NAME") from None
        return cls(folder, engine, Blobs(blobs or str(Layout(folder).blobs)))

    def close(self) -> None:
        """Close the database connections."""
        self.engine.dispose()

    @contextmanager
    def writing(self, *, at_once: bool = True) -> Iterator[sa.Connection]:
        """One transaction. Raises StoreError when the database refuses it (a full disk, another writer that holds it too long).

        Without `at_once` it survives kill -9 of this process, and a power cut some seconds later: nobody waits for the disk.
        """
        with self._in_words("written"), self.engine.connect() as connection:
            _wait_for_disk(connection, at_once)
            with connection.begin():
                if not at_once and connection.dialect.name != "sqlite":
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One look at the tables. Raises StoreError when the database does not answer."""
        with self._in_words("read"), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """Several looks at the tables as they are at one moment, whatever is written meanwhile. Raises StoreError as `reading`."""
        with self.reading() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            else:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield connection

    @contextmanager
    def exclusive(self) -> Iterator[sa.Connection]:
        """One transaction that reads and then writes, with no other writer in between (on PostgreSQL by the row locks of its selects).

        Raises StoreError as `writing`.
        """
        with self._in_words("written"), self.engine.connect() as connection:
            _wait_for_disk(connection, True)
            with connection.begin():
                if self.engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection

    @contextmanager
    def by_itself(self) -> Iterator[sa.Connection]:
        """A connection whose statements are no transaction: for what a database does with a file as a whole. Raises StoreError."""
        with self._in_words("written"), self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            _wait_for_disk(connection, True)
            yield connection

    @contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
            then = "what is finished is kept, run again to continue"
            raise store_error(f"the store cannot be {what}", error, where=self._where, then=then) from error

    @property
    def _where(self) -> str:
        url = self.engine.url
        return str(self.folder) if url.drivername.startswith("sqlite") else without_password(url.render_as_string())

    def finished(self, digest: str) -> dict[str, Any] | None:
        """What the stage with that digest returned (with `seconds` and `created`), or None when it never finished."""
        with self.reading() as connection:
            row = connection.execute(sa.select(tables.stages).where(tables.stages.c.digest == digest)).mappings().first()
        return None if row is None else {**row, "output": json.loads(row["output"])}

    def unfinish(self, digest: str) -> None:
        """Forget that a stage finished: the next run makes its result again."""
        with self.writing() as connection:
            connection.execute(sa.delete(tables.stages).where(tables.stages.c.digest == digest))

    def stages(self, *names: str) -> list[Row]:
        """The finished stages of those names, the newest first."""
        query = sa.select(tables.stages).where(tables.stages.c.name.in_(names)).order_by(tables.stages.c.created.desc())
        with self.reading() as connection:
            return list(connection.execute(query).mappings())

    @property
    def url(self) -> str:
        """The URL of the database with its password: for no command line and no log."""
        return self.engine.url.render_as_string(hide_password=False)

    def finish(self, digest: str, *, project: str, name: str, seconds: float, output: dict[str, Any], needs: Sequence[str] = ()) -> None:
        """Record a finished stage, made from the stages with the digests `needs`; a repeated record of the same digest is replaced."""
        row = {"digest": digest, "project": project, "name": name, "seconds": seconds, "created": time.time(), "needs": list(needs)}
        row["output"] = json.dumps(output)
        with self.writing() as connection:
            connection.execute(sa.delete(tables.stages).where(tables.stages.c.digest == digest))
            connection.execute(sa.insert(tables.stages), [row])


def _wait_for_disk(connection: sa.Connection, whether: bool) -> None:
    """Let the commits of a connection to SQLite wait for the disk, or not: a pragma of the connection, outside of its transactions. It is
    said anew only where the one before wanted it otherwise."""
    word = "FULL" if whether else "NORMAL"
    if connection.dialect.name == "sqlite" and connection.info.get("synchronous", "FULL") != word:
        connection.exec_driver_sql(f"PRAGMA synchronous={word}").close()
        connection.commit()
        connection.info["synchronous"] = word


def _private(folder: Path) -> None:
    """Make the store's folder and its database where they are not there, for their owner alone; of a store that is there others lose what
    they may, its group keeps it. SQLite gives the files beside the database the rights of the database."""
    database = Layout(folder).database
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    if not database.exists():
        os.close(os.open(database, os.O_CREAT | os.O_RDWR, 0o600))
        return
    for path in (folder, *folder.glob(f"{database.name}*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o007:
            with contextlib.suppress(PermissionError):  # it belongs to somebody else, who decides
                path.chmod(mode & ~0o007)
