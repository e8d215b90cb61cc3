"""The tables of the store as `migrations/` give them, a file a topic; knows nothing about what the rows mean to the rooms.

A change here needs a new migration; a test compares the two.
"""

from __future__ import annotations

from tunesmith.store.tables.api import (
    api_keys,
    batch_lines,
    batches,
    chats,
    checkpoints,
    deliveries,
    files,
    idempotency,
    job_events,
    jobs,
    permissions,
    responses,
    sessions,
    tuned_models,
    upload_parts,
    uploads,
)
from tunesmith.store.tables.base import metadata
from tunesmith.store.tables.circle import meta, runs, stages
from tunesmith.store.tables.live import deployments, experiments, identity_checks, identity_references, rollouts, verdicts
from tunesmith.store.tables.monitoring import (
    _counted,
    _talks,
    alert_events,
    alert_silences,
    alert_states,
    feedback,
    interactions,
    quality_scores,
    request_counts,
    shadow_answers,
)

__all__ = [
    "_counted", "_talks", "alert_events", "alert_silences", "alert_states", "api_keys", "batch_lines", "batches", "chats",
    "checkpoints", "deliveries", "deployments", "experiments", "feedback", "files", "idempotency", "identity_checks",
    "identity_references", "interactions", "job_events", "jobs", "meta", "metadata", "permissions", "quality_scores",
    "request_counts", "responses", "rollouts", "runs", "sessions", "shadow_answers", "stages", "tuned_models", "upload_parts",
    "uploads", "verdicts",
]  # fmt: skip
