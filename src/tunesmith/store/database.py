"""The engine over SQLite or PostgreSQL, and one error for whatever a database says; knows nothing about which tables there are."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tunesmith.core.errors import StoreError

# (words in what the database says, what mends it); the first that fits.
_REMEDIES = (
    (("is full", "no space left", "disk quota"), "free space on the disk"),
    (("disk i/o error",), "free space on the disk, and look whether it is sound"),
    (("is locked", "lock timeout", "deadlock"), "wait for the other process that writes, or stop it"),
    (("readonly", "read-only", "permission denied", "unable to open"), "check the path and its rights"),
    (("connection", "connect", "could not translate host name", "server closed", "terminating"), "look whether the database runs"),
    (("malformed", "not a database"), "the file is damaged: put a backup in its place"),
)


def engine_of(url: str) -> sa.Engine:
    """An engine whose commits are on disk when they return; SQLite waits ten seconds for another writer."""
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


def store_error(what: str, error: Exception, *, where: str, then: str = "") -> StoreError:
    """What a database or a disk said, as one error with the remedy that fits it. `then` says what else is to be known."""
    reason = " ".join(str(getattr(error, "orig", None) or error).split())
    mend = next((remedy for words, remedy in _REMEDIES if any(word in reason.lower() for word in words)), "")
    return StoreError(f"{what}: {reason}", where=where, remedy="; ".join(part for part in (mend, then) if part))
