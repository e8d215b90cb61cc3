"""OpenAI's supervised rows: {"messages": […], "tools"?, "parallel_tool_calls"?}."""

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
    end_with_answer,
    example,
)
from tunesmith.data.formats.rft import is_rft
from tunesmith.data.formats.turns import Notes, shown
from tunesmith.data.formats.writing import tools_beside, written


def _chat_row(row: Fields, notes: Notes) -> Row | None:
    turns = convert.messages(row.pop("messages"), "$.messages", notes)
    tools = convert.tools(row, "$", notes)
    parallel = row.pop("parallel_tool_calls", None)
    if parallel is not None and not isinstance(parallel, bool):
        notes.fault("$.parallel_tool_calls", "wrong_type", f"expected true or false, got {shown(parallel)}")
    return example(end_with_answer(turns, notes), row, notes, tools=tools, parallel_tool_calls=parallel)


def _is_chat(row: Mapping[str, Any]) -> bool:
    """A conversation. One that goes on after its last answer and has more keys may be a chat or a reinforcement row: it is both."""
    if "messages" not in row or is_logged(row) or is_own(row) or row.keys() >= {"chosen", "rejected"}:
        return False
    return not is_rft(row) or any(turn.get("role") == "assistant" for turn in row["messages"])


def _chat(row: Row) -> Fields | None:
    if not isinstance(row, Example) or not row.messages or row.messages[-1].role != "assistant":
        return None
    fields: Fields = {"messages": written(row.messages), **tools_beside(row)}
    if row.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = row.parallel_tool_calls
    return fields


FORMAT = Format(
    matches=_is_chat,
    read=_chat_row,
    write=_chat,
    example={"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
)
