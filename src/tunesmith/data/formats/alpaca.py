"""Alpaca: {"instruction", "input"?, "output", "system"?, "history"?}."""

from __future__ import annotations

from tunesmith.core.rows import Row
from tunesmith.data.formats.columns import ask_and_answer
from tunesmith.data.formats.record import (
    Fields,
    Format,
)
from tunesmith.data.formats.turns import Notes
from tunesmith.data.formats.writing import question_answer


def _alpaca_row(row: Fields, notes: Notes) -> Row | None:
    return ask_and_answer(row, "output", notes)


def _alpaca(row: Row) -> Fields | None:
    parts = question_answer(row)
    return None if parts is None else {**parts[0], "instruction": parts[1], "output": parts[2]}


FORMAT = Format(
    matches=lambda row: row.keys() >= {"instruction", "output"},
    read=_alpaca_row,
    write=_alpaca,
    example={"instruction": "q", "input": "", "output": "a"},
)
