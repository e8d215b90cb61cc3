"""The tables of the store as `migrations/` give them; knows nothing about what the rows mean to the rooms.

A change here needs a new migration; a test compares the two.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)  # None is NULL, not the JSON word null
_NONE = sa.text("'[]'")  # an empty JSON list

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
    sa.Column("needs", _JSON, nullable=False, server_default=_NONE),
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
    sa.Column("overrides", _JSON, nullable=False),
    sa.Column("digests", _JSON, nullable=False),
    sa.Column("finished", sa.Float),
    sa.Column("decision", sa.String),
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
    sa.Column("project", sa.String, nullable=False, server_default=""),
    sa.Column("endpoint", sa.String, nullable=False, server_default="chat.completions"),
    sa.Column("deployment", sa.Integer),
    sa.Column("model_digest", sa.String, nullable=False, server_default=""),
    sa.Column("user_key", sa.String),
    sa.Column("cost_usd", sa.Float),
    sa.Column("experiment", sa.String),
    sa.Column("propensity", sa.Float),
    sa.Column("sources", sa.Text),
    sa.Column("strategy", sa.String, nullable=False, server_default=""),
    sa.Column("fallback", sa.String),
)
sa.Index("ix_interactions_alias_created", interactions.c.alias, interactions.c.created)
_talks = interactions.c.conversation.is_not(None)
sa.Index("ix_interactions_conversation", interactions.c.conversation, sqlite_where=_talks, postgresql_where=_talks)
_counted = interactions.c.experiment.is_not(None)
sa.Index("ix_interactions_experiment", interactions.c.experiment, sqlite_where=_counted, postgresql_where=_counted)

# Requests counted by `span` (60, 3600 or 86400 seconds from `start`) and what they were asked of, written with the rows of `interactions`
# themselves. Each process writes rows of its own, so that what is asked is the sum of several (`store/counting.py`). The two latencies are
# sketches (`core/sketch.py`).
request_counts = sa.Table(
    "request_counts",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("span", sa.Integer, nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("alias", sa.String, nullable=False),
    sa.Column("deployment", sa.Integer),
    sa.Column("variant", sa.String, nullable=False),
    sa.Column("experiment", sa.String),
    sa.Column("endpoint", sa.String, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("answered", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("left", sa.BigInteger, nullable=False),
    sa.Column("fallbacks", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("generated", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("cost_usd", sa.Float),
    sa.Column("last", sa.Float),
    sa.Column("first_token_s", sa.LargeBinary, nullable=False),
    sa.Column("total_s", sa.LargeBinary, nullable=False),
    sa.Index("ix_request_counts_span_start", "span", "start"),
)

# What copies of requests were answered (`core.types.ShadowAnswer`). They have a table of their own, so that whatever counts interactions,
# their tokens, their costs or what was said of them counts no copy.
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

# What somebody said of an answered request (`core.types.Feedback`): its value is a `number`, a word in `text`, or a `correction`.
# `messages`, `answer` and `alias` are there where the log has no such request.
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
    sa.Column("name", sa.String, nullable=False, server_default=""),
    sa.Column("comment", sa.Text, nullable=False, server_default=""),
    sa.Column("source", sa.String, nullable=False, server_default=""),
    sa.Column("project", sa.String, nullable=False, server_default=""),
    sa.Column("received", sa.Float, nullable=False, server_default=sa.text("0")),
    sa.Column("alias", sa.String, nullable=False, server_default=""),
    sa.Column("messages", sa.Text),
    sa.Column("answer", sa.Text),
)
sa.Index("ix_feedback_received", feedback.c.received)

# The score of an answer by one instrument (a metric, or a judge with its weights and prompt), None where it could not be computed; `golden`
# answers are scored by every instrument.
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

# Which alerts are firing (or wait to: `pending`), since when, and the value of the last look.
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

# What is to be told of alerts, a row a channel, written with the change of state itself; `done` is when it was told or given up.
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

# Alerts with all of these labels are not told until then.
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
    sa.Column("variants", _JSON, nullable=False, server_default=_NONE),
    sa.Column("by", sa.String, nullable=False, server_default=""),
    sa.Column("enrolment", _JSON),
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


def _ordered(name: str, *columns: Any) -> sa.Table:
    """A table of things that are listed by age: `seq` is the order in which they came, `id` what clients call them."""
    own = (sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True), sa.Column("id", sa.String, nullable=False, unique=True))
    return sa.Table(name, metadata, *own, sa.Column("created", sa.Float, nullable=False), *columns)


def _project() -> sa.Column[Any]:
    return sa.Column("project", sa.String, nullable=False, index=True)


# Experiments (`core.experiment.Experiment`): `plan` is what was asked, [`low`, `high`) their part of the layer; `deployment` is the
# version that assigns, `stopped` when they ended and with what.
experiments = _ordered(
    "experiments",
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

# What was said of an experiment, and when: rows are added and never changed. `look` is the JSON of what was seen then.
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

# Keys of the HTTP interface: only the SHA-256 of a key is kept. `scopes` is a JSON list of read, train, serve, admin.
api_keys = _ordered(
    "api_keys",
    _project(),
    sa.Column("hash", sa.String, nullable=False, unique=True),
    sa.Column("hint", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("scopes", _JSON, nullable=False),
    sa.Column("revoked", sa.Float),
)

# Who is signed in to the pages: the SHA-256 of what the browser holds, and the key that it was given for.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("hash", sa.String, primary_key=True),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float, nullable=False, index=True),
)

# Uploaded and produced files; the bytes are the blob `files/ID`.
files = _ordered(
    "files",
    _project(),
    sa.Column("expires", sa.Float),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("purpose", sa.String, nullable=False, index=True),
    sa.Column("sha256", sa.String, nullable=False),
)

# A file that comes in parts; a part's bytes are the blob `uploads/UPLOAD/ID`.
uploads = _ordered(
    "uploads",
    _project(),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("purpose", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("keep_s", sa.Float),
    sa.Column("file", sa.String),
)
upload_parts = _ordered(
    "upload_parts",
    sa.Column("upload", sa.String, nullable=False, index=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)

# Fine-tuning jobs. `lease` is the token of the worker that works on the job until `lease_until`; `tries` counts starts without progress.
jobs = _ordered(
    "jobs",
    _project(),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("base", sa.String, nullable=False),
    sa.Column("training_file", sa.String, nullable=False),
    sa.Column("validation_file", sa.String),
    sa.Column("suffix", sa.String),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("method", _JSON, nullable=False),
    sa.Column("extras", _JSON, nullable=False),
    sa.Column("metadata", _JSON),
    sa.Column("integrations", _JSON),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String, nullable=False, index=True),
    sa.Column("fine_tuned_model", sa.String),
    sa.Column("finished", sa.Float),
    sa.Column("estimated_finish", sa.Float),
    sa.Column("trained_tokens", sa.BigInteger),
    sa.Column("result_files", _JSON, nullable=False),
    sa.Column("error", _JSON),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("lease", sa.String),
    sa.Column("lease_until", sa.Float),
)

# What a job reported. `key` names what the event says, so that a resumed run does not say it twice.
job_events = _ordered(
    "job_events",
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("level", sa.String, nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", _JSON, nullable=False),
    sa.UniqueConstraint("job", "key"),
)

# The checkpoints of jobs that are kept, each a model of its own; `folder` holds the adapter, `files` are its files' ids.
checkpoints = _ordered(
    "checkpoints",
    _project(),
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("metrics", _JSON, nullable=False),
    sa.Column("files", _JSON, nullable=False),
    sa.UniqueConstraint("job", "step"),
)

# Which other projects may use a checkpoint.
permissions = _ordered(
    "permissions",
    _project(),
    sa.Column("checkpoint", sa.String, nullable=False, index=True),
    sa.Column("project_id", sa.String, nullable=False),
    sa.UniqueConstraint("checkpoint", "project_id"),
)

# Names that finished jobs and kept checkpoints answer to (`id` is the name), as `core.model_ref.ModelRef` has it: on `base` an adapter, or
# in its place whole weights, each a folder below the store's.
tuned_models = _ordered(
    "tuned_models",
    _project(),
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("base", sa.String, nullable=False),
    sa.Column("adapter", sa.String),
    sa.Column("checkpoint", sa.Boolean, nullable=False),
    sa.Column("weights", sa.String),
    sa.Column("digest", sa.String, nullable=False, server_default=""),
)

# Which object a repeated request made: an Idempotency-Key means the same thing each time.
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("project", sa.String, primary_key=True),
    sa.Column("route", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("fingerprint", sa.String, nullable=False),
    sa.Column("object", sa.String, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
)

# Chat completions that a client asked to store: `request` has its messages and settings, `response` the completion.
chats = _ordered(
    "chats",
    _project(),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("metadata", _JSON),
    sa.Column("request", _JSON, nullable=False),
    sa.Column("response", _JSON, nullable=False),
)

# Responses that are kept for their clients: `items` are those of the request, `previous` is the response that it goes on from, `elsewhere`
# the alias of another server that answered and has it too.
responses = _ordered(
    "responses",
    _project(),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False, index=True),
    sa.Column("previous", sa.String),
    sa.Column("elsewhere", sa.String),
    sa.Column("items", _JSON, nullable=False),
    sa.Column("response", _JSON, nullable=False),
)

# Batches of requests, and the answers so far (`line` counts from 0).
batches = _ordered(
    "batches",
    _project(),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("endpoint", sa.String, nullable=False),
    sa.Column("input_file", sa.String, nullable=False),
    sa.Column("window", sa.String, nullable=False),
    sa.Column("metadata", _JSON),
    sa.Column("times", _JSON, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("output_file", sa.String),
    sa.Column("error_file", sa.String),
    sa.Column("errors", _JSON),
    sa.Column("lease", sa.String),
    sa.Column("lease_until", sa.Float),
)
batch_lines = sa.Table(
    "batch_lines",
    metadata,
    sa.Column("batch", sa.String, primary_key=True),
    sa.Column("line", sa.Integer, primary_key=True),
    sa.Column("ok", sa.Boolean, nullable=False),
    sa.Column("tokens", _JSON, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

# Webhooks on their way: what happened, written with the change itself, so that a kill between the two loses neither.
deliveries = _ordered(
    "deliveries",
    _project(),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("object", sa.String, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("due", sa.Float, nullable=False, index=True),
    sa.Column("done", sa.Float),
)
