"""What a run of the circle leaves: its stages and what it was made with."""

from __future__ import annotations

import sqlalchemy as sa

from tunesmith.store.tables.base import EMPTY_LIST, JSON, metadata

meta = sa.Table("meta", metadata, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.String, nullable=False))

# One finished stage of a pipeline: `digest` is the hash of all its inputs, `output` what it returned (JSON), `needs` the digests of the
# stages that it was made from.
stages = sa.Table(
    "stages",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("project", sa.String, nullable=False, index=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("needs", JSON, nullable=False, server_default=EMPTY_LIST),
)

# What a run was made with: its overrides (`--train.epochs=2`), the digest of each stage; `finished` is when, NULL while it is under way.
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("project", sa.String, nullable=False, index=True),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("overrides", JSON, nullable=False),
    sa.Column("digests", JSON, nullable=False),
    sa.Column("finished", sa.Float),
    sa.Column("decision", sa.String),
)
