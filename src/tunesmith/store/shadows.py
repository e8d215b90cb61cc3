"""What copies of requests were answered, and which were not made; knows nothing about how they are asked."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from tunesmith.core.types import ShadowAnswer
from tunesmith.store.store import Store
from tunesmith.store.tables import shadow_answers
from tunesmith.store.wording import Reworded, reworded


class ShadowAnswers:
    """The answers of shadows of one store."""

    def __init__(self, store: Store, redact: Reworded | None = None) -> None:
        self._store, self._redact = store, redact

    def put(self, row: ShadowAnswer) -> None:
        """Keep one, its words changed where they are to be redacted. Raises StoreError."""
        if self._redact is not None:
            (row,) = reworded([row], self._redact)
        values = msgspec.structs.asdict(row) | {"tool_calls": msgspec.json.encode(row.tool_calls).decode()}
        shown = {name: value.replace("\0", "\ufffd") if isinstance(value, str) else value for name, value in values.items()}
        with self._store.writing() as connection:
            connection.execute(sa.insert(shadow_answers).values(**shown))

    def of(self, alias: str) -> list[ShadowAnswer]:
        """All of an alias, oldest first."""
        columns = [column for column in shadow_answers.columns if column.name != "seq"]
        query = sa.select(*columns).where(shadow_answers.c.alias == alias).order_by(shadow_answers.c.seq)
        with self._store.reading() as connection:
            rows = [{str(key): value for key, value in row.items()} for row in connection.execute(query).mappings()]
        return [msgspec.convert(row | {"tool_calls": msgspec.json.decode(row["tool_calls"])}, ShadowAnswer) for row in rows]
