"""Where a job's figures go besides its events: the `integrations` that its request names. Knows nothing about training.

A tracker is no reason for a job to fail: one that cannot be used, or that stops working, is said among the job's events.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.core.errors import MissingExtra
from tunesmith.store.paging import Row
from tunesmith.train.run import OnEvent
from tunesmith.train.sinks import wandb

Say = Callable[[str], None]
_KEYS = ("WANDB_API_KEY", "WANDB_MODE")  # without either, W&B would ask for a key on a terminal that is not there


def tracked(job: Row, folder: Path, say: Say) -> list[OnEvent]:
    """The trackers that a job asked for, each as something that takes its events; `say` tells of those that are not used and why."""
    return [sink for integration in job["integrations"] or [] if (sink := _opened(integration["wandb"], folder, say)) is not None]


def _opened(asked: dict[str, Any], folder: Path, say: Say) -> OnEvent | None:
    named = f"Weights & Biases (project {asked['project']})"
    if not any(os.environ.get(key) for key in _KEYS):
        say(f"{named} is not used: this server has no {_KEYS[0]}")
        return None
    options = {key: asked[key] for key in ("name", "entity", "tags") if asked.get(key)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _kept(wandb(asked["project"], dir=str(folder), **options), named, say)
    except MissingExtra as error:
        say(f"{named} is not used: {error.what}")
    except Exception as error:  # noqa: BLE001 - whatever the tracker raises: the job goes on, and says it
        say(f"{named} is not used: {type(error).__name__}: {str(error)[:200]}")
    return None


def _kept(sink: OnEvent, named: str, say: Say) -> OnEvent:
    """The same until it fails for the first time."""
    broken = False

    def on_event(event: dict[str, Any]) -> None:
        nonlocal broken
        if broken:
            return
        try:
            sink(event)
        except Exception as error:  # noqa: BLE001 - whatever the tracker raises: the job goes on, and says it
            broken = True
            say(f"{named} is not used any further: {type(error).__name__}: {str(error)[:200]}")

    return on_event
