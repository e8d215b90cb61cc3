"""Version 7: feedback says what was rated, how it came, and what it is about where the log has no such request."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from tunesmith.store.migrations.ddl import add_columns

feedback = sa.Table(
    "feedback",
    sa.MetaData(),
    sa.Column("id", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False, server_default=""),
    sa.Column("comment", sa.Text, nullable=False, server_default=""),
    sa.Column("source", sa.String, nullable=False, server_default=""),
    sa.Column("project", sa.String, nullable=False, server_default=""),
    sa.Column("received", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("alias", sa.String, nullable=False, server_default=""),
    sa.Column("messages", sa.Text),
    sa.Column("answer", sa.Text),
)
_received = sa.Index("ix_feedback_received", feedback.c.received)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Add the columns and the index."""
    names = [column.name for column in feedback.columns if column.name != "id"]
    add_columns(connection, feedback, *names)
    _received.create(connection)
