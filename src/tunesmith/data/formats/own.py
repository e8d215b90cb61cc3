"""Tunesmith's own records: {"id", "messages", …, "origin"}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tunesmith.core.row_kinds import content_id
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Labelled, Preference, canonical
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.record import (
    Fields,
    Format,
)
from tunesmith.data.formats.turns import Notes


def _own_row(row: Fields, notes: Notes) -> Row | None:
    try:
        typed: Row = msgspec.convert(row, own_kind(row))
    except msgspec.ValidationError as error:
        notes.fault("$", "wrong_record", str(error))
        return None
    if "messages" in row:
        convert.messages(row["messages"], "$.messages", notes)  # what a type cannot say: nothing empty, tools answered
    right = content_id(typed)
    if typed.id != right:
        notes.mend("id")
    meta = typed.meta
    if typed.origin.startswith(("interaction:", "synthetic:")):
        meta = {"provenance": typed.origin, **meta}  # the place in the file becomes the origin
    return msgspec.structs.replace(typed, id=right, meta=meta)


def own_kind(row: Mapping[str, Any]) -> type[Row]:
    """The kind of Tunesmith's own row, by the key that only this kind has."""
    if "preferred" in row:
        return Preference
    if "desirable" in row:
        return Labelled
    return Document if "text" in row else Example


def is_own(row: Mapping[str, Any]) -> bool:
    """Whether the row is one of Tunesmith's own records."""
    kind = own_kind(row)
    needed = {"id", "origin", "text" if kind is Document else "messages"}
    return needed <= row.keys() <= set(kind.__struct_fields__)


def _tunesmith(row: Row) -> Fields:
    fields: Fields = msgspec.json.decode(canonical(row))
    return {**fields, "origin": row.origin}


FORMAT = Format(
    matches=is_own,
    read=_own_row,
    write=_tunesmith,
    example={"id": "1", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "origin": "f:1"},
)
