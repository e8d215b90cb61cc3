"""OpenAI's preference rows: {"input": {"messages"}, "preferred_output": [1], "non_preferred_output": [1]}."""

from __future__ import annotations

from tunesmith.core.rows import Row
from tunesmith.core.types import Preference
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.record import (
    Fields,
    Format,
    one_message,
    preference,
)
from tunesmith.data.formats.turns import Notes
from tunesmith.data.formats.writing import tools_beside, written


def _dpo_row(row: Fields, notes: Notes) -> Row | None:
    asked = dict(row.pop("input"))
    turns = convert.messages(asked.pop("messages", None), "$.input.messages", notes)
    tools = convert.tools(asked, "$.input", notes)
    asked.pop("parallel_tool_calls", None)
    sides = [one_message(row.pop(key), f"$.{key}", notes) for key in ("preferred_output", "non_preferred_output")]
    return preference(turns, (sides[0], sides[1]), {**asked, **row}, notes, tools=tools)


def _dpo(row: Row) -> Fields | None:
    if not isinstance(row, Preference):
        return None
    asked: Fields = {"messages": written(row.messages), **tools_beside(row)}
    return {"input": asked, "preferred_output": written([row.preferred]), "non_preferred_output": written([row.non_preferred])}


FORMAT = Format(
    matches=lambda row: isinstance(row.get("input"), dict) and row.keys() >= {"preferred_output", "non_preferred_output"},
    read=_dpo_row,
    write=_dpo,
    example={
        "input": {"messages": [{"role": "user", "content": "q"}]},
        "preferred_output": [{"role": "assistant", "content": "a"}],
        "non_preferred_output": [{"role": "assistant", "content": "b"}],
    },
)
