"""Version 8: requests are counted by minute, hour and day as they are logged; those that are in the log already are counted here."""

from __future__ import annotations

import math
import secrets
import struct
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
_SPANS = (60, 3_600, 86_400)
_LOG = math.log(1.01 / 0.99)
_ROWS = 4000  # in one statement

interactions = sa.Table(
    "interactions",
    sa.MetaData(),
    sa.Column("created", sa.Float),
    sa.Column("project", sa.String),
    sa.Column("alias", sa.String),
    sa.Column("deployment", sa.Integer),
    sa.Column("variant", sa.String),
    sa.Column("experiment", sa.String),
    sa.Column("endpoint", sa.String),
    sa.Column("status", sa.Integer),
    sa.Column("fallback", sa.String),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("first_token_s", sa.Float),
    sa.Column("total_s", sa.Float),
    sa.Column("cost_usd", sa.Float),
)

request_counts = sa.Table(
    "request_counts",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("span", sa.Integer, nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("alias", sa.String, nullable=False),
    sa.Column("deployment", sa.Integer),
    sa.Column("variant", sa.String, nullable=False),
    sa.Column("experiment", sa.String),
    sa.Column("endpoint", sa.String, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("answered", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("left", sa.BigInteger, nullable=False),
    sa.Column("fallbacks", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("generated", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("cost_usd", sa.Float),
    sa.Column("last", sa.Float),
    sa.Column("first_token_s", sa.LargeBinary, nullable=False),
    sa.Column("total_s", sa.LargeBinary, nullable=False),
    sa.Index("ix_request_counts_span_start", "span", "start"),
)

_Place = tuple[int, Any]  # the beginning of a span; (project, alias, deployment, variant, experiment, endpoint)


class _Count:
    """What was counted of one group in one span."""

    def __init__(self) -> None:
        self.requests = self.answered = self.failed = self.left = self.fallbacks = 0
        self.prompt = self.completion = self.generated = 0
        self.seconds, self.last = 0.0, 0.0
        self.cost: float | None = None
        self.first: dict[int, int] = {}
        self.total: dict[int, int] = {}

    def add(self, row: Any) -> None:
        """Count a row of the log."""
        self.requests += 1
        self.prompt += row.prompt_tokens
        self.completion += row.completion_tokens
        self.fallbacks += row.fallback is not None
        self.last = max(self.last, row.created)
        if row.cost_usd is not None:
            self.cost = (self.cost or 0.0) + row.cost_usd
        if row.status < 400:
            self.answered += 1
            self.generated += row.completion_tokens
            self.seconds += row.total_s
            for sketch, value in ((self.first, row.first_token_s), (self.total, row.total_s)):
                bucket = math.ceil(math.log(max(value, 1e-9)) / _LOG)
                sketch[bucket] = sketch.get(bucket, 0) + 1
        else:
            self.left += row.status == 499
            self.failed += row.status >= 500

    def merge(self, other: _Count) -> None:
        """Count what another counted."""
        for name in ("requests", "answered", "failed", "left", "fallbacks", "prompt", "completion", "generated", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last = max(self.last, other.last)
        if other.cost is not None:
            self.cost = (self.cost or 0.0) + other.cost
        for mine, its in ((self.first, other.first), (self.total, other.total)):
            for bucket, count in its.items():
                mine[bucket] = mine.get(bucket, 0) + count

    def row(self, span: int, place: _Place) -> dict[str, Any]:
        """The row of the new table."""
        start, group = place
        columns = ("project", "alias", "deployment", "variant", "experiment", "endpoint")
        return {
            "id": secrets.token_hex(8),
            "span": span,
            "start": start,
            **dict(zip(columns, group, strict=True)),
            "requests": self.requests,
            "answered": self.answered,
            "failed": self.failed,
            "left": self.left,
            "fallbacks": self.fallbacks,
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "generated": self.generated,
            "seconds": self.seconds,
            "cost_usd": self.cost,
            "last": self.last,
            "first_token_s": _packed(self.first),
            "total_s": _packed(self.total),
        }


def _packed(buckets: dict[int, int]) -> bytes:
    return struct.pack(f"<{2 * len(buckets)}i", *chain.from_iterable(buckets.items()))


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Make the table, and count the log once, oldest first: what is over is written some thousand rows at a time."""
    metadata.create_all(connection, tables=[request_counts], checkfirst=False)
    open_spans: dict[int, dict[_Place, _Count]] = {span: {} for span in _SPANS}
    ready: list[dict[str, Any]] = []
    now = -1
    log = sa.select(interactions).order_by(interactions.c.created)
    for row in connection.execute(log, execution_options={"yield_per": 10_000}):
        group = (row.project, row.alias, row.deployment, row.variant, row.experiment, row.endpoint)
        minute = int(row.created // _SPANS[0]) * _SPANS[0]
        if minute != now:
            now = minute
            ready += _over(open_spans, now)
            if len(ready) >= _ROWS:
                connection.execute(sa.insert(request_counts), ready)
                ready = []
        open_spans[_SPANS[0]].setdefault((minute, group), _Count()).add(row)
    ready += _over(open_spans, None)
    if ready:
        connection.execute(sa.insert(request_counts), ready)


def _over(open_spans: dict[int, dict[_Place, _Count]], now: int | None) -> list[dict[str, Any]]:
    """The rows of the spans that are over at `now` (None: all), each added to the next longer one."""
    rows = []
    for at, span in enumerate(_SPANS):
        for place in [place for place in open_spans[span] if now is None or place[0] + span <= now]:
            count, (start, group) = open_spans[span].pop(place), place
            rows.append(count.row(span, place))
            if at + 1 < len(_SPANS):
                longer = _SPANS[at + 1]
                open_spans[longer].setdefault((start - start % longer, group), _Count()).merge(count)
    return rows
