"""What all tables share."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
JSON = sa.JSON(none_as_null=True)  # None is NULL, not the JSON word null
EMPTY_LIST = sa.text("'[]'")


def ordered(name: str, *columns: Any) -> sa.Table:
    """A table of things that are listed by age: `seq` is the order in which they came, `id` what clients call them."""
    own = (sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True), sa.Column("id", sa.String, nullable=False, unique=True))
    return sa.Table(name, metadata, *own, sa.Column("created", sa.Float, nullable=False), *columns)


def project_column() -> sa.Column[Any]:
    """Whose a row is."""
    return sa.Column("project", sa.String, nullable=False, index=True)
