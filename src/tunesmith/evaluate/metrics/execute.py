"""Metrics that run what the model wrote: SQL against data, code against its tests; knows nothing about how it looks."""

from __future__ import annotations

import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Answer, Example
from tunesmith.evaluate.metrics.base import Measured, Metric, register
from tunesmith.evaluate.sandbox import run_python

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_MAX_ROWS = 10_000


def unfenced(text: str) -> str:
    """The last Markdown code block of an answer, or the whole answer when it has none."""
    blocks = _FENCE.findall(text)
    return str(blocks[-1]) if blocks else text


@register("sql")
def sql(setup: str | None = None, databases: int = 3, rows: int = 30, timeout_s: float = 2.0) -> Metric:
    """1 when the answer's query returns what the reference's does, on SQLite. Range 0 to 1, higher is better, mean.

    `setup` (or the row's `meta["setup"]`) makes the tables. Tables that it leaves empty are filled with `rows` random rows in each of
    `databases` databases, so that two queries agree by meaning and not by chance. Rows are compared as a multiset; in order when the
    reference orders at its end. A query may only read. A reference that fails is missing.
    """

    def rate(example: Example, answer: Answer) -> Measured:
        script = setup if setup is not None else example.meta.get("setup")
        if not script:
            return Measured(None, detail='no tables: give setup, or meta["setup"]')
        wanted, query = example.answer.strip().rstrip(";"), unfenced(answer.text).strip().rstrip(";")
        for seed in range(databases):
            with _Database(str(script), rows, seed) as connection:
                try:
                    right = _result(connection, wanted, timeout_s)
                except sqlite3.Error as error:
                    return Measured(None, detail=f"the reference fails: {error}")
                try:
                    got = _result(connection, query, timeout_s)
                except (sqlite3.Error, sqlite3.Warning) as error:
                    return Measured(0.0, detail=str(error))
            ordered = re.search(r"\border\s+by\b[^()]*$", wanted, re.IGNORECASE)
            if got != right if ordered else Counter(got) != Counter(right):
                return Measured(0.0, detail=f"{len(got)} rows instead of {len(right)}, or other values (database {seed})")
        return Measured(1.0)

    return Metric(name="sql", rate=rate)


class _Database:
    """An in-memory database from a script, its empty tables filled, then closed to everything but reading."""

    def __init__(self, script: str, rows: int, seed: int) -> None:
        self.connection = sqlite3.connect(":memory:")
        try:
            self.connection.executescript(script)
        except sqlite3.Error as error:
            raise ConfigError(f"the setup fails: {error}", where="metric 'sql'", allowed="SQLite's CREATE TABLE and INSERT") from error
        tables = [
            name for (name,) in self.connection.execute("select name from sqlite_master where type = 'table' and name not like 'sqlite_%'")
        ]
        for table in tables:
            if self.connection.execute(f'select 1 from "{table}" limit 1').fetchone() is None:
                _fill(self.connection, table, rows, random.Random(f"{seed} {table}"))
        self.connection.commit()
        self.connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)

    def __enter__(self) -> sqlite3.Connection:
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def _fill(connection: sqlite3.Connection, table: str, rows: int, draw: random.Random) -> None:
    """Random rows from small domains, so that joins meet and groups repeat; a row that breaks a constraint is left out."""
    columns = connection.execute(f'pragma table_info("{table}")').fetchall()
    for i in range(rows):
        values = [_cell(str(kind).upper(), bool(key), i, draw) for _, _, kind, _, _, key in columns]
        connection.execute(f'insert or ignore into "{table}" values ({", ".join("?" * len(values))})', values)


def _cell(kind: str, key: bool, i: int, draw: random.Random) -> Any:
    if key and "INT" in kind:
        return i + 1
    if not key and draw.random() < 0.05:
        return None
    if "INT" in kind or "BOOL" in kind:
        return draw.randint(0, 1) if "BOOL" in kind else draw.randint(1, 10)
    if any(word in kind for word in ("REAL", "FLOA", "DOUB", "NUM", "DEC")):
        return draw.choice([0.5, 1.0, 2.5, 10.0, 99.9])
    if "DATE" in kind or "TIME" in kind:
        return f"20{draw.randint(20, 25)}-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    return draw.choice(["a", "b", "Ann", "Bob", "Paris", "Rome", ""]) if not key else f"k{i}"


def _result(connection: sqlite3.Connection, query: str, timeout_s: float) -> list[tuple[Any, ...]]:
    """All rows of one query, numbers as numbers: 1 and 1.0 are one value. Raises sqlite3.Error past the time or the row limit."""
    end = time.monotonic() + timeout_s
    connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
    rows = connection.execute(query).fetchmany(_MAX_ROWS + 1)
    if len(rows) > _MAX_ROWS:
        raise sqlite3.OperationalError(f"more than {_MAX_ROWS} rows")
    return [tuple(round(v, 9) if isinstance(v, float) else v for v in row) for row in rows]


@register("code_tests")
def code_tests(tests: str | None = None, timeout_s: float = 10.0) -> Metric:
    """1 when the answer's Python passes the tests in the sandbox (pass@1, arXiv 2107.03374). Range 0 to 1, higher is better, mean.

    `tests` (or the row's `meta["tests"]`) is Python that raises when something is wrong; `meta["prefix"]` goes before an answer that
    continues it. A row without tests is missing.
    """

    def rate(example: Example, answer: Answer) -> Measured:
        script = tests if tests is not None else example.meta.get("tests")
        if not script:
            return Measured(None, detail='no tests: give them, or meta["tests"]')
        ran = run_python("\n\n".join(_parts(example, answer, str(script))), timeout_s=timeout_s)
        if ran.finished:
            return Measured(1.0)
        last = ran.output.strip().rpartition("\n")[2]
        return Measured(0.0, detail=f"longer than {timeout_s} s" if ran.timed_out else last or "left before the tests ended")

    return Metric(name="code_tests", rate=rate)


def _parts(example: Example, answer: Answer, script: str) -> Iterator[str]:
    code, prefix = unfenced(answer.text), str(example.meta.get("prefix", ""))
    name: Sequence[str] = re.findall(r"^def (\w+)", prefix, re.MULTILINE)
    whole = bool(name) and f"def {name[-1]}" in code
    yield prefix + code if prefix and not whole else code
    yield script
