"""The scores of sampled answers: each answer once by each instrument. Knows nothing about how answers are scored."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.core.types import Record
from tunesmith.store.store import Store
from tunesmith.store.tables import quality_scores


class KeptScore(Record, frozen=True):
    """A row of the table; `value` None: it could not be computed."""

    interaction: str
    instrument: str
    alias: str
    metric: str
    answered: float
    scored: float
    golden: bool
    value: float | None


class QualityScores:
    """The scores of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, scores: Sequence[KeptScore]) -> None:
        """Keep them; an answer that this instrument scored already stays as it is."""
        if not scores:
            return
        with self._store.writing() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(quality_scores).on_conflict_do_nothing(index_elements=["interaction", "instrument"])
            connection.execute(statement, [msgspec.structs.asdict(score) for score in scores])

    def of(self, alias: str, metric: str) -> list[KeptScore]:
        """All scores of an alias by a metric, in the order in which they were given."""
        table = quality_scores.c
        query = sa.select(quality_scores).where(table.alias == alias, table.metric == metric)
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(table.scored, table.answered, table.interaction)).mappings()
            return [msgspec.convert({str(name): value for name, value in row.items()}, KeptScore) for row in rows]
