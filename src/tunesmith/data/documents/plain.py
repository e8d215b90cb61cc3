"""Plain text, Markdown and tables of delimited text; knows nothing about folders."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.errors import DataError
from tunesmith.data.csv_table import Broken, read_table
from tunesmith.data.documents.pieces import DocumentPiece, Unreadable, cleaned, table_lines

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_CONVERT = "convert it to UTF-8"


def decoded(data: bytes, encoding: str = "utf-8") -> str:
    """The text of a file's bytes: as their first mark says, else in `encoding`. Raises Unreadable with the line of what is not."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), encoding)
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{data[error.start]:02x} in line {line} is not {encoding.upper()}"
        raise Unreadable("wrong_encoding", what, _CONVERT) from error
    if "\0" in text[:4096]:
        raise Unreadable("wrong_kind", "it holds binary data, not text", "give it the suffix of what it is")
    return text


def text(path: Path) -> Iterator[DocumentPiece]:
    """A text as it is; Markdown's headings are headings."""
    yield DocumentPiece(cleaned(decoded(path.read_bytes())))


def table(path: Path) -> Iterator[DocumentPiece]:
    """A table of delimited text, a line a row; the first names the columns. Raises Unreadable with the line of a broken row."""
    rows: list[dict[str, str]] = []
    try:
        for line, row in read_table(path, "\t" if path.suffix.lower() == ".tsv" else None):
            if isinstance(row, Broken):
                raise Unreadable(row.code, f"line {line}: {row.message}", _CONVERT if row.code == "invalid_utf8" else "mend the row")
            rows.append(row)
    except DataError as error:
        raise Unreadable("damaged", re.sub(r"\s+", " ", error.what), error.remedy) from error
    header = list(dict.fromkeys(name for row in rows for name in row))
    yield DocumentPiece("\n".join(table_lines([header, *([row.get(name, "") for name in header] for row in rows)]) if rows else []))
