"""What the store knows of where things come from and what was made of them: stages, jobs, deployments; knows nothing about folders or words
for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.core.errors import UsageError
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import checkpoints, files, jobs, stages, tuned_models


class Lineage:
    """Looks into one store; changes nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _rows(self, query: sa.Select[Any]) -> list[Row]:
        with self._store.reading() as connection:
            return list(connection.execute(query).mappings())

    # stages

    def stage(self, word: str) -> dict[str, Any] | None:
        """The finished stage whose digest is, or is the only one that begins with, the word. Raises UsageError for several."""
        query = sa.select(stages).where(stages.c.digest.startswith(word, autoescape=True)).order_by(stages.c.created).limit(5)
        rows = self._rows(query)
        if len(rows) > 1:
            names = ", ".join(f"{row['digest']} ({row['name']})" for row in rows)
            raise UsageError(f"several stages begin with '{word}'", allowed=names, remedy="give more of it")
        return _stage(rows[0]) if rows else None

    def stages(self, digests: Sequence[str]) -> list[dict[str, Any]]:
        """The finished stages of these digests."""
        return [_stage(row) for row in self._rows(sa.select(stages).where(stages.c.digest.in_(digests)).order_by(stages.c.created))]

    def all_stages(self) -> list[dict[str, Any]]:
        """Every finished stage, the oldest first."""
        return [_stage(row) for row in self._rows(sa.select(stages).order_by(stages.c.created))]

    def of_kind(self, name: str) -> list[dict[str, Any]]:
        """The finished stages of that name, the newest first."""
        return [_stage(row) for row in self._store.stages(name)]

    def before(self, digest: str) -> Iterator[dict[str, Any]]:
        """Every stage that this one was made from, the nearest first."""
        seen, left = {digest}, [need for stage in self.stages([digest]) for need in stage["needs"]]
        while left := [need for need in dict.fromkeys(left) if need not in seen]:
            seen.update(left)
            nearer = self.stages(left)
            yield from nearer
            left = [need for stage in nearer for need in stage["needs"]]

    def after(self, digest: str) -> Iterator[dict[str, Any]]:
        """Every stage that was made from this one, the nearest first."""
        seen, left = {digest}, [digest]
        while left:
            made = [stage for maker in left for stage in self._made_from(maker) if stage["digest"] not in seen]
            seen.update(stage["digest"] for stage in made)
            yield from made
            left = [stage["digest"] for stage in made]

    def _made_from(self, digest: str) -> list[dict[str, Any]]:
        contains = sa.cast(stages.c.needs, sa.Text).contains(f'"{digest}"', autoescape=True)
        return [_stage(row) for row in self._rows(sa.select(stages).where(contains).order_by(stages.c.created))]

    # jobs and their files

    def job(self, word: str) -> Row | None:
        """The job of that id, or the one that made the model of that name, a checkpoint's too; whoever's it is."""
        makers = (
            sa.select(tuned_models.c.job).where(tuned_models.c.id == word),
            sa.select(checkpoints.c.job).where(checkpoints.c.model == word),
        )
        either = sa.or_(jobs.c.id == word, jobs.c.fine_tuned_model == word, *(jobs.c.id.in_(maker) for maker in makers))
        return next(iter(self._rows(sa.select(jobs).where(either).limit(1))), None)

    def names_of(self, job: str) -> list[str]:
        """The names of the models that a job made, its checkpoints' too."""
        names = [row["id"] for row in self._rows(sa.select(tuned_models).where(tuned_models.c.job == job).order_by(tuned_models.c.seq))]
        names += [row["model"] for row in self._rows(sa.select(checkpoints).where(checkpoints.c.job == job).order_by(checkpoints.c.seq))]
        return list(dict.fromkeys(names))

    def file(self, number: str) -> Row | None:
        """An uploaded or produced file, whoever's it is; None when it was deleted."""
        return next(iter(self._rows(sa.select(files).where(files.c.id == number))), None)

    def jobs_on(self, file: str) -> list[Row]:
        """The jobs that trained on, or validated with, a file."""
        return self._rows(sa.select(jobs).where(sa.or_(jobs.c.training_file == file, jobs.c.validation_file == file)).order_by(jobs.c.seq))

    def jobs_from(self, names: Sequence[str]) -> list[Row]:
        """The jobs that went on from models of these names."""
        return self._rows(sa.select(jobs).where(jobs.c.model.in_(names)).order_by(jobs.c.seq))


def _stage(row: Row) -> dict[str, Any]:
    return {**row, "output": json.loads(row["output"]), "needs": row["needs"] or []}
