"""The rows of one stored file as people look through them: by number, or those that hold some words; knows nothing about screens.

A file may have millions of rows: one row group (some thousand rows) is in memory at a time. A search has no index: it looks through row
groups until it has enough rows or its time is up, and says where to go on, so that an answer never takes longer than its budget.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import numpy as np

from tunesmith.core.errors import NotFound
from tunesmith.core.load import need
from tunesmith.core.row_kinds import label_of, turns_of
from tunesmith.core.rows import Row, damaged_parquet, decoded_rows, open_parquet, open_read
from tunesmith.core.types import Document, Example, Record

_HELD = 3  # row groups that stay in memory: pages beside each other are in the same one
_OPEN = 16  # files whose footers stay in memory
_SEARCHED = ("messages", "preferred", "non_preferred", "answer", "text", "reference", "label", "origin", "meta")


class Wanted(Record, frozen=True):
    """Which rows are looked for: those with the `words` in a text, of this `label`, from an `origin` that begins so. Empty: all."""

    words: str = ""
    label: str = ""
    origin: str = ""

    @property
    def everything(self) -> bool:
        """Whether no row is left out."""
        return not (self.words or self.label or self.origin)

    def fits(self, row: Row) -> bool:
        """Whether the row is one of them; letters' case does not matter for words."""
        if (self.label and label_of(row) != self.label) or not row.origin.startswith(self.origin):
            return False
        needle = self.words.casefold()
        return not needle or any(needle in text.casefold() for text in _texts(row))


class PlacedRow(Record, frozen=True):
    """A row and its place in the file, from 0."""

    place: int
    row: Row


class TablePage(Record, frozen=True):
    """Some rows of a file of `total`. `next` is the place from which to go on, None at the end; `looked` rows were looked at for these."""

    rows: tuple[PlacedRow, ...]
    total: int
    start: int
    next: int | None
    looked: int


