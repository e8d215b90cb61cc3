"""Whether a column of JSON objects has a pair of strings, for any key: as a path into JSON, one with a quote or a point would mean another.
Knows nothing about what the objects are."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ColumnElement


class _HasPair(ColumnElement[bool]):
    inherit_cache = False
    type = sa.Boolean()

    def __init__(self, column: sa.Column[Any], key: str, value: str) -> None:
        self.parts = (column, sa.literal(key), sa.literal(value))


def _written(pair: _HasPair, compiler: SQLCompiler, options: Any) -> list[str]:
    return [compiler.process(part, **options) for part in pair.parts]


@compiles(_HasPair, "sqlite")
def _sqlite(pair: _HasPair, compiler: SQLCompiler, **options: Any) -> str:
    column, key, value = _written(pair, compiler, options)
    return f"EXISTS (SELECT 1 FROM json_each({column}) AS pair WHERE pair.key = {key} AND pair.value = {value})"


@compiles(_HasPair, "postgresql")
def _postgresql(pair: _HasPair, compiler: SQLCompiler, **options: Any) -> str:
    column, key, value = _written(pair, compiler, options)
    return f"(({column}) ->> {key}) = {value}"


def has_pair(column: sa.Column[Any], key: str, value: str) -> ColumnElement[bool]:
    """The condition that the object in `column` has this value at this key. No object has a pair with the character NUL."""
    return sa.false() if "\0" in key + value else _HasPair(column, key, value)
