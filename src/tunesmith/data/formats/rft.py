"""OpenAI's reinforcement rows: {"messages": […, user], any other keys}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.rows import Row
from tunesmith.core.types import Example
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.interaction import is_logged
from tunesmith.data.formats.own import is_own
from tunesmith.data.formats.record import (
    Fields,
    Format,
    example,
)
from tunesmith.data.formats.turns import Notes
from tunesmith.data.formats.writing import tools_beside, written

# the keys of a reinforcement row that graders compare an answer with
REFERENCES = frozenset({"reference", "reference_answer", "answer", "expected", "expected_answer", "ideal", "solution", "target"})


def _rft_row(row: Fields, notes: Notes) -> Row | None:
    turns = convert.messages(row.pop("messages"), "$.messages", notes)
    return example(turns, row, notes, tools=convert.tools(row, "$", notes))


def is_rft(row: Mapping[str, Any]) -> bool:
    """Whether the row is a conversation that ends in a question and brings more than a chat does."""
    turns = row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns) or is_own(row) or is_logged(row):
        return False
    if row.keys() >= {"chosen", "rejected"}:
        return False
    asks = bool(turns) and turns[-1].get("role") == "user"
    return asks and bool(row.keys() - {"messages", "tools", "parallel_tool_calls", "functions", "id", "group", "meta"})


def _rft(row: Row) -> Fields | None:
    if not isinstance(row, Example) or not row.messages or row.messages[-1].role != "user":
        return None
    return {"messages": written(row.messages), **tools_beside(row)}


FORMAT = Format(
    matches=is_rft,
    read=_rft_row,
    write=_rft,
    example={"messages": [{"role": "user", "content": "q"}], "answer": "a"},
)