class RowTable:
    """One file that `write_parquet` wrote, opened once. Raises NotFound, or DataError for another file."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, Lock()
        with open_read(path) as stream:
            opened, self._kind = open_parquet(stream, path)
            self._footer = opened.metadata
        sizes = [self._footer.row_group(i).num_rows for i in range(self._footer.num_row_groups)]
        self._starts: list[int] = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        self._held: OrderedDict[tuple[int, bool], Any] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, place: int) -> Row:
        """The row at that place. Raises NotFound."""
        if not 0 <= place < len(self):
            raise NotFound(f"no row {place + 1}", where=str(self.path), allowed=f"1 to {len(self)}" if len(self) else "none: it is empty")
        return self.page(place, 1).rows[0].row

    def page(self, start: int, count: int) -> TablePage:
        """The rows from a place on."""
        start, rows = max(0, start), []
        end = min(start + count, len(self))
        for group in self._groups(start, end):
            low, high = max(start, self._starts[group]), min(end, self._starts[group + 1])
            rows += self._decoded(group, np.arange(low, high))
        return TablePage(rows=tuple(rows), total=len(self), start=start, next=end if end < len(self) else None, looked=len(rows))

    def search(self, wanted: Wanted, start: int, count: int, budget_s: float) -> TablePage:
        """The first `count` rows that are wanted from a place on, as far as the time goes; one row group at least is looked through."""
        if wanted.everything:
            return self.page(start, count)
        until, start, place = time.monotonic() + budget_s, max(0, start), max(0, start)
        rows: list[PlacedRow] = []
        for group in self._groups(start, len(self)):
            low, end = max(start, self._starts[group]), self._starts[group + 1]
            for placed in self._fitting(group, low, wanted):
                rows.append(placed)
                if len(rows) == count:
                    end = placed.place + 1
                    break
            place = end
            if len(rows) == count or time.monotonic() > until:
                break
        return TablePage(
            rows=tuple(rows), total=len(self), start=start, next=place if place < len(self) else None, looked=max(0, place - start)
        )

    def _groups(self, start: int, end: int) -> range:
        if start >= end:
            return range(0)
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        last = int(np.searchsorted(self._starts, end - 1, "right")) - 1
        return range(first, last + 1)

    def _fitting(self, group: int, low: int, wanted: Wanted) -> Iterator[PlacedRow]:
        table = self._read(group, searched=True)
        mask = _mask(table, wanted)
        places = np.flatnonzero(mask) + self._starts[group]
        places = places[places >= low]
        for begin in range(0, len(places), 64):  # what is not asked for is not made
            yield from (placed for placed in self._decoded(group, places[begin : begin + 64]) if wanted.fits(placed.row))

    def _decoded(self, group: int, places: Any) -> list[PlacedRow]:
        table, local = self._read(group, searched=False), places - self._starts[group]
        try:
            rows = list(decoded_rows(self._kind, table.take(local)))
        except (ValueError, TypeError) as error:
            raise damaged_parquet(self.path, error) from error
        return [PlacedRow(place=place, row=row) for place, row in zip(places.tolist(), rows, strict=True)]

    def _read(self, group: int, *, searched: bool) -> Any:
        """One row group; with `searched` only the columns that words are looked for in."""
        pa = need("pyarrow", extra="data")
        with self._lock:
            for key in ((group, False), (group, True))[: 2 if searched else 1]:
                if key in self._held:
                    self._held.move_to_end(key)
                    return self._held[key]
            try:
                import pyarrow.parquet as pq

                with open_read(self.path) as stream:
                    opened = pq.ParquetFile(stream, metadata=self._footer, page_checksum_verification=True)
                    columns = [name for name in opened.schema_arrow.names if name in _SEARCHED] if searched else None
                    table = opened.read_row_group(group, columns=columns, use_threads=False)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise damaged_parquet(self.path, error) from error
            self._held[group, searched] = table
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
            return table


def _mask(table: Any, wanted: Wanted) -> Any:
    """Rows of a row group that may fit; what is in JSON is looked for as JSON writes it."""
    import pyarrow.compute as pc

    mask = np.ones(table.num_rows, dtype=bool)
    if wanted.label and "label" in table.column_names:
        mask &= _bools(pc.equal(table["label"], wanted.label))
    if wanted.origin:
        mask &= _bools(pc.starts_with(table["origin"], wanted.origin))
    if wanted.words and mask.any():
        there = np.zeros(table.num_rows, dtype=bool)
        plain, escaped = wanted.words, msgspec.json.encode(wanted.words).decode()[1:-1]
        for name in set(_SEARCHED).intersection(table.column_names):
            needle = plain if name in ("text", "reference", "label", "origin") else escaped
            there |= _holding(table[name].combine_chunks(), needle)
        mask &= there
    return mask


def _holding(column: Any, needle: str) -> Any:
    """Which texts of a column hold the needle, whatever the case of its letters."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.large_string())
    if not needle.isascii():
        return _bools(pc.match_substring(column, needle, ignore_case=True))
    # All texts are one buffer: looking through it at once is many times as fast as asking for each text.
    if not len(column) or column.buffers()[2] is None:
        return np.zeros(len(column), dtype=bool)
    offsets = np.frombuffer(column.buffers()[1], dtype=np.int64, count=column.offset + len(column) + 1)[column.offset :]
    there, mark = np.zeros(len(column), dtype=bool), needle.lower().encode()
    text = column.buffers()[2].to_pybytes()[: offsets[-1]].lower()
    at = text.find(mark, int(offsets[0]))
    while at >= 0:
        row = int(np.searchsorted(offsets, at, "right")) - 1
        if at + len(mark) <= offsets[row + 1]:
            there[row] = True
            at = text.find(mark, int(offsets[row + 1]))
        else:  # it stands across two texts
            at = text.find(mark, at + 1)
    return there


def _bools(column: Any) -> Any:
    filled = column.fill_null(False)
    return np.asarray(filled.to_numpy() if hasattr(filled, "num_chunks") else filled.to_numpy(zero_copy_only=False), dtype=bool)


def _texts(row: Row) -> Iterator[str]:
    for turn in turns_of(row):
        yield turn.text or ""
        for call in turn.tool_calls:
            yield f"{call.function.name}({call.function.arguments})"
    if isinstance(row, Document):
        yield row.text
    if isinstance(row, Example):
        yield row.reference or ""
        yield row.label or ""
    yield row.origin
    yield str(row.meta or "")


_tables: OrderedDict[tuple[str, int, int], RowTable] = OrderedDict()
_tables_lock = Lock()


def table_of(path: Path) -> RowTable:
    """The file, opened once for as long as it is the same. Raises as `RowTable`."""
    try:
        facts = path.stat()
    except OSError:
        return RowTable(path)  # raises with the path
    key = (str(path), facts.st_size, facts.st_mtime_ns)
    with _tables_lock:
        if key in _tables:
            _tables.move_to_end(key)
            return _tables[key]
    opened = RowTable(path)
    with _tables_lock:
        _tables[key] = opened
        while len(_tables) > _OPEN:
            _tables.popitem(last=False)
    return opened
