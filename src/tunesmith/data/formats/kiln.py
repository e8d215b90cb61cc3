"""Kiln's task runs: {"model_type": "task_run", "input", "output": {"output"}, …}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.rows import Row
from tunesmith.core.types import Message
from tunesmith.data.formats.record import (
    Fields,
    Format,
    example,
)
from tunesmith.data.formats.turns import Notes, shown
from tunesmith.data.formats.writing import beside, own_or, question_answer


def _is_kiln(row: Mapping[str, Any]) -> bool:
    return row.get("model_type") == "task_run" and isinstance(row.get("output"), dict) and "input" in row


def _kiln(row: Fields, notes: Notes) -> Row | None:
    """A task run; a repaired output goes before the model's own, and the rating is kept."""
    output = row["output"]
    better = (row.get("repaired_output") or row.get("fixed_output") or output) if isinstance(output, dict) else {}
    text = better.get("output") if isinstance(better, dict) else None
    if not isinstance(text, str) or not isinstance(row["input"], str):
        notes.fault("$.output.output", "wrong_type", f"expected input and output texts, got {shown(row['input'])} and {shown(text)}")
        return None
    rating = output.get("rating") or {}
    meta = {"id": row.get("id"), "rating": rating.get("value") if isinstance(rating, dict) else None, "tags": row.get("tags") or None}
    turns = (Message(role="user", content=row["input"]), Message(role="assistant", content=text))
    return example(turns, own_or(row, {"meta": {key: value for key, value in meta.items() if value is not None}}, notes), notes)


def _written_kiln(row: Row) -> Fields | None:
    parts = question_answer(row)
    if parts is None or parts[0]:
        return None
    return {"model_type": "task_run", "input": parts[1], "output": {"output": parts[2]}, **beside(row)}


FORMAT = Format(
    matches=_is_kiln,
    read=_kiln,
    write=_written_kiln,
    example={
        "v": 1,
        "model_type": "task_run",
        "input": "q",
        "output": {"output": "b", "rating": {"value": 4.0}},
        "repaired_output": {"output": "a"},
    },
)
