"""Version 14: what the weights that were deployed answer to probes, and what later looks at the served ones found."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

metadata = sa.MetaData()

identity_references = sa.Table(
    "identity_references",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("reference", sa.Text, nullable=False),
)

identity_checks = sa.Table(
    "identity_checks",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("alias", sa.String, nullable=False, index=True),
    sa.Column("deployment", sa.Integer, nullable=False),
    sa.Column("variant", sa.String, nullable=False),
    sa.Column("moment", sa.String, nullable=False),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("server", sa.String, nullable=False),
    sa.Column("p", sa.Float),
    sa.Column("distance", sa.Float),
    sa.Column("probes", sa.Integer, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Make the tables."""
    metadata.create_all(connection, checkfirst=False)
