"""Pages of things that are listed by age, and ids for them; knows nothing about what they are."""

from __future__ import annotations

import secrets
import string
from typing import Any

import sqlalchemy as sa

from tunesmith.core.errors import NotFound, UsageError
from tunesmith.store.store import Row, Store

__all__ = ["Missing", "Refused", "Row", "new_id", "page"]
_LETTERS = string.ascii_letters + string.digits


class Missing(NotFound):
    """An object that does not exist, or that belongs to another project. `param` is the request's key that named it."""

    def __init__(self, kind: str, name: str, *, param: str = "id", code: str | None = None) -> None:
        self.param, self.code, self.name = param, code, name
        super().__init__(f"No such {kind}: {name[:200]}")


class Refused(UsageError):
    """A request that the state of an object does not allow. `param` and `code` as in OpenAI's error object."""

    def __init__(self, what: str, *, param: str | None = None, code: str | None = None, allowed: str = "", remedy: str = "") -> None:
        self.param, self.code = param, code
        super().__init__(what, allowed=allowed, remedy=remedy)


def new_id(prefix: str, length: int = 24) -> str:
    """A fresh id, `file-` and 24 letters for one: no separator of paths can be in it."""
    return prefix + "".join(secrets.choice(_LETTERS) for _ in range(length))


def page(
    store: Store, table: sa.Table, where: list[Any], *, after: str | None, limit: int, oldest_first: bool = False
) -> tuple[list[Row], bool]:
    """(the next `limit` rows after the one whose id is `after`, whether more follow). An unknown `after` is followed by nothing."""
    limit = max(limit, 1)
    direction = table.c.seq.asc() if oldest_first else table.c.seq.desc()
    with store.reading() as connection:
        if after is not None:
            place = connection.execute(sa.select(table.c.seq).where(table.c.id == after)).scalar()
            if place is None:
                return [], False
            where = [*where, table.c.seq > place if oldest_first else table.c.seq < place]
        rows = list(connection.execute(sa.select(table).where(*where).order_by(direction).limit(limit + 1)).mappings())
    return rows[:limit], len(rows) > limit
