"""Chat completions that clients asked to store; knows nothing about HTTP or how they were answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.store.json_pairs import has_pair
from tunesmith.store.paging import Missing, Row, page
from tunesmith.store.store import Store
from tunesmith.store.tables import chats


class Chats:
    """The stored completions of all projects in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(
        self,
        response: Mapping[str, Any],
        *,
        project: str,
        created: float,
        metadata: Mapping[str, str] | None,
        messages: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep a completion and the messages that it answers."""
        row = {"id": response["id"], "created": created, "project": project, "model": response["model"], "metadata": metadata}
        with self._store.writing() as connection:
            connection.execute(sa.insert(chats).values(**row, request={"messages": list(messages)}, response=dict(response)))

    def find(self, number: str, project: str) -> Row:
        """A stored completion. Raises Missing."""
        with self._store.reading() as connection:
            row = connection.execute(sa.select(chats).where(chats.c.id == number, chats.c.project == project)).mappings().first()
        if row is None:
            raise Missing("chat completion", number, param="completion_id")
        return row

    def listed(
        self, project: str, *, model: str | None, metadata: Mapping[str, str], after: str | None, limit: int, oldest_first: bool
    ) -> tuple[list[Row], bool]:
        """A page of completions, and whether more follow."""
        where: list[Any] = [chats.c.project == project, *([chats.c.model == model] if model else [])]
        where += [has_pair(chats.c.metadata, key, value) for key, value in metadata.items()]
        return page(self._store, chats, where, after=after, limit=min(limit, 100), oldest_first=oldest_first)

    def update(self, number: str, project: str, metadata: Mapping[str, str] | None) -> Row:
        """Replace the metadata. Raises Missing."""
        self.find(number, project)
        with self._store.writing() as connection:
            connection.execute(sa.update(chats).where(chats.c.id == number).values(metadata=metadata))
        return self.find(number, project)

    def delete(self, number: str, project: str) -> None:
        """Forget a completion. Raises Missing."""
        self.find(number, project)
        with self._store.writing() as connection:
            connection.execute(sa.delete(chats).where(chats.c.id == number))
