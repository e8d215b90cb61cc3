"""Running text: {"text"}, with what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.row_kinds import identified
from tunesmith.core.rows import Row
from tunesmith.core.types import Document
from tunesmith.data.formats.own import is_own
from tunesmith.data.formats.record import (
    Fields,
    Format,
    group_and_meta,
)
from tunesmith.data.formats.turns import Notes, shown


def _text_row(row: Fields, notes: Notes) -> Row | None:
    """Running text, of any length: training splits it."""
    text = row.pop("text")
    if not isinstance(text, str):
        notes.fault("$.text", "null_content" if text is None else "wrong_type", f"expected text, got {shown(text)}")
        return None
    if not text.strip():
        notes.fault("$.text", "no_text", "there is no text in it")
    return identified(Document(id="", text=text, **group_and_meta(row)))


# the keys that documents on the web carry beside their text; any other key may say that the text is a question
_ABOUT_TEXT = {
    *("text", "id", "group", "meta", "metadata", "url", "source", "title", "author", "timestamp", "date", "created", "added", "path"),
    *("language", "lang", "language_score", "license", "domain", "dump", "file_path", "token_count", "subset"),
}


def is_document(row: Mapping[str, Any]) -> bool:
    """Whether a row with a `text` has nothing beside it that could be an answer."""
    return row.keys() <= _ABOUT_TEXT


def _text(row: Row) -> Fields | None:
    return {"text": row.text} if isinstance(row, Document) else None


FORMAT = Format(
    matches=lambda row: "text" in row and not is_own(row),
    read=_text_row,
    write=_text,
    example={"text": "a"},
)
