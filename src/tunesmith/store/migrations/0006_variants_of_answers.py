"""Version 6: interactions say by which strategy their variant was chosen and which one answered in its place; answers of shadows."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from tunesmith.store.migrations.ddl import add_columns

metadata = sa.MetaData()
interactions = sa.Table(
    "interactions",
    sa.MetaData(),
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("strategy", sa.String, nullable=False, server_default=""),
    sa.Column("fallback", sa.String),
)

shadow_answers = sa.Table(
    "shadow_answers",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("interaction", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("alias", sa.String, nullable=False),
    sa.Column("deployment", sa.Integer, nullable=False, index=True),
    sa.Column("variant", sa.String, nullable=False),
    sa.Column("model_digest", sa.String, nullable=False),
    sa.Column("skipped", sa.String, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("tool_calls", sa.Text, nullable=False),
    sa.Column("finish_reason", sa.String, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("total_s", sa.Float, nullable=False),
)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Add the columns and make the table."""
    add_columns(connection, interactions, "strategy", "fallback")
    metadata.create_all(connection, tables=[shadow_answers], checkfirst=False)
