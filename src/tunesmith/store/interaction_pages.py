"""The log of answered requests as people leaf through it: the newest first, from a request on, without whole texts. Knows no screen."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tunesmith.core.errors import NotFound
from tunesmith.core.types import Record
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import interactions

_SHOWN = 400  # characters of a text in a list


class LogFilter(Record, frozen=True):
    """Which requests are looked for; empty: all. `errors`: those that were not answered."""

    alias: str = ""
    variant: str = ""
    errors: bool = False
    project: str | None = None


def leaf(store: Store, wanted: LogFilter, *, before: str = "", limit: int = 50) -> list[Row]:
    """The newest requests that fit, or those before the one with that id. Raises NotFound for an id that is none."""
    table = interactions.c
    where: list[Any] = []
    where += [table.alias == wanted.alias] if wanted.alias else []
    where += [table.variant == wanted.variant] if wanted.variant else []
    where += [table.status >= 400] if wanted.errors else []
    where += [table.project == wanted.project] if wanted.project is not None else []
    plain = [column for column in interactions.columns if column.name not in ("messages", "answer", "tool_calls", "sources")]
    cut = [sa.func.substr(table[name], 1, _SHOWN).label(name) for name in ("messages", "answer")]
    with store.reading() as connection:
        if before:
            row = connection.execute(sa.select(table.created, table.id).where(table.id == before)).first()
            if row is None:
                raise NotFound(f"no request '{before[:100]}'", remedy="begin with the newest")
            where.append(sa.or_(table.created < row.created, sa.and_(table.created == row.created, table.id < row.id)))
        query = sa.select(*plain, *cut).where(*where).order_by(table.created.desc(), table.id.desc()).limit(limit)
        return list(connection.execute(query).mappings())
