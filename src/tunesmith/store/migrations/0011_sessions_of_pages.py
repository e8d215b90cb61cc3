"""Version 11: who is signed in to the pages."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

metadata = sa.MetaData()
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("hash", sa.String, primary_key=True),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False, index=True),
)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Make the table."""
    metadata.create_all(connection, tables=[sessions], checkfirst=False)
