"""The log of who opened a sealed test set, when and why; append-only, and it judges nobody.

A winner picked on validation rows is reported on test rows that no choice has seen. Each look spends some of that, so each is written down.
"""

from __future__ import annotations

import time
from pathlib import Path

from tunesmith.core import record_log
from tunesmith.core.errors import StoreError
from tunesmith.core.types import Record


class Opening(Record, frozen=True):
    """One look at the sealed rows `dataset_digest`. `time` is seconds since 1970."""

    dataset_digest: str
    who: str
    why: str
    time: float


def open_sealed(log: Path, dataset_digest: str, *, who: str, why: str) -> int:
    """Write down one more opening before the rows are read; returns the how-manieth it is of this data set (1: the first).

    Raises StoreError when it cannot be written down: then the rows must stay closed.
    """
    opening = Opening(dataset_digest=dataset_digest, who=who, why=why, time=time.time())
    try:
        record_log.append(log, opening)
    except OSError as error:
        raise StoreError(
            f"the opening cannot be written down: {error}", where=str(log), remedy="make the log writable; until then the rows stay closed"
        ) from error
    return len(openings(log, dataset_digest))


def openings(log: Path, dataset_digest: str | None = None) -> list[Opening]:
    """All openings in order, or those of one data set; an absent log is an empty one. Raises StoreError naming a damaged line."""
    return [opening for opening in record_log.records(log, Opening) if dataset_digest in (None, opening.dataset_digest)]
