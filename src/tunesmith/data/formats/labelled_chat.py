"""Conversations whose last answer is judged: {"messages", "label" or "desirable"}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.row_kinds import turns_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Labelled
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.own import is_own
from tunesmith.data.formats.record import (
    Fields,
    Format,
    as_label,
    labelled,
)
from tunesmith.data.formats.turns import Notes
from tunesmith.data.formats.writing import tools_beside, written


def _labelled_chat_row(row: Fields, notes: Notes) -> Row | None:
    return labelled(convert.messages(row.pop("messages"), "$.messages", notes), row, notes)


def _is_labelled_chat(row: Mapping[str, Any]) -> bool:
    """A conversation that is judged as a whole."""
    turns, value = row.get("messages"), row.get("label", row.get("desirable"))
    answered = isinstance(turns, list) and bool(turns) and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
    return answered and as_label(value) is not None and not is_own(row)


def _labelled_chat(row: Row) -> Fields | None:
    return {"messages": written(turns_of(row)), "label": row.desirable, **tools_beside(row)} if isinstance(row, Labelled) else None


FORMAT = Format(
    matches=_is_labelled_chat,
    read=_labelled_chat_row,
    write=_labelled_chat,
    example={"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": True},
)
