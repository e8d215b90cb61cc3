"""TRL's labelled answers: {"prompt", "completion", "label": true or false}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.rows import Row
from tunesmith.core.types import Labelled
from tunesmith.data.formats.record import (
    Fields,
    Format,
    as_label,
    asked,
    labelled,
    one_message,
)
from tunesmith.data.formats.turns import Notes
from tunesmith.data.formats.writing import tools_beside, written


def _trl_kto_row(row: Fields, notes: Notes) -> Row | None:
    turns, completion = asked(row, notes), row.pop("completion")
    answer = one_message(completion, "$.completion", notes)
    return labelled((*turns, answer), row, notes) if answer is not None else None


def _is_trl_kto(row: Mapping[str, Any]) -> bool:
    return row.keys() >= {"prompt", "completion", "label"} and as_label(row["label"]) is not None


def _trl_kto(row: Row) -> Fields | None:
    if not isinstance(row, Labelled):
        return None
    return {"prompt": written(row.messages), "completion": written([row.answer]), "label": row.desirable, **tools_beside(row)}


def judges(row: Mapping[str, Any]) -> bool:
    """Whether the row's label says that its answer is wanted or not, rather than naming a class: true or false, which tables write out. A
    class that is called true or false is the answer itself."""
    value = row.get("label", row.get("desirable"))
    completion = row.get("completion")
    is_word = isinstance(value, str) and value.strip().lower() in ("true", "false")
    return isinstance(value, bool) or (
        is_word and not (isinstance(completion, str) and completion.strip().lower() == str(value).strip().lower())
    )


FORMAT = Format(
    matches=_is_trl_kto,
    read=_trl_kto_row,
    write=_trl_kto,
    example={"prompt": "q", "completion": "a", "label": False},
)
