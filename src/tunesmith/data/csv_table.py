"""A table of delimited text → its rows, each with the line that it begins at; knows nothing about what the columns mean.

The delimiter is the one of , ; tab | that the header has most of outside quotes, or what a first line `sep=;` says; blank lines before the
header are passed over. Cells are texts, empty ones are left out. A row with more or fewer cells than the header is a fault, never shifted.

A quote that is never closed would swallow every row after it, and a record that is broken inside would be read on from its middle. So after
a fault the end of the record is looked for by its quotes: a record is whole when it has an even number of them.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from tunesmith.core.errors import DataError
from tunesmith.core.rows import open_read, refuse_utf16

DELIMITERS = ",;\t|"
FIELD_CHARS = 64 * 1024 * 1024
LOOK_AHEAD = 2_000  # lines in which the end of a broken record is looked for
WHOLE_ROWS = 5  # so many lines that look like rows inside a broken record are rows that a quote swallowed
_SEP = re.compile(r"sep=(.)\s*$")


class Broken(NamedTuple):
    """Why a row could not be read: a stable code and a message."""

    code: str
    message: str


class _Lines:
    """The lines of a text, of which those of the record that is being read can be given back."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text, self._again = text, deque[str]()
        self.number = 0  # of the last line that was given
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        self.number += 1
        self.taken.append(line)
        return line

    def give_back(self, number: int) -> None:
        """Keep so many of the lines that were taken, and give the others again."""
        later = self.taken[number:]
        self._again.extendleft(reversed(later))
        self.number -= len(later)
        del self.taken[number:]


def read_table(file: Path, delimiter: str | None = None) -> Iterator[tuple[int, dict[str, str] | Broken]]:
    """The rows of a table with a header, with the line that each begins at; `delimiter` None: found out.

    Raises DataError for a header that is no header, or that names a column twice.
    """
    with open_read(file) as raw, _lenient(raw) as text:
        refuse_utf16(getattr(raw, "peek", bytes)(4)[:4], file)
        limit = csv.field_size_limit(FIELD_CHARS)
        try:
            lines = _Lines(iter(text))
            delimiter = _delimiter(lines, delimiter)
            if delimiter is None:
                return
            table: Iterator[list[str]] = csv.reader(lines, delimiter=delimiter, strict=True)
            header = _header(table, lines, file)
            yield from _rows(table, lines, header, delimiter)
        finally:
            csv.field_size_limit(limit)


def _lenient(raw: IO[bytes]) -> io.TextIOWrapper:
    """Text whose wrong bytes stay visible as lone surrogates, so that the row they are in can be named."""
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(lines: _Lines, given: str | None) -> str | None:
    """The delimiter; afterwards the header comes next. None: there are only blank lines."""
    for line in lines:
        if not line.strip():
            lines.taken.clear()
            continue
        if separator := _SEP.match(line):
            lines.taken.clear()
            given = given or separator[1]
            continue
        header = line
        while header.count('"') % 2 and len(lines.taken) < LOOK_AHEAD and (more := next(lines, None)) is not None:
            header += more
        lines.give_back(0)
        outside = re.sub(r'"[^"]*"', "", header)
        return given or max(DELIMITERS, key=outside.count)
    return None


def _header(table: Iterator[list[str]], lines: _Lines, file: Path) -> list[str]:
    try:
        header = [name.strip() for name in next(table, [])]
    except csv.Error as error:
        where = f"{file}:{lines.number}"
        raise DataError(f"the header is not valid CSV: {error}", where=where, remedy="its first line must name the columns") from error
    if len(set(header)) < len(header):
        raise DataError(f"two columns have the same name: {header}", where=f"{file}:{lines.number}", remedy="rename one")
    return header


def _rows(table: Iterator[list[str]], lines: _Lines, header: list[str], delimiter: str) -> Iterator[tuple[int, dict[str, str] | Broken]]:
    while True:
        lines.taken.clear()
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            yield from _broken(lines, len(header), delimiter, Broken("invalid_csv", f"not valid CSV: {error}"))
            continue
        begin = lines.number - len(lines.taken) + 1
        if any("\ud800" <= c <= "\udfff" for cell in cells if not cell.isascii() for c in cell):
            yield begin, Broken("invalid_utf8", "there are bytes that are not UTF-8: name the file's encoding, or convert it to UTF-8")
        elif len(cells) == len(header):
            yield begin, {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
        elif cells:
            what = f"the row has {len(cells)} cells, the header {len(header)}"
            fault = Broken("wrong_cells", f"{what}: is a '{delimiter}' or a quote not escaped?")
            yield from _broken(lines, len(header), delimiter, fault) if len(lines.taken) > 1 else [(begin, fault)]


def _broken(lines: _Lines, width: int, delimiter: str, fault: Broken) -> Iterator[tuple[int, Broken]]:
    """A fault for the record that begins with the first of the lines that were taken, and for each row that it swallowed; reading goes on
    behind it."""
    begin = lines.number - len(lines.taken) + 1
    end = _end(lines)
    if end is None:
        lines.give_back(1)
        opened = lines.taken[0].count('"') % 2
        yield begin, Broken("unclosed_quote", "a quote that opens in this line is never closed") if opened else fault
        return
    lines.give_back(end)
    inside = [_is_row(line, width, delimiter) for line in lines.taken[1:-1]]
    if sum(inside) < WHOLE_ROWS:
        more = f" (the row takes lines {begin} to {begin + end - 1})" if end > 1 else ""
        yield begin, Broken(fault.code, fault.message + more)
        return
    for number in range(begin, begin + end):
        yield number, Broken("unclosed_quote", f"this line lies between a quote in line {begin} and the next one in line {begin + end - 1}")


def _end(lines: _Lines) -> int | None:
    """How many lines the broken record takes; None when it is only its first line, or does not end within LOOK_AHEAD lines."""
    if lines.taken[0].count('"') % 2 == 0:
        return None
    at = 1
    while at < LOOK_AHEAD:
        if at == len(lines.taken) and next(lines, None) is None:
            return None
        if lines.taken[at].count('"') % 2:
            return at + 1
        at += 1
    return None


def _is_row(line: str, width: int, delimiter: str) -> bool:
    """Whether a line alone would be a row of the table."""
    try:
        cells: list[Any] = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return False
    return len(cells) == width
