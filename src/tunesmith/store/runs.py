"""What each run was made with: its overrides, the digest of every stage, how it ended; knows nothing about what a stage does.

Later commands find here which plan the last run had. What is secret is never written (`without_secrets`).
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import sqlalchemy as sa

from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.types import Record
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import runs

# How a server listens and where the store lies do not change what a run makes, and hold passwords and keys.
_ELSEWHERE = ("serve", "store")
_SECRET_KEY = re.compile(r"(^|[._-])(secrets?|passwords?|api[_-]?keys?|credentials?|token)$", re.IGNORECASE)
# Of an address a user, and what is after its question mark, may be secret (a token, a signature), whatever they are called.
_SECRET_VALUE = re.compile(r"://[^/\s]*@|://[^\s'\"]*\?|\b(password|secret|api_?key|sslpassword)\s*[=:]|\bwhsec_|\bsk-\w", re.IGNORECASE)


class Run(Record, frozen=True):
    """One run. `overrides` are words as on the command line, `--KEY=VALUE` each; `digests` name its stages' results.

    `finished` is None for a run that is under way or was interrupted; `decision` is what its gate said.
    """

    id: str
    project: str
    created: float
    command: str
    overrides: tuple[str, ...] = ()
    digests: dict[str, str] = {}
    finished: float | None = None
    decision: str | None = None


class Runs:
    """The runs of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, project: str, command: str, overrides: Sequence[str], digests: Mapping[str, str]) -> Run:
        """Record that a run begins: what it is made with, without secrets. The same plan begun again is a run of its own."""
        words = without_secrets(overrides)
        begun = Run(id=secrets.token_hex(8), project=project, created=time.time(), command=command, overrides=words, digests=dict(digests))
        with self._store.writing() as connection:
            connection.execute(sa.insert(runs).values(**msgspec.structs.asdict(begun)))
        return begun

    def finish(self, number: str, decision: str | None = None) -> None:
        """Record that a run has ended, and what its gate said."""
        with self._store.writing() as connection:
            connection.execute(sa.update(runs).where(runs.c.id == number).values(finished=time.time(), decision=decision))

    def last(self, project: str, *, stage: str | None = None) -> Run | None:
        """The newest run of a project (`stage`: the newest that has a stage of that name), finished or not; None before the first."""
        query = sa.select(runs).where(runs.c.project == project).order_by(runs.c.seq.desc())
        with self._store.reading() as connection:
            return next((_run(row) for row in connection.execute(query).mappings() if stage is None or stage in row["digests"]), None)

    def newest(self) -> Run | None:
        """The newest run of all projects of the store, which a word that names none means."""
        with self._store.reading() as connection:
            row = connection.execute(sa.select(runs).order_by(runs.c.seq.desc()).limit(1)).mappings().first()
        return None if row is None else _run(row)

    def listed(self, project: str, *, limit: int = 100) -> list[Run]:
        """The runs of a project, the newest first."""
        query = sa.select(runs).where(runs.c.project == project).order_by(runs.c.seq.desc()).limit(limit)
        with self._store.reading() as connection:
            return [_run(row) for row in connection.execute(query).mappings()]

    def find(self, word: str) -> Run:
        """The run whose id is, or begins with, the word. Raises NotFound, and UsageError where several begin so."""
        begins = runs.c.id.startswith(word, autoescape=True)
        with self._store.reading() as connection:
            rows = list(connection.execute(sa.select(runs).where(begins).order_by(runs.c.seq.desc()).limit(5)).mappings())
        if not word or not rows:
            raise NotFound(f"no run '{word}'", allowed="an id of a run, or its beginning")
        if len(rows) > 1:
            raise UsageError(f"several runs begin with '{word}'", allowed=", ".join(row["id"] for row in rows), remedy="give more of it")
        return _run(rows[0])

    def with_digest(self, digest: str) -> list[Run]:
        """The runs one of whose stages has that digest, the newest first: a model's `run:DIGEST` leads here."""
        contains = sa.cast(runs.c.digests, sa.Text).contains(f'"{digest}"', autoescape=True)
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(runs).where(contains).order_by(runs.c.seq.desc())).mappings()
            return [run for run in map(_run, rows) if digest in run.digests.values()]


def without_secrets(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides as words `--KEY=VALUE` without those that hold, or may hold, something secret."""
    return tuple(
        f"--{key}={value}"
        for key, value in _pairs(overrides)
        if key.partition(".")[0] not in _ELSEWHERE and not _SECRET_KEY.search(key) and not _SECRET_VALUE.search(value)
    )


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(key, value) of `--key value` and `--key=value`."""
    left = iter(words)
    for word in left:
        key, equals, value = word.removeprefix("--").partition("=")
        yield key.replace("-", "_"), value if equals else next(left, "")


def _run(row: Row) -> Run:
    return msgspec.convert({str(key): value for key, value in row.items() if key != "seq"}, Run)
