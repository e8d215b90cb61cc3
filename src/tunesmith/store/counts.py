"""What the log of requests adds up to, read from what was counted when it was written (`counting.py`); knows nothing about what the figures
say.

Nothing here reads the log: a question costs the same over ten rows and over ten million. Time goes by whole minutes; of a longer while the
whole hours and days in it are read as such, at most some hundred rows for each group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from tunesmith.core.sketch import Sketch
from tunesmith.store.counting import SPANS, SUMS, TIMED, Count
from tunesmith.store.store import Store
from tunesmith.store.tables import request_counts

_TABLE = request_counts.c


def minute_of(moment: float) -> float:
    """The beginning of a moment's minute, in seconds of the epoch."""
    return moment // SPANS[0] * SPANS[0]


def counts(
    store: Store,
    since: float = 0.0,
    until: float = math.inf,
    *,
    by: Collection[str] = (),
    equal: Mapping[str, Any] | None = None,
) -> dict[tuple[Any, ...], Count]:
    """The requests that came from the minute of `since` up to, and with, that of `until`, added up for each value of the columns `by`.

    `by` and the keys of `equal` are columns of `counting.GROUPED`: project, alias, deployment, variant, experiment, endpoint; a list in
    `equal` means any of its values. Without `by` the whole has the key (). Groups without requests are left out. Raises StoreError.
    """
    where = [_fits(_TABLE[name], value) for name, value in (equal or {}).items()]
    spans = [sa.and_(_TABLE.span == span, *_within(first, end)) for span, first, end in _spans(minute_of(since), until)]
    if not spans:
        return {}
    groups = [_TABLE[name] for name in by]
    query = sa.select(*groups, *(_TABLE[name] for name in (*SUMS, "cost_usd", "last", *TIMED))).where(sa.or_(*spans), *where)
    found: dict[tuple[Any, ...], list[Any]] = {}
    with store.reading() as connection:
        for row in connection.execute(query.order_by(*groups)):
            found.setdefault(tuple(row[: len(by)]), []).append(row)
    return {group: _added_up(rows) for group, rows in found.items()}


def summed(each: Iterable[Count]) -> Count:
    """All of them together."""
    whole = Count()
    for count in each:
        whole.merge(count)
    return whole


def series(store: Store, since: float, until: float, span: int, *, equal: Mapping[str, Any] | None = None) -> dict[float, Count]:
    """The requests of each minute, hour or day (`span` is one of `counting.SPANS`) that begins in the time given, by its beginning."""
    where = [_fits(_TABLE[name], value) for name, value in (equal or {}).items()]
    query = sa.select(_TABLE.start, *(_TABLE[name] for name in (*SUMS, "cost_usd", "last", *TIMED)))
    query = query.where(_TABLE.span == span, *_within(since, until), *where).order_by(_TABLE.start)
    found: dict[float, list[Any]] = {}
    with store.reading() as connection:
        for row in connection.execute(query):
            found.setdefault(float(row.start), []).append(row)
    return {start: _added_up(rows) for start, rows in found.items()}


def _fits(column: Any, value: Any) -> Any:
    return column.in_(value) if isinstance(value, list | tuple | set | frozenset) else column == value


def _within(first: float, end: float) -> list[Any]:
    return [_TABLE.start >= first, *([_TABLE.start < end] if end < math.inf else [])]


def _spans(first: float, until: float) -> Iterator[tuple[int, float, float]]:
    """(span, first, end) that cover the time once: minutes up to the first whole hour, hours up to the first whole day, days, and back."""
    end = until if until == math.inf else minute_of(until) + SPANS[0]
    for span, longer in itertools.pairwise(SPANS):
        low, high = math.ceil(first / longer) * longer, end if end == math.inf else end // longer * longer
        if low >= high:
            break
        yield from ((span, a, b) for a, b in ((first, low), (high, end)) if a < b)
        first, end = low, high
    else:
        span = SPANS[-1]
    if first < end:
        yield span, first, end


def _added_up(rows: list[Any]) -> Count:
    whole = Count()
    for name in SUMS:
        setattr(whole, name, sum(getattr(row, name) for row in rows))
    priced = [row.cost_usd for row in rows if row.cost_usd is not None]
    whole.cost_usd = sum(priced) if priced else None
    whole.last = max((row.last for row in rows if row.last is not None), default=None)
    whole.first_token_s = Sketch.of(row.first_token_s for row in rows)
    whole.total_s = Sketch.of(row.total_s for row in rows)
    return whole
