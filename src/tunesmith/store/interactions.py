"""The log of answered requests: each row is acknowledged after its commit, written once however often it is sent; knows nothing about HTTP.

One thread writes; rows that arrive within a few milliseconds share one transaction. The store's connections fsync each commit, so
an acknowledged row survives kill -9.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import sqlalchemy as sa

from tunesmith.core.errors import StoreError
from tunesmith.core.types import Interaction
from tunesmith.store.store import Store
from tunesmith.store.tables import interactions

_GATHER_S = 0.003
_MOST = 256  # rows in one transaction

_ENCODED = ("messages", "tool_calls")
_PLAIN = tuple(column.name for column in interactions.columns if column.name not in _ENCODED)
_plain = attrgetter(*_PLAIN)
_encode = msgspec.json.Encoder().encode
_Waiting = tuple[tuple[Any, ...], asyncio.Future[None]]


class InteractionLog:
    """Writes to the store's `interactions` table."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[_Waiting] = deque()
        self._bell = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="interaction-log", daemon=True)
        self._thread.start()

    async def write(self, interaction: Interaction) -> None:
        """Write a row; returns when it is on disk. Raises StoreError when it could not be written (a full disk)."""
        if self._closed:
            raise StoreError("the interaction log is closed", remedy="open a new one")
        done = asyncio.get_running_loop().create_future()
        row = (*_plain(interaction), *(_encode(getattr(interaction, name)).decode() for name in _ENCODED))
        self._waiting.append((row, done))
        if not self._bell.is_set():
            self._bell.set()
        await done

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._closed = True
        self._bell.set()
        self._thread.join()

    def _run(self) -> None:
        crowded = False  # one client alone is not made to wait for others
        while self._waiting or not self._closed:
            self._bell.wait()
            if crowded and not self._closed:
                time.sleep(_GATHER_S)
            self._bell.clear()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST))]
            if self._waiting or self._closed:
                self._bell.set()
            if batch:
                self._commit(batch)
            crowded = len(batch) > 1

    def _commit(self, batch: list[_Waiting]) -> None:
        error: StoreError | None = None
        try:
            with self._store.writing() as connection:
                connection.exec_driver_sql(_insert(connection, len(batch)), tuple(chain.from_iterable(row for row, _ in batch)))
        except (StoreError, sa.exc.SQLAlchemyError) as problem:
            what = problem.what if isinstance(problem, StoreError) else str(problem)
            remedy = problem.remedy if isinstance(problem, StoreError) else ""
            error = StoreError(f"the request could not be logged: {what}", remedy=remedy)
        loops = {done.get_loop() for _, done in batch}
        for loop in loops:
            mine = [done for _, done in batch if done.get_loop() is loop]
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any longer
                loop.call_soon_threadsafe(_tell, mine, error)


def _tell(waiting: list[asyncio.Future[None]], error: StoreError | None) -> None:
    for done in waiting:
        if done.done():  # who waited was cancelled
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _insert(connection: sa.Connection, rows: int) -> str:
    """One statement for all rows: for each the driver lets go of the interpreter's lock, and taking it back costs more than a row."""
    place = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    one = f"({', '.join([place] * (len(_PLAIN) + len(_ENCODED)))})"
    return f"INSERT INTO interactions ({', '.join((*_PLAIN, *_ENCODED))}) VALUES {', '.join([one] * rows)} ON CONFLICT (id) DO NOTHING"
