"""Webhooks that are to be sent: written with the change that they tell of, due again after a failure; knows nothing about HTTP."""

from __future__ import annotations

import time

import sqlalchemy as sa

from tunesmith.store.paging import Row, new_id
from tunesmith.store.store import Store
from tunesmith.store.tables import deliveries

_LONGEST_S, _GIVE_UP_S, _MOST = 3600.0, 3 * 86_400.0, 100


class Deliveries:
    """The webhooks of one store that are on their way."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def due(self) -> list[Row]:
        """What is to be sent now, the oldest first."""
        query = sa.select(deliveries).where(deliveries.c.done.is_(None), deliveries.c.due <= time.time()).order_by(deliveries.c.seq)
        with self._store.reading() as connection:
            return list(connection.execute(query.limit(_MOST)).mappings())

    def mark(self, row: Row, sent: bool) -> None:
        """Record an attempt. What could not be sent is due again after a while that doubles; after three days it is given up."""
        now = time.time()
        over = sent or now - row["created"] > _GIVE_UP_S
        values = {"done": now if over else None, "tries": row["tries"] + 1, "due": now + min(_LONGEST_S, 2.0 ** row["tries"])}
        with self._store.writing() as connection:
            connection.execute(sa.update(deliveries).where(deliveries.c.id == row["id"]).values(**values))


def announce(connection: sa.Connection, of: Row, kind: str) -> None:
    """Put a webhook about an object (a job, a batch) on its way, in the transaction that changes the object."""
    now = time.time()
    row = {"id": new_id("evt_"), "created": now, "project": of["project"], "type": kind, "object": of["id"], "tries": 0, "due": now}
    connection.execute(sa.insert(deliveries).values(**row))
