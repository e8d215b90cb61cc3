"""What names answer with, how that changes, and what comparisons said."""

from __future__ import annotations

import sqlalchemy as sa

from tunesmith.store.tables.base import EMPTY_LIST, JSON, metadata, ordered

# What an alias answers with, one row a change, the newest one in force: the audit trail is the table itself. `variants` is the JSON of
# `core.deployment.Variant`s, `enrolment` that of a `core.deployment.Enrolment` while an experiment runs.
deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("alias", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("strategy", sa.String, nullable=False, server_default="one"),
    sa.Column("variants", JSON, nullable=False, server_default=EMPTY_LIST),
    sa.Column("by", sa.String, nullable=False, server_default=""),
    sa.Column("enrolment", JSON),
)

# How a new model takes over from the one before by steps (`core.rollout.Rollout`). `turn` counts the row's changes: of several servers that
# look, one makes each.
rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("alias", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("plan", JSON, nullable=False),
    sa.Column("canary", sa.String, nullable=False),
    sa.Column("variants", JSON, nullable=False),
    sa.Column("before", sa.Integer, nullable=False),
    sa.Column("first", sa.Integer, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("step_since", sa.Float, nullable=False),
    sa.Column("state", JSON),
    sa.Column("turn", sa.Integer, nullable=False),
    sa.Column("looked", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("ended", sa.Float),
)

# What the weights of a variant answer to probes (`core.identity.IdentityReference`, JSON), by what names its answers.
identity_references = sa.Table(
    "identity_references",
    metadata,
    sa.Column("digest", sa.String, primary_key=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("reference", sa.Text, nullable=False),
)

# What looks at served variants found (`core.identity.IdentityCheck`).
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
# Experiments (`core.experiment.Experiment`): `plan` is what was asked, [`low`, `high`) their part of the layer; `deployment` is the
# version that assigns, `stopped` when they ended and with what.
experiments = ordered(
    "experiments",
    sa.Column("alias", sa.String, nullable=False, index=True),
    sa.Column("layer", sa.String, nullable=False),
    sa.Column("low", sa.Float, nullable=False),
    sa.Column("high", sa.Float, nullable=False),
    sa.Column("plan", JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String, nullable=False),
    sa.Column("deployment", sa.Integer),
    sa.Column("stopped", sa.Float),
    sa.Column("outcome", sa.Text, nullable=False, server_default=""),
)

# What was said of an experiment, and when: rows are added and never changed. `look` is the JSON of what was seen then.
verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("experiment", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("metric", sa.String, nullable=False),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("look", JSON, nullable=False),
)
