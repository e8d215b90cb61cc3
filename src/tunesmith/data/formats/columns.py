"""Two columns: {"prompt", "response", "system"?}."""

from __future__ import annotations

from tunesmith.core.rows import Row
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.record import (
    Fields,
    Format,
    as_text,
    asked,
    example,
)
from tunesmith.data.formats.turns import Notes
from tunesmith.data.formats.writing import question_answer


def _columns_row(row: Fields, notes: Notes) -> Row | None:
    return ask_and_answer(row, "response", notes)


def ask_and_answer(row: Fields, key: str, notes: Notes) -> Row | None:
    """A question and, under `key`, its answer, both texts."""
    turns, tools = asked(row, notes), convert.tools(row, "$", notes)
    answer = as_text(row.pop(key), f"$.{key}", notes)
    if notes.faults or answer is None:
        return None
    answers = convert.messages([{"role": "assistant", "content": answer}], f"$.{key}", notes)
    return example((*turns, *answers), row, notes, tools=tools)


def _columns(row: Row) -> Fields | None:
    parts = question_answer(row)
    return None if parts is None else {**parts[0], "prompt": parts[1], "response": parts[2]}


FORMAT = Format(
    matches=lambda row: row.keys() >= {"prompt", "response"},
    read=_columns_row,
    write=_columns,
    example={"prompt": "q", "response": "a"},
)
