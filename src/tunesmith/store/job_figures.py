"""What jobs measured, step by step, as curves need it: only the figures, in their order, from a place on. Knows no curve."""

from __future__ import annotations

import sqlalchemy as sa

from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import job_events


def figures(store: Store, job: str, *, after: int, limit: int) -> list[Row]:
    """(seq, data) of a job's figures that came after the event `after`, oldest first."""
    where = [job_events.c.job == job, job_events.c.type == "metrics", job_events.c.seq > after]
    query = sa.select(job_events.c.seq, job_events.c.data).where(*where).order_by(job_events.c.seq).limit(limit)
    with store.reading() as connection:
        return list(connection.execute(query).mappings())
