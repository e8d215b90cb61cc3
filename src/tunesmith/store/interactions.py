"""The log of answered requests, written and read back: each row is acknowledged after its commit, written once however often it is sent.
Knows nothing about HTTP.

One thread writes, in the order in which rows come; those that arrive within a few milliseconds share one transaction, and so do the counts
of them (`counting.py`). The store's connections fsync each commit, so an acknowledged row survives kill -9 and a power cut. Whoever writes
waits for the row, so there are never more rows in memory than requests on their way.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

import msgspec
import sqlalchemy as sa

from tunesmith.core.errors import StoreError, UsageError
from tunesmith.core.types import Interaction, Record
from tunesmith.store.counting import Counting
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import feedback, interactions, shadow_answers
from tunesmith.store.wording import Reworded, reworded

_LOOKS, _LOOK_S = 6, 0.0005
_MOST = 256  # rows in one transaction
_COPIED = 32  # of so many on PostgreSQL takes COPY less time
_NAMED = 500  # ids in one question
_CHATS = ("chat.completions", "responses")  # the endpoints that are asked in messages

_ENCODED = ("messages", "tool_calls", "sources")
_PLAIN = tuple(column.name for column in interactions.columns if column.name not in _ENCODED)
_plain = attrgetter(*_PLAIN)
_encode = msgspec.json.Encoder().encode
_Waiting = tuple[Interaction, bool, asyncio.Future[None]]  # the row, whether it is kept or only counted, who waits


class InteractionLog:
    """Writes to the store's `interactions` table. `at_once` as `Store.writing` has it; of requests that were answered by the only variant
    the share `sample` is kept, whole conversations and users; `redact` changes the words of a row before they are written."""

    def __init__(self, store: Store, *, at_once: bool = True, sample: float = 1.0, redact: Reworded | None = None) -> None:
        self._store, self._at_once, self._sample, self._redact = store, at_once, sample, redact
        self._waiting: deque[_Waiting] = deque()
        self._bell = threading.Event()
        self._counting = Counting()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="interaction-log", daemon=True)
        self._thread.start()

    async def write(self, interaction: Interaction) -> None:
        """Write a row; returns when it is on disk. Raises StoreError when it could not be written (a full disk)."""
        if self._closed:
            raise StoreError("the interaction log is closed", remedy="open a new one")
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((interaction, self._kept(interaction), done))
        if not self._bell.is_set():
            self._bell.set()
        await done

    def _kept(self, row: Interaction) -> bool:
        if self._sample >= 1 or row.status >= 400 or row.experiment is not None or row.strategy not in ("", "one"):
            return True
        return zlib.crc32((row.user_key or row.conversation or row.id).encode()) < self._sample * 2**32

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._closed = True
        self._bell.set()
        self._thread.join()

    def _run(self) -> None:
        before = 0  # rows of the last transaction
        while self._waiting or not self._closed:
            self._bell.wait()
            if before > 1 and not self._closed:  # one client alone is not made to wait for others
                self._gather(before)
            self._bell.clear()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST))]
            if self._waiting or self._closed:
                self._bell.set()
            if batch:
                self._commit(batch)
            before = len(batch)

    def _gather(self, before: int) -> None:
        """Wait while rows come, until there are as many as before: who has just been told of one may well have the next."""
        there = -1
        for _ in range(_LOOKS):
            if there == len(self._waiting) or len(self._waiting) >= before:
                break
            there = len(self._waiting)
            time.sleep(_LOOK_S)

    def _commit(self, batch: list[_Waiting]) -> None:
        try:
            self._insert(batch)
        except StoreError as problem:  # the database is away, or the disk is full: the same for every row
            _tell(batch, _not_logged(problem.what, problem.remedy))
        except Exception as problem:  # noqa: BLE001 - a row that the driver does not take (a number or a text that is no column's) raises anything
            if len(batch) == 1:
                _tell(batch, _not_logged(str(problem)))
                return
            for alone in batch:
                self._commit([alone])
        else:
            _tell(batch, None)

    def _insert(self, batch: list[_Waiting]) -> None:
        """Write the rows and count those that were not there before, in one transaction."""
        by_id = {row.id: row for row, kept, _ in reversed(batch) if kept}  # of one that comes twice the first is written
        rows = list(by_id.values())
        values = [_values(row) for row in (rows if self._redact is None else reworded(rows, self._redact))]
        try:
            with self._store.writing(at_once=self._at_once) as connection:
                fresh = _written(connection, values)
                self._counting.write(connection, [*(by_id[number] for number in fresh), *(row for row, kept, _ in batch if not kept)])
        except BaseException:
            self._counting.forget()
            raise


def _not_logged(why: str, remedy: str = "") -> StoreError:
    return StoreError(f"the request could not be logged: {why}", remedy=remedy)


def _tell(batch: list[_Waiting], error: StoreError | None) -> None:
    """Wake those who wait for these rows, each in its own loop."""
    for loop in {done.get_loop() for *_, done in batch}:
        mine = [done for *_, done in batch if done.get_loop() is loop]
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any longer
            loop.call_soon_threadsafe(_answer, mine, error)


def _answer(waiting: list[asyncio.Future[None]], error: StoreError | None) -> None:
    for done in waiting:
        if done.done():  # who waited was cancelled
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _values(row: Interaction) -> tuple[Any, ...]:
    """The row as the statement takes it."""
    if "\0" in row.answer or "\0" in row.error:  # PostgreSQL has no text with it
        row = msgspec.structs.replace(row, **{name: getattr(row, name).replace("\0", "\ufffd") for name in ("answer", "error")})
    calls = _encode(row.tool_calls).decode() if row.tool_calls else "[]"
    sources = None if row.sources is None else _encode(row.sources).decode()
    return (*_plain(row), _encode(row.messages).decode(), calls, sources)


def _written(connection: sa.Connection, values: list[tuple[Any, ...]]) -> Iterable[str]:
    """Write rows; the ids of those that were not there before."""
    if not values:
        return ()
    if len(values) >= _COPIED and connection.dialect.name == "postgresql":
        return _copied(connection, values)
    return connection.exec_driver_sql(_insert(connection.dialect.paramstyle, len(values)), tuple(chain.from_iterable(values))).scalars()


def _copied(connection: sa.Connection, values: list[tuple[Any, ...]]) -> list[str]:
    """`_written` by PostgreSQL's COPY, which takes much less time than an INSERT of many rows: into a table of the session, which its
    transaction empties, and from there what is new."""
    columns = ", ".join((*_PLAIN, *_ENCODED))
    try:
        with contextlib.closing(connection.connection.cursor()) as psycopg_cursor:
            cursor: Any = psycopg_cursor
            cursor.execute("CREATE TEMP TABLE IF NOT EXISTS incoming (LIKE interactions INCLUDING DEFAULTS) ON COMMIT DELETE ROWS")
            with cursor.copy(f"COPY incoming ({columns}) FROM STDIN") as copy:
                for row in values:
                    copy.write_row(row)
            cursor.execute(f"INSERT INTO interactions ({columns}) SELECT {columns} FROM incoming ON CONFLICT (id) DO NOTHING RETURNING id")
            return [number for (number,) in cursor.fetchall()]
    except connection.dialect.loaded_dbapi.OperationalError as error:
        raise sa.exc.OperationalError("COPY interactions", None, error) from error


@lru_cache(maxsize=2 * _MOST)
def _insert(style: str, rows: int) -> str:
    """One statement for all rows: for each the driver lets go of the interpreter's lock, and taking it back costs more than a row."""
    place = "?" if style == "qmark" else "%s"
    row = f"({', '.join([place] * (len(_PLAIN) + len(_ENCODED)))})"
    columns = ", ".join((*_PLAIN, *_ENCODED))
    return f"INSERT INTO interactions ({columns}) VALUES {', '.join([row] * rows)} ON CONFLICT (id) DO NOTHING RETURNING id"


