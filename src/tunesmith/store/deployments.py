"""What each alias answers with, and answered with before; knows nothing about how a variant is loaded or chosen.

A version is never changed: a new one takes its place, so the table is the history. Versions count over all aliases.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import NotFound
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import deployments


class Deployments:
    """The deployments of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, alias: str, variants: Sequence[Variant], *, strategy: str = "one", reason: str = "", by: str = "") -> Deployment:
        """Put variants in force for an alias, as a new version. Raises ConfigError for variants that cannot stand together."""
        row = {"alias": alias, "created": time.time(), "reason": reason, "by": by, "strategy": strategy}
        row["variants"] = msgspec.to_builtins(list(variants))
        _deployment({**row, "version": 0})  # what could not be read back is not written
        with self._store.writing() as connection:
            version = connection.execute(sa.insert(deployments).values(**row)).inserted_primary_key
        return _deployment({**row, "version": int(version[0]) if version else 0})

    def in_force(self) -> dict[str, Deployment]:
        """The newest version of each alias, by alias."""
        newest = sa.select(sa.func.max(deployments.c.version)).group_by(deployments.c.alias)
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(deployments).where(deployments.c.version.in_(newest)).order_by(deployments.c.alias))
            return {row["alias"]: _deployment(row) for row in rows.mappings()}

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


def _deployment(row: Row | dict[str, Any]) -> Deployment:
    return msgspec.convert({str(key): value for key, value in row.items()}, Deployment)  # a quoted name is more than a str
