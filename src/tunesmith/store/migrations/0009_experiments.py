"""Version 9: experiments, what was said of them, and whom a deployment enrols."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from tunesmith.store.migrations.ddl import add_columns

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)

deployments = sa.Table(
    "deployments",
    sa.MetaData(),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("enrolment", _JSON),
)
interactions = sa.Table("interactions", sa.MetaData(), sa.Column("id", sa.String, primary_key=True), sa.Column("experiment", sa.String))
_counted = interactions.c.experiment.is_not(None)
_by_experiment = sa.Index("ix_interactions_experiment", interactions.c.experiment, sqlite_where=_counted, postgresql_where=_counted)

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("alias", sa.String, nullable=False, index=True),
    sa.Column("layer", sa.String, nullable=False),
    sa.Column("low", sa.Float, nullable=False),
    sa.Column("high", sa.Float, nullable=False),
    sa.Column("plan", _JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("deployment", sa.Integer),
    sa.Column("stopped", sa.Float),
    sa.Column("outcome", sa.Text, nullable=False, server_default=""),
)

verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("experiment", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("metric", sa.String, nullable=False),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("look", _JSON, nullable=False),
)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Add the column and make the tables."""
    add_columns(connection, deployments, "enrolment")
    _by_experiment.create(connection)
    metadata.create_all(connection, tables=[experiments, verdicts], checkfirst=False)
