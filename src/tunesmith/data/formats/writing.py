"""How parts that many formats share are written; knows no format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tunesmith.core.row_kinds import tools_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Message
from tunesmith.data.formats.turns import Notes, shown

# What a tool's own format has no place for stands under this key when Tunesmith writes it.
OWN = "tunesmith"
Fields = dict[str, Any]


def written(turns: Iterable[Message]) -> list[Any]:
    """The turns as the OpenAI API takes them: a tool call says its type, and content is there, null beside calls alone."""
    return [_turn(turn) for turn in turns]


def _turn(turn: Message) -> Fields:
    fields: Fields = msgspec.to_builtins(turn)
    if turn.tool_calls:
        fields["tool_calls"] = [{"type": call.type, **msgspec.to_builtins(call)} for call in turn.tool_calls]
    if isinstance(turn.content, tuple):
        fields["content"] = [{"type": part.type, "text": part.text} for part in turn.content]
    return fields


def plain(turn: Message, role: str) -> bool:
    """Whether a turn is nothing but text of that role."""
    return isinstance(turn.content, str) and turn == Message(role=role, content=turn.content)  # type: ignore[arg-type]


def question_answer(row: Row) -> tuple[Fields, str, str] | None:
    """System (or nothing), question and answer, when the row is just that."""
    if not isinstance(row, Example) or row.tools:
        return None
    turns = row.messages
    system = {"system": turns[0].content} if len(turns) == 3 and plain(turns[0], "system") and turns[0].content else {}
    pair = turns[1:] if system else turns
    if len(pair) != 2 or not plain(pair[0], "user") or not plain(pair[1], "assistant"):
        return None
    return system, pair[0].text, pair[1].text


def tools_beside(row: Row) -> Fields:
    """The tools of a row under their key, where there are any."""
    return {"tools": list(tools_of(row))} if tools_of(row) else {}


def beside(row: Row) -> Fields:
    """What a tool's own format has no place for, under a key of its own."""
    rest = own_fields(row)
    return {OWN: {**rest, "meta": row.meta}} if rest or row.meta else {}


def own_fields(row: Row) -> Fields:
    """Group, label and reference, where there are any."""
    return {key: value for key in ("group", "label", "reference") if (value := getattr(row, key, None)) is not None}


def own_or(row: Fields, otherwise: Fields, notes: Notes) -> Fields:
    """What Tunesmith wrote beside the tool's own keys, else what the tool's keys say."""
    own = row.get(OWN)
    if own is not None and not isinstance(own, dict):
        notes.fault(f"$.{OWN}", "wrong_type", f"expected an object, got {shown(own)}")
    return dict(own) if isinstance(own, dict) else otherwise
