"""Version 13: which alerts are firing, what was told of them, and what is silenced."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)
alert_states = sa.Table(
    "alert_states",
    metadata,
    sa.Column("rule", sa.String, primary_key=True),
    sa.Column("alias", sa.String, primary_key=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("since", sa.Float, nullable=False),
    sa.Column("looked", sa.Float, nullable=False),
    sa.Column("value", sa.Float),
)
alert_events = sa.Table(
    "alert_events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("rule", sa.String, nullable=False),
    sa.Column("alias", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("channel", sa.String, nullable=False),
    sa.Column("labels", _JSON, nullable=False),
    sa.Column("body", _JSON, nullable=False),
    sa.Column("due", sa.Float, nullable=False, index=True),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("done", sa.Float),
    sa.Column("outcome", sa.String, nullable=False),
)
alert_silences = sa.Table(
    "alert_silences",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("until", sa.Float, nullable=False),
    sa.Column("labels", _JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String, nullable=False),
)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Make the tables."""
    metadata.create_all(connection, tables=[alert_states, alert_events, alert_silences], checkfirst=False)
