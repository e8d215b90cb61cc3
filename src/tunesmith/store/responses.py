"""Responses that are kept for their clients, with the items that were asked; knows nothing about HTTP or how they were answered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.store.paging import Missing, Row
from tunesmith.store.store import Store
from tunesmith.store.tables import responses

KEPT_S = 30 * 86_400.0  # as OpenAI keeps them
_LONGEST_CHAIN = 10_000


class Responses:
    """The kept responses of all projects in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(
        self, response: Mapping[str, Any], items: Sequence[Mapping[str, Any]], *, project: str, created: float, elsewhere: str | None = None
    ) -> None:
        """Keep a response and the items of its request; `elsewhere` is the alias of the other server that has it too. Of an id that is
        there already (another server gave it twice) the first stays."""
        row = {"id": response["id"], "created": created, "project": project, "model": response["model"], "expires": created + KEPT_S}
        row |= {"previous": response.get("previous_response_id"), "elsewhere": elsewhere, "items": list(items), "response": dict(response)}
        with self._store.writing() as connection:
            if connection.execute(sa.select(responses.c.id).where(responses.c.id == row["id"])).first() is None:
                connection.execute(sa.insert(responses).values(**row))

    def find(self, number: str, project: str) -> Row:
        """A kept response. Raises Missing."""
        row = self._find(number, project)
        if row is None:
            raise Missing("response", number, param="response_id", code="response_not_found")
        return row

    def _find(self, number: str, project: str) -> Row | None:
        table = responses.c
        query = sa.select(responses).where(table.id == number, table.project == project, table.expires > time.time())
        with self._store.reading() as connection:
            return connection.execute(query).mappings().first()

    def chain(self, number: str, project: str) -> list[Row]:
        """The responses that led to one, oldest first, itself the last. Raises Missing for the first that is not there."""
        rows, wanted = list[Row](), str(number)
        while wanted and len(rows) < _LONGEST_CHAIN:
            row = self._find(wanted, project)
            if row is None:
                raise Missing("response", wanted, param="previous_response_id", code="previous_response_not_found")
            rows.append(row)
            wanted = row["previous"] or ""
        return rows[::-1]

    def delete(self, number: str, project: str) -> Row:
        """Forget a response; returns what it was. Raises Missing."""
        row = self.find(number, project)
        with self._store.writing() as connection:
            connection.execute(sa.delete(responses).where(responses.c.id == number))
        return row

    def sweep(self) -> int:
        """Remove what has expired; returns how many."""
        expired = responses.c.expires < time.time()
        with self._store.reading() as connection:  # usually nothing has, and who only looks takes no lock
            if connection.execute(sa.select(responses.c.id).where(expired).limit(1)).first() is None:
                return 0
        with self._store.writing() as connection:
            return connection.execute(sa.delete(responses).where(expired)).rowcount
