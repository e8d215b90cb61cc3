"""Version 4: what was looked up for an answer."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from tunesmith.store.migrations.ddl import add_columns

interactions = sa.Table("interactions", sa.MetaData(), sa.Column("id", sa.String, primary_key=True), sa.Column("sources", sa.Text))


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Add the column, NULL where nothing was looked up."""
    add_columns(connection, interactions, "sources")
