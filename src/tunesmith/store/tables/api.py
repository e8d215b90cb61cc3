"""What the HTTP interface keeps for its clients: keys, files, jobs, models, chats, responses, batches, webhooks."""

from __future__ import annotations

import sqlalchemy as sa

from tunesmith.store.tables.base import JSON, metadata, ordered, project_column

# Keys of the HTTP interface: only the SHA-256 of a key is kept. `scopes` is a JSON list of read, train, serve, admin.
api_keys = ordered(
    "api_keys",
    project_column(),
    sa.Column("hash", sa.String, nullable=False, unique=True),
    sa.Column("hint", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("scopes", JSON, nullable=False),
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
files = ordered(
    "files",
    project_column(),
    sa.Column("expires", sa.Float),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("purpose", sa.String, nullable=False, index=True),
    sa.Column("sha256", sa.String, nullable=False),
)

# A file that comes in parts; a part's bytes are the blob `uploads/UPLOAD/ID`.
uploads = ordered(
    "uploads",
    project_column(),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("purpose", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("keep_s", sa.Float),
    sa.Column("file", sa.String),
)
upload_parts = ordered(
    "upload_parts",
    sa.Column("upload", sa.String, nullable=False, index=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)

# Fine-tuning jobs. `lease` is the token of the worker that works on the job until `lease_until`; `tries` counts starts without progress.
jobs = ordered(
    "jobs",
    project_column(),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("base", sa.String, nullable=False),
    sa.Column("training_file", sa.String, nullable=False),
    sa.Column("validation_file", sa.String),
    sa.Column("suffix", sa.String),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("method", JSON, nullable=False),
    sa.Column("extras", JSON, nullable=False),
    sa.Column("metadata", JSON),
    sa.Column("integrations", JSON),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("fingerprint", sa.String, nullable=False, index=True),
    sa.Column("fine_tuned_model", sa.String),
    sa.Column("finished", sa.Float),
    sa.Column("estimated_finish", sa.Float),
    sa.Column("trained_tokens", sa.BigInteger),
    sa.Column("result_files", JSON, nullable=False),
    sa.Column("error", JSON),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("lease", sa.String),
    sa.Column("lease_until", sa.Float),
)

# What a job reported. `key` names what the event says, so that a resumed run does not say it twice.
job_events = ordered(
    "job_events",
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("level", sa.String, nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("data", JSON, nullable=False),
    sa.UniqueConstraint("job", "key"),
)

# The checkpoints of jobs that are kept, each a model of its own; `folder` holds the adapter, `files` are its files' ids.
checkpoints = ordered(
    "checkpoints",
    project_column(),
    sa.Column("job", sa.String, nullable=False, index=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("metrics", JSON, nullable=False),
    sa.Column("files", JSON, nullable=False),
    sa.UniqueConstraint("job", "step"),
)

# Which other projects may use a checkpoint.
permissions = ordered(
    "permissions",
    project_column(),
    sa.Column("checkpoint", sa.String, nullable=False, index=True),
    sa.Column("project_id", sa.String, nullable=False),
    sa.UniqueConstraint("checkpoint", "project_id"),
)

# Names that finished jobs and kept checkpoints answer to (`id` is the name), as `core.model_ref.ModelRef` has it: on `base` an adapter, or
# in its place whole weights, each a folder below the store's.
tuned_models = ordered(
    "tuned_models",
    project_column(),
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
chats = ordered(
    "chats",
    project_column(),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("metadata", JSON),
    sa.Column("request", JSON, nullable=False),
    sa.Column("response", JSON, nullable=False),
)

# Responses that are kept for their clients: `items` are those of the request, `previous` is the response that it goes on from, `elsewhere`
# the alias of another server that answered and has it too.
responses = ordered(
    "responses",
    project_column(),
    sa.Column("model", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False, index=True),
    sa.Column("previous", sa.String),
    sa.Column("elsewhere", sa.String),
    sa.Column("items", JSON, nullable=False),
    sa.Column("response", JSON, nullable=False),
)

# Batches of requests, and the answers so far (`line` counts from 0).
batches = ordered(
    "batches",
    project_column(),
    sa.Column("status", sa.String, nullable=False, index=True),
    sa.Column("endpoint", sa.String, nullable=False),
    sa.Column("input_file", sa.String, nullable=False),
    sa.Column("window", sa.String, nullable=False),
    sa.Column("metadata", JSON),
    sa.Column("times", JSON, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("output_file", sa.String),
    sa.Column("error_file", sa.String),
    sa.Column("errors", JSON),
    sa.Column("lease", sa.String),
    sa.Column("lease_until", sa.Float),
)
batch_lines = sa.Table(
    "batch_lines",
    metadata,
    sa.Column("batch", sa.String, primary_key=True),
    sa.Column("line", sa.Integer, primary_key=True),
    sa.Column("ok", sa.Boolean, nullable=False),
    sa.Column("tokens", JSON, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)

# Webhooks on their way: what happened, written with the change itself, so that a kill between the two loses neither.
deliveries = ordered(
    "deliveries",
    project_column(),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("object", sa.String, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("due", sa.Float, nullable=False, index=True),
    sa.Column("done", sa.Float),
)
