"""A ledger's file as people look through it: the fate of one row, or the rows with some fates, line by line from a place; knows no screen.

The file of an import of millions of rows is never read as a whole: it is mapped, and what is looked for is found in its bytes.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from tunesmith.core.errors import DataError, NotFound
from tunesmith.core.types import Fate, LedgerLine, Record

_decode = msgspec.json.Decoder(LedgerLine).decode


class LedgerPage(Record, frozen=True):
    """Some lines. `next` is the byte from which to go on, None at the end of the file; `share` of it was passed by then."""

    lines: tuple[LedgerLine, ...]
    next: int | None
    share: float


def fate_of(path: Path, origin: str) -> LedgerLine | None:
    """What became of the row of that origin; None where the ledger has none. Raises NotFound without a ledger."""
    if path.stat().st_size == 0 if path.is_file() else _absent(path):
        return None
    mark = b'"origin":' + msgspec.json.encode(origin)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        at = text.find(mark)
        while at >= 0:
            start, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
            line = _line(text[start : end if end >= 0 else len(text)], path)
            if line.origin == origin:  # the words may stand in a reason
                return line
            at = text.find(mark, at + 1)
    return None


def page_of(path: Path, fates: Collection[Fate], start: int, count: int, budget_s: float) -> LedgerPage:
    """The first `count` lines with one of the fates (none: all) from a byte on, as far as the time goes. Raises as `fate_of`."""
    size = path.stat().st_size if path.is_file() else int(_absent(path))
    until, lines = time.monotonic() + budget_s, list[LedgerLine]()
    marks = [b'"fate":"' + fate.encode() + b'"' for fate in fates]
    with path.open("rb") as file:
        file.seek(min(max(0, start), size))
        for number, raw in enumerate(iter(file.readline, b"")):
            if not marks or any(mark in raw for mark in marks):
                line = _line(raw, path)
                if not fates or line.fate in fates:
                    lines.append(line)
            if len(lines) == count or (number % 1000 == 999 and time.monotonic() > until):
                break
        at = file.tell()
    return LedgerPage(lines=tuple(lines), next=at if at < size else None, share=at / size if size else 1.0)


def _line(raw: bytes, path: Path) -> LedgerLine:
    try:
        return _decode(raw)
    except msgspec.DecodeError as error:
        raise DataError(
            f"the ledger is damaged, or this is no place in it: {error}", where=str(path), remedy="begin at its start"
        ) from error


def _absent(path: Path) -> bool:
    raise NotFound("this version has no ledger: its rows came in as they are", where=str(path))
