"""Numbered steps that bring a store's tables from one version to the next; knows nothing about what the rows mean.

`NNNN_name.py` brings version NNNN-1 to NNNN: its `upgrade(connection, folder)` runs once, in one transaction with the new number. A step
has its own frozen definitions of the tables that it touches and takes nothing from `store/tables`, which is what all steps together
give. Never edit one that was released: add the next.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import sqlalchemy as sa

from tunesmith.core.errors import StoreError
from tunesmith.store.database import store_error, without_password

_META = sa.table("meta", sa.column("key"), sa.column("value"))
_LOCK = 0x74756E65  # PostgreSQL's number of the lock that one migrating process holds


def steps() -> list[str]:
    """The names of the steps, in order: the n-th gives version n."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[:4].isdigit())


def migrate(engine: sa.Engine, folder: Path) -> None:
    """Bring the tables to this version, one transaction a step, so that a kill between two leaves a whole store.

    Raises StoreError for a store of a newer Tunesmith, and with what failed when a step fails: then the store is as that step found it.
    """
    names = steps()
    with engine.connect() as connection:
        version = _version(connection)  # usually it is there already, and who only looks takes no lock
    while version != len(names):
        version = _step(engine, folder, names)


def _step(engine: sa.Engine, folder: Path, names: list[str]) -> int:
    """One step further, or none where another process was faster; returns the version that the store then has."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        version, where = _version(connection), without_password(engine.url.render_as_string())
        if version == len(names):
            return version
        if version > len(names):
            raise StoreError(
                f"the store has version {version}, this Tunesmith knows {len(names)}", where=where, remedy="pip install --upgrade tunesmith"
            )
        try:
            importlib.import_module(f"{__name__}.{names[version]}").upgrade(connection, folder)
            connection.execute(sa.delete(_META).where(_META.c.key == "version"))
            connection.execute(sa.insert(_META).values(key="version", value=str(version + 1)))
        except (sa.exc.SQLAlchemyError, StoreError) as error:
            what = f"the store cannot be brought from version {version} to {version + 1} ({names[version]})"
            raise store_error(what, error, where=where, then="nothing of it was changed") from error
    return version + 1


def _version(connection: sa.Connection) -> int:
    if not sa.inspect(connection).has_table("meta"):
        return 0
    return int(connection.execute(sa.select(_META.c.value).where(_META.c.key == "version")).scalar() or 0)
