"""Tuned models by name, who may use them, and which other projects a checkpoint was opened to; knows nothing about weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.store.paging import Missing, Row, new_id, page
from tunesmith.store.store import Store
from tunesmith.store.tables import checkpoints, permissions, tuned_models


class TunedModels:
    """The names that finished jobs and kept checkpoints answer to."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, name: str, project: str) -> Row | None:
        """The model of that name, when the project owns it or it was opened to the project; else None."""
        opened = sa.select(permissions.c.checkpoint).where(permissions.c.project_id == project)
        mine = sa.or_(tuned_models.c.project == project, tuned_models.c.id.in_(opened))
        with self._store.reading() as connection:
            return connection.execute(sa.select(tuned_models).where(tuned_models.c.id == name, mine)).mappings().first()

    def listed(self, project: str) -> list[Row]:
        """The models of a project, the oldest first; checkpoints are found by name only, as at OpenAI."""
        where = [tuned_models.c.project == project, sa.not_(tuned_models.c.checkpoint)]
        with self._store.reading() as connection:
            return list(connection.execute(sa.select(tuned_models).where(*where).order_by(tuned_models.c.seq)).mappings())

    def delete(self, name: str, project: str) -> bool:
        """Take a name away from its project; False when there is none. Its files and its job stay."""
        with self._store.writing() as connection:
            mine = [tuned_models.c.id == name, tuned_models.c.project == project]
            return bool(connection.execute(sa.delete(tuned_models).where(*mine)).rowcount)


class Permissions:
    """Which projects may use which checkpoint."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def allow(self, checkpoint: str, project: str, others: Sequence[str]) -> list[Row]:
        """Open a checkpoint (or a finished model) to other projects; a permission that is there is returned again. Raises Missing."""
        self._check(checkpoint, project)
        with self._store.exclusive() as connection:
            there = [permissions.c.checkpoint == checkpoint, permissions.c.project_id.in_(others)]
            known = set(connection.execute(sa.select(permissions.c.project_id).where(*there)).scalars())
            for other in dict.fromkeys(others):
                if other not in known:
                    row = {"id": new_id("cp_"), "created": time.time(), "project": project, "checkpoint": checkpoint, "project_id": other}
                    connection.execute(sa.insert(permissions).values(**row))
            return list(connection.execute(sa.select(permissions).where(*there).order_by(permissions.c.seq)).mappings())

    def listed(
        self, checkpoint: str, project: str, *, to: str | None, after: str | None, limit: int, oldest_first: bool
    ) -> tuple[list[Row], bool]:
        """A page of a checkpoint's permissions, and whether more follow. Raises Missing."""
        self._check(checkpoint, project)
        where: list[Any] = [permissions.c.checkpoint == checkpoint, *([permissions.c.project_id == to] if to else [])]
        return page(self._store, permissions, where, after=after, limit=min(limit, 100), oldest_first=oldest_first)

    def delete(self, checkpoint: str, project: str, number: str) -> None:
        """Take a permission away. Raises Missing."""
        self._check(checkpoint, project)
        with self._store.writing() as connection:
            mine = [permissions.c.checkpoint == checkpoint, permissions.c.id == number]
            if not connection.execute(sa.delete(permissions).where(*mine)).rowcount:
                raise Missing("permission", number, param="permission_id")

    def _check(self, checkpoint: str, project: str) -> None:
        with self._store.reading() as connection:
            for table, column in ((checkpoints, checkpoints.c.model), (tuned_models, tuned_models.c.id)):
                if connection.execute(sa.select(table.c.id).where(column == checkpoint, table.c.project == project)).first():
                    return
        raise Missing("checkpoint", checkpoint, param="fine_tuned_model_checkpoint")
