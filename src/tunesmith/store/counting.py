"""Requests counted by minute, hour and day while they are logged, so that nobody who asks how many there were reads the log; knows nothing
about who asks.

What was counted is written in the transaction of the rows themselves: after a crash both are there or neither. Each process keeps the
counts that it is adding to in memory and writes each whole, as a row of its own; what several processes counted, or one before and after
it was started anew, is added up by whoever reads (`counts.py`). So writers never wait for each other's counts, and never read them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol

import sqlalchemy as sa

from tunesmith.core.sketch import Sketch
from tunesmith.core.types import CLIENT_LEFT

SPANS = (60, 3_600, 86_400)  # seconds; each is a multiple of the one before
GROUPED = ("project", "alias", "deployment", "variant", "experiment", "endpoint")
SUMS = ("requests", "answered", "failed", "left", "fallbacks", "prompt_tokens", "completion_tokens", "generated", "seconds")
TIMED = ("first_token_s", "total_s")  # of requests that were answered
_SUMMED = (*SUMS, "cost_usd", "last")
_COLUMNS = ("id", "span", "start", *GROUPED, *_SUMMED, *TIMED)
_REMEMBERED = 4096  # counts that are still added to


class Asked(Protocol):
    """What is counted of a request."""

    @property
    def status(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...
    @property
    def first_token_s(self) -> float: ...
    @property
    def total_s(self) -> float: ...
    @property
    def created(self) -> float: ...
    @property
    def cost_usd(self) -> float | None: ...
    @property
    def fallback(self) -> str | None: ...


class Count:
    """Requests added up.

    `answered` had a status below 400, `failed` one of 500 or more, `left` were left by their clients, `fallbacks` were answered by another
    variant than their own. `generated` tokens, `seconds` and the sketches are those of answered requests; `cost_usd` is the sum where the
    price is known, None where it never is; `last` is when the last one came.
    """

    __slots__ = (*SUMS, *TIMED, "cost_usd", "last")

    def __init__(self) -> None:
        self.requests = self.answered = self.failed = self.left = self.fallbacks = 0
        self.prompt_tokens = self.completion_tokens = self.generated = 0
        self.seconds = 0.0
        self.cost_usd: float | None = None
        self.last: float | None = None
        self.first_token_s, self.total_s = Sketch(), Sketch()

    @property
    def errors(self) -> int:
        """Requests that were not answered, whoever's fault it was."""
        return self.requests - self.answered

    def add(self, row: Asked) -> None:
        """Count a request."""
        self.requests += 1
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        if row.status < 400:
            self.answered += 1
            self.generated += row.completion_tokens
            self.seconds += row.total_s
            self.first_token_s.add(row.first_token_s)
            self.total_s.add(row.total_s)
        elif row.status == CLIENT_LEFT:
            self.left += 1
        elif row.status >= 500:
            self.failed += 1
        self.fallbacks += row.fallback is not None
        self._spent(row.cost_usd, row.created)

    def merge(self, other: Count) -> None:
        """Count what another counted."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_token_s.merge(other.first_token_s)
        self.total_s.merge(other.total_s)
        self._spent(other.cost_usd, other.last)

    def _spent(self, cost_usd: float | None, last: float | None) -> None:
        if cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + cost_usd
        if last is not None:
            self.last = last if self.last is None or last > self.last else self.last


class _SpanCount(Count):
    """What one process counted of one group in one span; `number` names its row."""

    __slots__ = ("group", "number", "span", "start")

    def __init__(self, span: int, start: int, group: tuple[Any, ...]) -> None:
        super().__init__()
        self.span, self.start, self.group, self.number = span, start, group, secrets.token_hex(8)

    def values(self) -> tuple[Any, ...]:
        """The row, in the order of `_COLUMNS`."""
        sums = (getattr(self, name) for name in _SUMMED)
        return (self.number, self.span, self.start, *self.group, *sums, *(getattr(self, name).packed() for name in TIMED))


class Counting:
    """What one process is counting. `write` within the transaction that the rows are written in; `forget` when that failed."""

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int, tuple[Any, ...]], _SpanCount] = {}

    def write(self, connection: sa.Connection, rows: Iterable[Any]) -> None:
        """Count new rows of the log (`core.types.Interaction`) and write the counts that this changed."""
        changed = [self._added(place, count) for place, count in _by_minute(rows).items()]
        values = [span.values() for spans in changed for span in spans]
        if values:
            connection.exec_driver_sql(_upsert(connection.dialect.paramstyle), values)
        while len(self._spans) > _REMEMBERED:
            del self._spans[next(iter(self._spans))]  # what comes later is counted in a row of its own

    def forget(self) -> None:
        """Nothing that was counted since the last commit is written: begin new rows, beside those that are."""
        self._spans.clear()

    def _added(self, place: tuple[int, tuple[Any, ...]], count: Count) -> list[_SpanCount]:
        minute, group = place
        spans = []
        for span in SPANS:
            key = (span, minute - minute % span, group)
            known = self._spans.pop(key, None) or _SpanCount(*key)
            known.merge(count)
            self._spans[key] = known  # at the end: the latest that was added to
            spans.append(known)
        return spans


def _by_minute(rows: Iterable[Any]) -> dict[tuple[int, tuple[Any, ...]], Count]:
    counts: dict[tuple[int, tuple[Any, ...]], Count] = {}
    for row in rows:
        place = (
            int(row.created // SPANS[0]) * SPANS[0],
            (row.project, row.alias, row.deployment, row.variant, row.experiment, row.endpoint),
        )
        count = counts.get(place)
        if count is None:
            count = counts[place] = Count()
        count.add(row)
    return counts


@lru_cache
def _upsert(style: str) -> str:
    """The statement as text: SQLAlchemy's own takes longer than what it does."""
    place = "?" if style == "qmark" else "%s"
    grows = ", ".join(f'"{name}" = excluded."{name}"' for name in (*_SUMMED, *TIMED))
    columns, places = ", ".join(f'"{name}"' for name in _COLUMNS), ", ".join([place] * len(_COLUMNS))
    return f"INSERT INTO request_counts ({columns}) VALUES ({places}) ON CONFLICT (id) DO UPDATE SET {grows}"
