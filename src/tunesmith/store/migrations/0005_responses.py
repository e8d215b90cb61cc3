"""Version 5: responses that are kept for their clients."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)

responses = sa.Table(
    "responses",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("project", sa.String, nullable=False, index=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False, index=True),
    sa.Column("previous", sa.String),
    sa.Column("elsewhere", sa.String),
    sa.Column("items", _JSON, nullable=False),
    sa.Column("response", _JSON, nullable=False),
)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Make the table."""
    metadata.create_all(connection, tables=[responses], checkfirst=False)
