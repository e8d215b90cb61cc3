"""ShareGPT: {"conversations": [{"from", "value"}], "system"?, "tools"?}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Message
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.objects import load_object
from tunesmith.data.formats.record import (
    Fields,
    Format,
    end_with_answer,
    example,
)
from tunesmith.data.formats.turns import Notes, shown
from tunesmith.data.formats.writing import plain, tools_beside

SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
    "system": "system",
    "function_call": "function_call",
}


def _sharegpt_row(row: Fields, notes: Notes) -> Row | None:
    turns, tools = sharegpt_turns(row, notes), convert.tools(row, "$", notes)
    return example(end_with_answer(turns, notes), row, notes, tools=tools)


def sharegpt_turns(row: Fields, notes: Notes) -> tuple[Message, ...]:
    """The turns of the row, taken out of it."""
    turns = row.pop("conversations") if "conversations" in row else row.pop("conversation")
    raw: list[Any] = []
    for i, turn in enumerate(turns if isinstance(turns, list) else []):
        raw.append(sharegpt_turn(turn, f"$.conversations[{i}]", raw, notes))
    if not isinstance(turns, list):
        notes.fault("$.conversations", "not_a_list", f"expected a list of turns, got {shown(turns)}")
    return () if notes.faults else convert.messages(raw, "$.conversations", notes)


def sharegpt_turn(turn: Any, path: str, before: list[Any], notes: Notes) -> Fields:
    """The turn as a message, with every other key that it has."""
    if not isinstance(turn, dict):
        notes.fault(path, "not_an_object", f"expected {{'from', 'value'}}, got {shown(turn)}")
        return {}
    speaker, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        notes.fault(f"{path}.from", "wrong_role", f"from is {shown(speaker)}; allowed: {', '.join(SHAREGPT_ROLES)}")
        return {}
    rest = {key: item for key, item in turn.items() if key not in ("from", "role", "value", "content")}
    if role == "function_call":
        thought, call = _thought(value)
        calls = [_written_call(call, f"call_{len(before)}", path, notes)]
        return {**rest, "role": "assistant", "content": thought, "tool_calls": calls}
    if role == "tool":
        calls = [call["id"] for item in before for call in item.get("tool_calls", ())]
        return {**rest, "role": "tool", "content": value, "tool_call_id": turn.get("tool_call_id", calls[-1] if calls else None)}
    return {**rest, "role": role, "content": value}


def _thought(value: Any) -> tuple[str | None, Any]:
    """What is thought before a call (None: nothing), and the call."""
    end = value.rfind("</think>") if isinstance(value, str) else -1
    if end < 0 or not value.lstrip().startswith("<think>"):
        return None, value
    end += len("</think>")
    return value[:end], value[end:].strip()


def _written_call(value: Any, identity: str, path: str, notes: Notes) -> Fields:
    call, fault = load_object(value.encode()) if isinstance(value, str) else (value, None)
    if fault is not None or not isinstance(call, dict):
        notes.fault(f"{path}.value", "wrong_tool_call", f"expected a call as JSON {{'name', 'arguments'}}, got {shown(value)}")
        return {"id": identity}
    return {
        "id": identity,
        "type": "function",
        "function": {"name": call.get("name"), "arguments": call.get("arguments", call.get("parameters"))},
    }


def _is_sharegpt(row: Mapping[str, Any]) -> bool:
    return ("conversations" in row or "conversation" in row) and not row.keys() >= {"chosen", "rejected"}


def _sharegpt(row: Row) -> Fields | None:
    if not isinstance(row, Example) or not row.messages or row.messages[-1].role != "assistant":
        return None
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    if not all(turn.role in names and plain(turn, turn.role) for turn in row.messages):
        return None
    return {"conversations": [{"from": names[turn.role], "value": turn.content} for turn in row.messages], **tools_beside(row)}


FORMAT = Format(
    matches=_is_sharegpt,
    read=_sharegpt_row,
    write=_sharegpt,
    example={"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
)
