"""Version 2: what the HTTP interface keeps: keys, files, jobs and what they make, chats, batches, webhooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
_JSON = sa.JSON(none_as_null=True)


def _ordered(name: str, *columns: Any) -> sa.Table:
    """A table of things that are listed by age: `seq` is the order in which they came, `id` what clients call them."""
    own = (sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True), sa.Column("id", sa.String, nullable=False, unique=True))
    return sa.Table(name, metadata, *own, sa.Column("created", sa.Float, nullable=False), *columns)


def _project() -> sa.Column[Any]:
    return sa.Column("project", sa.String, nullable=False, index=True)


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

# Names that finished jobs and kept checkpoints answer to (`id` is the name). `adapter` is a folder below the store's.
tuned_models = _ordered(
    "tuned_models",
    _project(),
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("base", sa.String, nullable=False),
    sa.Column("adapter", sa.String, nullable=False),
    sa.Column("checkpoint", sa.Boolean, nullable=False),
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


def upgrade(connection: sa.Connection, _folder: Path) -> None:
    """Make the tables."""
    metadata.create_all(connection)
