"""What was answered, what was said of it, and what is made of both: counts, scores, alerts."""

from __future__ import annotations

import sqlalchemy as sa

from tunesmith.store.tables.base import JSON, metadata

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
    sa.Column("labels", JSON, nullable=False),
    sa.Column("body", JSON, nullable=False),
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
    sa.Column("labels", JSON, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("by", sa.String, nullable=False),
)
