"""Tunesmith's request log: {"id", "alias", "variant", "messages", "answer", …}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.rows import Row
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.record import (
    Fields,
    Format,
    example,
)
from tunesmith.data.formats.turns import Notes


def _is_interaction(row: Mapping[str, Any]) -> bool:
    return row.keys() >= {"id", "alias", "variant", "messages", "answer"}


def _interaction(row: Fields, notes: Notes) -> Row | None:
    """What was asked and answered; a failed or empty answer teaches nothing."""
    if row.get("error") or row.get("status", 200) != 200:
        notes.fault("$.status", "failed_interaction", f"the request failed ({row.get('status')}: {row.get('error') or 'no message'})")
    turns = convert.messages(row["messages"], "$.messages", notes)
    answer: Fields = {"role": "assistant", "content": row["answer"] or None, "tool_calls": row.get("tool_calls") or None}
    last = convert.message(answer, "$.answer", Notes() if notes.faults else notes)
    if last is None:
        return None
    meta = {"provenance": f"interaction:{row['id']}", "alias": row["alias"], "variant": row["variant"]}
    return example((*turns, last), {"meta": meta, "group": row.get("conversation")}, notes)


def is_logged(row: Mapping[str, Any]) -> bool:
    """Whether the row is a request of the log, whatever else it looks like."""
    return row.keys() >= {"alias", "variant", "answer"}


FORMAT = Format(
    matches=_is_interaction,
    read=_interaction,
    write=None,
    example={
        "id": "i1",
        "alias": "bot",
        "variant": "v2",
        "messages": [{"role": "user", "content": "q"}],
        "answer": "a",
        "status": 200,
        "total_s": 0.1,
    },
)
