"""The log of answered requests: each row is acknowledged after its commit, written once however often it is sent; knows nothing about HTTP.

One thread writes; rows that arrive within a few milliseconds share one transaction. The store's connections fsync each commit, so
an acknowledged row survives kill -9.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.core.errors import StoreError
from tunesmith.core.tables import interactions
from tunesmith.core.types import Interaction

_GATHER_S = 0.003
_MOST = 256  # rows in one transaction


class InteractionLog:
    """Writes to the store's `interactions` table. `write` returns at once; its future is done when the row is on disk."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        self._statement: Any = insert(interactions).on_conflict_do_nothing(index_elements=["id"])
        self._queue: queue.SimpleQueue[tuple[Interaction, Future[None]] | None] = queue.SimpleQueue()
        self._closed = False
        self._crowded = False  # one client alone is not made to wait for others
        self._thread = threading.Thread(target=self._run, name="interaction-log", daemon=True)
        self._thread.start()

    def write(self, interaction: Interaction) -> Future[None]:
        """Queue a row. The future raises StoreError when it could not be written (a full disk)."""
        if self._closed:
            raise StoreError("the interaction log is closed", remedy="open a new one")
        done: Future[None] = Future()
        self._queue.put((interaction, done))
        return done

    def close(self) -> None:
        """Write what is queued and end the thread."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            batch, last = self._gather()
            if batch:
                self._commit(batch)
                self._crowded = len(batch) > 1
            if last:
                return

    def _gather(self) -> tuple[list[tuple[Interaction, Future[None]]], bool]:
        """The rows of the next transaction, and whether the log ends after it."""
        batch: list[tuple[Interaction, Future[None]]] = []
        until: float | None = None
        while len(batch) < _MOST:
            try:
                entry = self._queue.get() if until is None else self._queue.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                return batch, False
            if entry is None:
                return batch, True
            batch.append(entry)
            until = until or time.monotonic() + (_GATHER_S if self._crowded else 0.0)
        return batch, False

    def _commit(self, batch: list[tuple[Interaction, Future[None]]]) -> None:
        error: StoreError | None = None
        try:
            with self._engine.begin() as connection:
                connection.execute(self._statement, [_row(interaction) for interaction, _ in batch])
        except sa.exc.SQLAlchemyError as problem:
            error = StoreError(f"the request could not be logged: {problem}", remedy="free space on the disk, or check the database")
        for _, done in batch:
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)


def _row(interaction: Interaction) -> dict[str, Any]:
    row = msgspec.structs.asdict(interaction)
    row["messages"] = msgspec.json.encode(interaction.messages).decode()
    row["tool_calls"] = msgspec.json.encode(interaction.tool_calls).decode()
    return row
