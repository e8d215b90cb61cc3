"""Version 1: stages of a pipeline, answered requests, what an alias answers with."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

metadata = sa.MetaData()

meta = sa.Table("meta", metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False))

# One finished stage of a pipeline: `digest` is the hash of all its inputs, `output` what it returned (JSON).
stages = sa.Table(
    "stages",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("project", sa.String, nullable=False, index=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
)

# Every answered request, as monitoring sees it (`core.types.Interaction`).
interactions = sa.Table(
    "interactions",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("alias", sa.String, nullable=False),
    sa.Column("variant", sa.String, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("finish_reason", sa.String, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("first_token_s", sa.Float, nullable=False),
    sa.Column("total_s", sa.Float, nullable=False),
    sa.Column("messages", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("tool_calls", sa.Text, nullable=False, default="[]"),
    sa.Column("error", sa.Text, nullable=False, default=""),
    sa.Column("conversation", sa.String),
)

# What an alias answers with, one row a change, the newest one in force: the audit trail is the table itself.
deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("alias", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)


def upgrade(connection: sa.Connection, _folder: Path) -> None:
    """Make the tables."""
    metadata.create_all(connection)