class Interactions:
    """Reads the log back."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, word: str) -> Interaction | None:
        """The request whose id is, or alone begins with, the word; None when there is none. Raises UsageError for several."""
        whole = sa.select(interactions).where(interactions.c.id == word)
        begins = (
            sa.select(interactions).where(interactions.c.id.startswith(word, autoescape=True)).order_by(interactions.c.created).limit(5)
        )
        with self._store.reading() as connection:
            rows = list(connection.execute(whole).mappings()) or list(connection.execute(begins).mappings())
        if len(rows) > 1:
            raise UsageError(
                f"several requests begin with '{word}'", allowed=", ".join(row["id"] for row in rows), remedy="give more of it"
            )
        return _interaction(rows[0]) if rows else None

    def answered(
        self,
        equal: Mapping[str, str],
        *,
        since: float | None = None,
        until: float | None = None,
        limit: int | None = None,
        oldest: bool = False,
    ) -> list[Interaction]:
        """The chats, asked as responses or not, that were answered without an error and fit all that is given (column → value), oldest
        first; the newest `limit`, or the `oldest` so many."""
        table = interactions.c
        order = (table.created, table.id) if oldest else (table.created.desc(), table.id.desc())
        query = sa.select(interactions).where(*_answered(equal, since, until)).order_by(*order).limit(limit)
        with self._store.reading() as connection:
            rows = [_interaction(row) for row in connection.execute(query).mappings()]
        return rows if oldest else rows[::-1]

    def count_answered(self, equal: Mapping[str, str], *, since: float | None = None, until: float | None = None) -> int:
        """How many chats `answered` has without a limit."""
        query = sa.select(sa.func.count()).select_from(interactions).where(*_answered(equal, since, until))
        with self._store.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def times_answered(self, equal: Mapping[str, str]) -> Iterator[tuple[str, float]]:
        """(id, when) of the chats that `answered` has, oldest first, read some thousand at a time."""
        table = interactions.c
        query = sa.select(table.id, table.created).where(*_answered(equal)).order_by(table.created, table.id)
        with self._store.snapshot() as connection:
            for row in connection.execute(query, execution_options={"yield_per": 4000}):
                yield row.id, row.created

    def named(self, ids: Sequence[str]) -> list[Interaction]:
        """The requests with these ids, oldest first; those that are no longer there are left out."""
        rows: list[Interaction] = []
        with self._store.reading() as connection:
            for begin in range(0, len(ids), _NAMED):
                query = sa.select(interactions).where(interactions.c.id.in_(list(ids[begin : begin + _NAMED])))
                rows += [_interaction(row) for row in connection.execute(query).mappings()]
        return sorted(rows, key=lambda row: (row.created, row.id))

    @staticmethod
    def columns() -> dict[str, type]:
        """The columns of a row, and what stands in them where they are not empty."""
        return {column.name: column.type.python_type for column in interactions.columns}

    def rows(self, equal: Mapping[str, str], *, since: float = 0.0, until: float = math.inf) -> Iterator[dict[str, Any]]:
        """Every request that fits, however it ended, oldest first, as the table has it: messages, calls and sources are JSON. Read some
        thousand at a time; what is written meanwhile is not among them."""
        table = interactions.c
        where = [table.created >= since, *([table.created < until] if until < math.inf else [])]
        where += [table[name] == value for name, value in equal.items()]
        query = sa.select(interactions).where(*where).order_by(table.created, table.id)
        with self._store.snapshot() as connection:
            for row in connection.execute(query, execution_options={"yield_per": 4000}).mappings():
                yield {str(name): value for name, value in row.items()}

    def count(
        self,
        *,
        deployments: Collection[int] | None = None,
        aliases: Collection[str] | None = None,
        model_digest: str | None = None,
        conversation: str | None = None,
    ) -> RequestCount:
        """The requests that fit all that is given, counted."""
        table = interactions.c
        where: list[sa.ColumnElement[bool]] = []
        where += [table.deployment.in_(list(deployments))] if deployments is not None else []
        where += [table.alias.in_(list(aliases))] if aliases is not None else []
        where += [table.model_digest == model_digest] if model_digest is not None else []
        where += [table.conversation == conversation] if conversation is not None else []
        failed = sa.func.sum(sa.case((table.status >= 400, 1), else_=0))
        query = sa.select(sa.func.count(), failed, sa.func.min(table.created), sa.func.max(table.created), sa.func.sum(table.cost_usd))
        with self._store.reading() as connection:
            count, errors, first, last, cost = connection.execute(query.where(*where)).one()
        return RequestCount(requests=count, errors=errors or 0, first=first, last=last, cost_usd=cost)

    def expire(self, before: float, most: int = 2000) -> int:
        """Delete rows from before a time, the oldest first, at most so many, with their shadows' answers and what was said of them; returns
        how many."""
        query = sa.select(interactions.c.id).where(interactions.c.created < before).order_by(interactions.c.created).limit(most)
        with self._store.reading() as connection:  # usually nothing is so old, and who only looks takes no lock
            old = list(connection.execute(query).scalars())
        if old:
            with self._store.writing() as connection:
                for column in (shadow_answers.c.interaction, feedback.c.interaction, interactions.c.id):
                    connection.execute(sa.delete(column.table).where(column.in_(old)))
        return len(old)

    def assigned(self, conversation: str, alias: str, project: str) -> tuple[str, float, str | None] | None:
        """(variant, propensity, experiment) that a conversation was assigned last, by a strategy and not by somebody's word; None for a new
        one."""
        table = interactions.c
        where = [table.conversation == conversation, table.alias == alias, table.project == project, table.deployment.is_not(None)]
        query = (
            sa.select(table.variant, table.propensity, table.experiment)
            .where(*where, table.propensity.is_not(None))
            .order_by(table.created.desc())
            .limit(1)
        )
        with self._store.reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else (row.variant, row.propensity, row.experiment)

    def answered_by(self, begins: str) -> list[tuple[str, str, int | None]]:
        """(model digest, alias, deployment version) of everything that models answered as whose digests begin so."""
        table = interactions.c
        columns = (table.model_digest, table.alias, table.deployment)
        query = sa.select(*columns).where(table.model_digest.startswith(begins, autoescape=True)).distinct().order_by(*columns)
        with self._store.reading() as connection:
            return [(row.model_digest, row.alias, row.deployment) for row in connection.execute(query)]


def _answered(equal: Mapping[str, str], since: float | None = None, until: float | None = None) -> list[sa.ColumnElement[bool]]:
    """What holds of the chats that were answered without an error and fit all that is given."""
    table = interactions.c
    where: list[sa.ColumnElement[bool]] = [table.endpoint.in_(_CHATS), table.status == 200, table.error == ""]
    where += [table[name] == value for name, value in equal.items()]
    where += [table.created >= since] if since is not None else []
    return where + ([table.created < until] if until is not None else [])


class RequestCount(Record, frozen=True):
    """Requests counted. `first` and `last` are seconds of the epoch, None where there are none; `cost_usd` of those whose cost is known."""

    requests: int
    errors: int
    first: float | None
    last: float | None
    cost_usd: float | None


def _interaction(row: Row) -> Interaction:
    tree = {str(key): value for key, value in row.items()}
    tree |= {name: msgspec.json.decode(tree[name]) for name in _ENCODED if tree[name] is not None}
    return msgspec.convert(tree, Interaction)
