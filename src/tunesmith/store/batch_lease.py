"""One batch in the hands of one server: answers kept as they come, files of them at the end. Knows nothing about how a line is answered.

Every write looks at the lease in its own transaction: a server that lost the batch to another one changes nothing of it any more.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from tunesmith.store.deliveries import announce
from tunesmith.store.files import Files
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import batch_lines, batches, files

_AT_ONCE = 200  # lines that are in memory while files are made of them
# (line, whether it was answered, (prompt, completion) tokens, the line of the output file)
AnsweredLine = tuple[int, bool, tuple[int, int], str]


class LeaseLost(Exception):
    """Another server works on the batch now; what was kept until then stays."""


class BatchLease:
    """A leased batch. `row` is how it stood when it was leased; what writes raises LeaseLost once another server has it."""

    def __init__(self, store: Store, row: Row, token: str, seconds: float) -> None:
        self.store, self.row, self.seconds, self._token = store, row, seconds, token
        self._here = batches.c.id == row["id"]

    def beat(self) -> None:
        """Keep the lease for another while."""
        with self._writing() as (connection, _):
            connection.execute(sa.update(batches).where(self._here).values(lease_until=time.time() + self.seconds))

    def now(self) -> Row:
        """The batch as it stands."""
        with self._writing() as (_, row):
            return row

    def begin(self, total: int) -> None:
        """The file is sound: the batch runs, unless it was cancelled meanwhile."""
        with self._writing() as (connection, row):
            if row["status"] in ("validating", "in_progress"):
                times = {**row["times"], "in_progress_at": row["times"].get("in_progress_at", time.time())}
                connection.execute(sa.update(batches).where(self._here).values(status="in_progress", times=times, total=total))

    def answered(self) -> set[int]:
        """The lines that have answers."""
        with self.store.reading() as connection:
            return set(connection.execute(sa.select(batch_lines.c.line).where(batch_lines.c.batch == self.row["id"])).scalars())

    def keep(self, answers: Sequence[AnsweredLine]) -> None:
        """Keep answers."""
        rows = [
            {"batch": self.row["id"], "line": line, "ok": ok, "tokens": list(tokens), "body": body} for line, ok, tokens, body in answers
        ]
        with self._writing() as (connection, _):
            connection.execute(sa.insert(batch_lines), rows)

    def finish(self, status: str, errors: Sequence[dict[str, Any]] = ()) -> None:
        """Make the files of what was answered; the batch ends as completed, cancelled, expired or (with `errors`) failed."""
        ids = {key: file for ok, key in ((True, "output_file"), (False, "error_file")) if (file := self._file(ok, key)) is not None}
        values: dict[str, Any] = {key: file["id"] for key, file in ids.items()}
        if errors:
            values["errors"] = {"object": "list", "data": list(errors)}
        try:
            self._end(status, list(ids.values()), values)
        except BaseException:
            for file in ids.values():
                self.store.blobs.remove(f"files/{file['id']}")
            raise

    def _file(self, ok: bool, key: str) -> dict[str, Any] | None:
        """The lines that were answered, or were not, as a file that is not known yet; None when there are none."""
        query = (
            sa.select(batch_lines.c.body).where(batch_lines.c.batch == self.row["id"], batch_lines.c.ok == ok).order_by(batch_lines.c.line)
        )
        with tempfile.TemporaryFile() as lines:
            with self.store.reading() as connection:
                bodies = connection.execution_options(yield_per=_AT_ONCE).execute(query).scalars()
                lines.writelines(f"{body}\n".encode() for body in bodies)
            if not lines.tell():
                return None
            lines.seek(0)
            name = f"{self.row['id']}_{key.removesuffix('_file')}.jsonl"
            return Files(self.store).prepare(lines, project=self.row["project"], filename=name, purpose="batch_output")

    def _end(self, status: str, rows: Sequence[dict[str, Any]], values: dict[str, Any]) -> None:
        with self._writing() as (connection, row):
            if row["status"] == "cancelling" and status != "failed":
                status = "cancelled"  # who asked for it waits for that word
            if rows:
                connection.execute(sa.insert(files), list(rows))
            ended = {"status": status, "times": {**row["times"], f"{status}_at": time.time()}, "lease": None, "lease_until": None}
            connection.execute(sa.update(batches).where(self._here).values(**ended, **values))
            announce(connection, row, f"batch.{status}")

    @contextmanager
    def _writing(self) -> Iterator[tuple[sa.Connection, Row]]:
        """One transaction on the batch as it stands, which nobody else changes meanwhile."""
        with self.store.exclusive() as connection:
            row = connection.execute(sa.select(batches).where(self._here).with_for_update()).mappings().one()
            if row["lease"] != self._token:
                raise LeaseLost(f"{self.row['id']} is worked on by another server")
            yield connection, row
