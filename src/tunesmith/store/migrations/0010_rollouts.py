"""Version 10: rollouts."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("alias", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("plan", _JSON, nullable=False),
    sa.Column("canary", sa.String, nullable=False),
    sa.Column("variants", _JSON, nullable=False),
    sa.Column("before", sa.Integer, nullable=False),
    sa.Column("first", sa.Integer, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("step_since", sa.Float, nullable=False),
    sa.Column("state", _JSON),
    sa.Column("turn", sa.Integer, nullable=False),
    sa.Column("looked", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("ended", sa.Float),
)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Make the table."""
    metadata.create_all(connection, tables=[rollouts], checkfirst=False)
