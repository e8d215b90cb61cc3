"""Version 12: the scores of sampled answers, each with the instrument that gave it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

metadata = sa.MetaData()
quality_scores = sa.Table(
    "quality_scores",
    metadata,
    sa.Column("interaction", sa.String, primary_key=True),
    sa.Column("instrument", sa.String, primary_key=True),
    sa.Column("alias", sa.String, nullable=False),
    sa.Column("metric", sa.String, nullable=False),
    sa.Column("answered", sa.Float, nullable=False),
    sa.Column("scored", sa.Float, nullable=False),
    sa.Column("golden", sa.Boolean, nullable=False),
    sa.Column("value", sa.Float),
)
sa.Index("ix_quality_scores_alias", quality_scores.c.alias, quality_scores.c.metric)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Make the table."""
    metadata.create_all(connection, tables=[quality_scores], checkfirst=False)
