"""What a reader gives of a document, and what all readers hold to: pieces with their place, faults with their reason, bounded sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MOST_BYTES = 256 << 20  # of a file, and of what an archive unpacks to
MOST_CHARACTERS = 20_000_000
MOST_PAGES = 20_000


class DocumentPiece(NamedTuple):
    """The text of a document, of one of its pages (from 1), or of a part that has a name."""

    text: str
    page: int | None = None
    part: str = ""


@dataclass
class Unreadable(Exception):
    """Why a document, or a page of it, cannot be read: a stable code, words, and how to mend it."""

    code: str
    message: str
    remedy: str = ""
    page: int | None = None


# Control characters other than tab and line feed; what is no character at all.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff]")


def cleaned(text: str) -> str:
    """Text with line feeds alone as ends of lines, without control characters and white space at the ends of lines."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n\n").replace("\xa0", " ")
    return "\n".join(line.rstrip() for line in _NO_TEXT.sub("", lines).split("\n")).strip("\n")


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines. Where the first row names the columns, each line says them (`name: York; price: 3`), so that a row is
    understood without it; else cells stand side by side."""
    width = max((len(row) for row in rows), default=0)
    full = [[" ".join(cell.split()) for cell in row] + [""] * (width - len(row)) for row in rows]
    full = [row for row in full if any(row)]
    if not full:
        return []
    header, rest = full[0], full[1:]
    if rest and all(header) and len(set(header)) == len(header) > 1 and not any(_is_number(cell) for cell in header):
        return ["; ".join(f"{name}: {cell}" for name, cell in zip(header, row, strict=True) if cell) for row in rest]
    return [" | ".join(cell for cell in row if cell) for row in full]


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[\d.,]+%?", cell))
