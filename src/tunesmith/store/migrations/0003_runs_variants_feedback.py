"""Version 3: where things come from: what a stage was made from, runs, the variants of a deployment, who asked what and what was said of
the answer.

A deployment was one absolute adapter on one absolute base; it becomes a variant whose place is relative to the store's folder, so that
the folder can be moved. A tuned model may be whole weights in place of an adapter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tunesmith.core.errors import StoreError
from tunesmith.store.migrations.ddl import add_columns, allow_null, drop_column

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)
_NONE = sa.text("'[]'")  # an empty JSON list

stages = sa.Table(
    "stages", metadata, sa.Column("digest", sa.String, primary_key=True), sa.Column("needs", _JSON, nullable=False, server_default=_NONE)
)

interactions = sa.Table(
    "interactions",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("alias", sa.String, nullable=False),
    sa.Column("conversation", sa.String),
    sa.Column("project", sa.String, nullable=False, server_default=""),
    sa.Column("endpoint", sa.String, nullable=False, server_default="chat.completions"),
    sa.Column("deployment", sa.Integer),
    sa.Column("model_digest", sa.String, nullable=False, server_default=""),
    sa.Column("user_key", sa.String),
    sa.Column("cost_usd", sa.Float),
    sa.Column("experiment", sa.String),
    sa.Column("propensity", sa.Float),
)
_ADDED = ("project", "endpoint", "deployment", "model_digest", "user_key", "cost_usd", "experiment", "propensity")
_by_alias = sa.Index("ix_interactions_alias_created", interactions.c.alias, interactions.c.created)
_talks = interactions.c.conversation.is_not(None)
_by_conversation = sa.Index("ix_interactions_conversation", interactions.c.conversation, sqlite_where=_talks, postgresql_where=_talks)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("alias", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("strategy", sa.String, nullable=False, server_default="one"),
    sa.Column("variants", _JSON, nullable=False, server_default=_NONE),
    sa.Column("by", sa.String, nullable=False, server_default=""),
)

tuned_models = sa.Table(
    "tuned_models",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("project", sa.String, nullable=False, index=True),
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("base", sa.String, nullable=False),
    sa.Column("adapter", sa.String),
    sa.Column("checkpoint", sa.Boolean, nullable=False),
    sa.Column("weights", sa.String),
    sa.Column("digest", sa.String, nullable=False, server_default=""),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("project", sa.String, nullable=False, index=True),
    sa.Column("command", sa.String, nullable=False),
    sa.Column("overrides", _JSON, nullable=False),
    sa.Column("digests", _JSON, nullable=False),
    sa.Column("finished", sa.Float),
    sa.Column("decision", sa.String),
)

feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("interaction", sa.String, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("number", sa.Float),
    sa.Column("text", sa.Text),
    sa.Column("correction", sa.Text),
    sa.Column("by", sa.String, nullable=False),
)


def upgrade(connection: sa.Connection, folder: Path) -> None:
    """Add what is new, and turn each deployment's record into its variant."""
    add_columns(connection, stages, "needs")
    add_columns(connection, interactions, *_ADDED)
    _by_alias.create(connection)
    _by_conversation.create(connection)
    add_columns(connection, tuned_models, "weights", "digest")
    allow_null(connection, tuned_models, "adapter")
    add_columns(connection, deployments, "strategy", "variants", "by")
    before = sa.table("deployments", sa.column("version"), sa.column("record"))
    for version, record in connection.execute(sa.select(before)).all():
        changed = sa.update(deployments).where(deployments.c.version == version)
        try:
            variant = _variant(json.loads(record), folder)
        except (LookupError, TypeError, ValueError) as error:
            raise StoreError(f"deployment {version} has the record {record[:200]!r}, which cannot be read: {error!r}") from error
        connection.execute(changed.values(variants=[variant]))
    drop_column(connection, deployments, "record")
    metadata.create_all(connection, tables=[runs, feedback], checkfirst=False)


def _variant(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    adapter = record.get("adapter")
    model = {"base": _base(record)}
    if adapter:
        model["adapter"] = _place(Path(adapter), folder)
    if record.get("run"):
        model["made_by"] = f"run:{record['run']}"
    return {"name": "tuned" if adapter else "base", "model": model}


def _base(record: dict[str, Any]) -> str:
    """The word for the base where its folder is the catalogue's of that word (so it is found on any machine), else the folder."""
    folder, word = Path(record["base"]), str(record.get("base_name") or "")
    return word if word and folder.parent.name == "models" and folder.name == word.replace("/", "--") else str(folder)


def _place(adapter: Path, folder: Path) -> str:
    """The place below the store's folder, also when that was moved since: a run's adapter always lay in `stages/DIGEST/adapter`."""
    if adapter.is_relative_to(folder):
        return adapter.relative_to(folder).as_posix()
    below = Path(*adapter.parts[-3:])
    return below.as_posix() if below.parts[0] == "stages" and (folder / below).is_dir() else str(adapter)
