"""What the log of requests adds up to, counted in the database; knows nothing about what the figures say.

Sums come from GROUP BY. Quantiles need single values by their rank, which a window over the sorted column numbers; no row of the log is
brought here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from tunesmith.store.store import Store
from tunesmith.store.tables import interactions as log

# The columns whose values by rank are wanted: seconds until the first token and until the last, of requests that were answered.
TIMED = ("first_token_s", "total_s")
_ANSWERED = log.c.status < 400


@dataclass
class Tally:
    """What was asked of one variant of an alias (of all where both are None).

    `answered` requests had a status below 400; `generated` tokens and `seconds` are theirs. `values` has, by column, rank (from 0) → value.
    """

    alias: str | None
    variant: str | None
    requests: int
    answered: int
    prompt_tokens: int
    completion_tokens: int
    generated: int
    seconds: float
    cost_usd: float | None
    last: float | None
    values: dict[str, dict[int, float]] = field(default_factory=dict)


def tallies(store: Store, since: float, ranks: Callable[[int], Iterable[int]]) -> tuple[Tally, list[Tally]]:
    """(of all, of each alias and variant) since a time in seconds of the epoch; `ranks(n)` are the ranks wanted of n values."""
    with store.snapshot() as connection:
        whole = _sums(connection, since, [])[0]
        each = _sums(connection, since, [log.c.alias, log.c.variant])
        for group, by in (([whole], []), (each, [log.c.alias, log.c.variant])):
            for column in TIMED:
                _ranked(connection, since, group, by, column, ranks)
    return whole, each


def _sums(connection: sa.Connection, since: float, by: list[Any]) -> list[Tally]:
    def total(column: Any, *, answered: bool = False) -> Any:
        return sa.func.coalesce(sa.func.sum(sa.case((_ANSWERED, column), else_=0) if answered else column), 0)

    query = sa.select(
        *(by or [sa.null(), sa.null()]),
        sa.func.count(),
        total(1, answered=True),
        total(log.c.prompt_tokens),
        total(log.c.completion_tokens),
        total(log.c.completion_tokens, answered=True),
        total(log.c.total_s, answered=True),
        sa.func.sum(log.c.cost_usd),
        sa.func.max(log.c.created),
    )
    return [Tally(*row) for row in connection.execute(query.where(log.c.created >= since).group_by(*by).order_by(*by))]


def _ranked(
    connection: sa.Connection, since: float, groups: list[Tally], by: list[Any], name: str, ranks: Callable[[int], Iterable[int]]
) -> None:
    """Fill in the values of one column at the ranks that each group wants."""
    wanted = {(group.alias, group.variant): (group, {*ranks(group.answered)}) for group in groups}
    every = {rank for _, asked in wanted.values() for rank in asked}
    column = log.c[name]
    place = (sa.func.row_number().over(partition_by=by or None, order_by=column) - 1).label("place")
    numbered = sa.select(*(by or [sa.null().label("alias"), sa.null().label("variant")]), column.label("value"), place)
    inner = numbered.where(log.c.created >= since, _ANSWERED).subquery()
    for alias, variant, value, rank in connection.execute(sa.select(inner).where(inner.c.place.in_(every))):
        group, asked = wanted[(alias, variant)]
        if rank in asked:
            group.values.setdefault(name, {})[rank] = float(value)
