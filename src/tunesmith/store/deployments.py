"""What each alias answers with, and answered with before; knows nothing about how a variant is loaded or chosen.

A version is never changed: a new one takes its place, so the table is the history. Versions count over all aliases.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import sqlalchemy as sa

from tunesmith.core.deployment import Deployment, Enrolment, Variant
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.identity import IdentityReference
from tunesmith.store.identities import keep_references
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import deployments

_NEWEST = "SELECT max(version) FROM deployments"


class Deployments:
    """The deployments of one store. `references` are what the weights of the next version answer to probes, by what names the answers: both
    are written, or neither."""

    def __init__(self, store: Store, *, references: Mapping[str, IdentityReference] | None = None) -> None:
        self._store, self._references = store, dict(references or {})

    def put(
        self,
        alias: str,
        variants: Sequence[Variant],
        *,
        strategy: str = "one",
        reason: str = "",
        by: str = "",
        after: int | None = None,
        enrolment: Enrolment | None = None,
    ) -> Deployment:
        """Put variants in force for an alias, as a new version; with `after` only where that version (0: none) is in force until then.
        `enrolment` says whom an experiment draws.

        Raises ConfigError for variants that cannot stand together, UsageError when another version has come in between.
        """
        with self._store.exclusive() as connection:
            keep_references(connection, self._references)
            return put_version(connection, alias, variants, strategy=strategy, reason=reason, by=by, after=after, enrolment=enrolment)

    @property
    def local(self) -> bool:
        """Whether the tables lie in a file here, and no network is between."""
        return self._store.engine.dialect.name == "sqlite"

    def newest(self) -> int:
        """The newest version of all aliases, 0 where nothing was deployed: it tells in some microseconds whether anything has changed."""
        with self._store.reading() as connection:  # a transaction of its own would be two more ways there and back
            alone = connection if self.local else connection.execution_options(isolation_level="AUTOCOMMIT")
            return int(alone.exec_driver_sql(_NEWEST).scalar() or 0)

    def in_force(self) -> dict[str, Deployment]:
        """The newest version of each alias, by alias."""
        newest = sa.select(sa.func.max(deployments.c.version)).group_by(deployments.c.alias)
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(deployments).where(deployments.c.version.in_(newest)).order_by(deployments.c.alias))
            return {row["alias"]: _deployment(row) for row in rows.mappings()}

    def side_by_side(self, alias: str) -> tuple[str, ...]:
        """The variants' names where several answer for an alias (a split, a canary, a shadow), which nobody ends unasked; else none."""
        deployment = self.in_force().get(alias)
        variants = () if deployment is None else deployment.variants
        return tuple(variant.name for variant in variants) if len(variants) > 1 else ()

    def history(self, alias: str) -> list[Deployment]:
        """Every version of an alias, the newest first; empty for one that was never deployed."""
        query = sa.select(deployments).where(deployments.c.alias == alias).order_by(deployments.c.version.desc())
        with self._store.reading() as connection:
            return [_deployment(row) for row in connection.execute(query).mappings()]

    def listed(self) -> list[Deployment]:
        """Every version of every alias, the newest first."""
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(deployments).order_by(deployments.c.version.desc())).mappings()
            return [_deployment(row) for row in rows]

    def version(self, number: int) -> Deployment:
        """The deployment of that version. Raises NotFound."""
        with self._store.reading() as connection:
            row = connection.execute(sa.select(deployments).where(deployments.c.version == number)).mappings().first()
            newest = connection.execute(sa.select(sa.func.max(deployments.c.version))).scalar()
        if row is None:
            raise NotFound(f"no deployment has the version {number}", allowed=f"1 to {newest}" if newest else "none: nothing was deployed")
        return _deployment(row)


class NewestVersion:
    """`Deployments.newest` for who asks before each request: over a file, by a connection that is held for it, since the driver alone takes
    a fifth of the time. For one thread at a time."""

    def __init__(self, store: Store) -> None:
        self._store, self._deployments = store, Deployments(store)
        self._cursor: sqlite3.Cursor | None = None

    def __call__(self) -> int:
        """The version. Raises StoreError when the database does not answer."""
        if self._deployments.local:
            with contextlib.suppress(sqlite3.Error):
                if self._cursor is None:
                    raw = self._store.engine.raw_connection()
                    raw.detach()
                    self._cursor = cast(sqlite3.Cursor, raw.cursor())
                self._cursor.execute(_NEWEST)
                ((newest,),) = self._cursor.fetchall()  # to the end: what is read on would hold the tables as they are now
                return newest or 0
            self.close()
        return self._deployments.newest()

    def close(self) -> None:
        """Let go of the connection."""
        if self._cursor is not None:
            with contextlib.suppress(sqlite3.Error):
                self._cursor.connection.close()
        self._cursor = None


def put_version(
    connection: sa.Connection,
    alias: str,
    variants: Sequence[Variant],
    *,
    strategy: str,
    reason: str,
    by: str,
    after: int | None = None,
    enrolment: Enrolment | None = None,
) -> Deployment:
    """A new version within a transaction of the store that nobody else writes in (`Store.exclusive`); raises as `Deployments.put`."""
    row = {"alias": alias, "created": time.time(), "reason": reason, "by": by, "strategy": strategy}
    row["variants"] = msgspec.to_builtins(list(variants))
    row["enrolment"] = msgspec.to_builtins(enrolment)
    _deployment({**row, "version": 0})  # what could not be read back is not written
    if connection.dialect.name != "sqlite":  # in order of their numbers, so that who has seen a number has seen all before
        connection.exec_driver_sql("LOCK TABLE deployments IN SHARE ROW EXCLUSIVE MODE")
    newest = sa.select(sa.func.max(deployments.c.version)).where(deployments.c.alias == alias)
    if after is not None and (now := connection.execute(newest).scalar() or 0) != after:
        raise UsageError(f"'{alias}' has the version {now} by now", allowed=f"version {after}", remedy="look at it, and ask again")
    version = connection.execute(sa.insert(deployments).values(**row)).inserted_primary_key
    return _deployment({**row, "version": int(version[0]) if version else 0})


def _deployment(row: Row | dict[str, Any]) -> Deployment:
    return msgspec.convert({str(key): value for key, value in row.items()}, Deployment)  # a quoted name is more than a str
