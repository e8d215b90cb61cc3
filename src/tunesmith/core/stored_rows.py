"""Rows of a Parquet file as a sequence that stays on disk: read a row group at a time; knows nothing about what is done with them.

What a rule leaves of such rows is a view: the same file, the places that are left, and the rows that were changed. Views can be pickled,
and a slice names only its places, so that a piece of the work can be sent elsewhere.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec
import numpy as np

from tunesmith.core.errors import DataError
from tunesmith.core.load import need
from tunesmith.core.rows import Row, damaged_parquet, decoded_rows, open_parquet, open_read
from tunesmith.core.seal import checked
from tunesmith.core.spool import Spool
from tunesmith.core.types import canonical

T = TypeVar("T")
Places = np.ndarray[Any, np.dtype[np.int64]]
STEP = 2_000  # rows that are objects at one time


class Changed:
    """Changed rows by their place in a file, put in ascending order and kept on disk."""

    def __init__(self) -> None:
        self._spool, self._places, self._offsets = Spool(), array("q"), array("q")

    def put(self, place: int, row: Row) -> None:
        """The row that is now at that place of the file."""
        self._places.append(place)
        self._offsets.append(self._spool.append(canonical(row)))

    def get(self, place: int, kind: type[T]) -> T | None:
        """The changed row, or None where the file's own holds."""
        at = bisect_left(self._places, place)
        if at == len(self._places) or self._places[at] != place:
            return None
        return msgspec.json.decode(self._spool.read(self._offsets[at]), type=kind)


class StoredRows(Sequence[Row]):
    """The rows of a file that `write_parquet` wrote, or those at the ascending places `at`. Iterating holds a row group, of which
    STEP rows are objects; asking for one row reads its row group.

    Raises NotFound, or DataError when it is not such a file or damaged.
    """

    def __init__(self, path: str | Path, at: Places | None = None, changed: Changed | None = None) -> None:
        self.path = checked(Path(path))
        with open_read(path) as stream:
            opened, self._kind = open_parquet(stream, path)
            sizes = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._at = np.arange(self._starts[-1]) if at is None else at
        self._changed = changed
        self._held: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[Row]:
        bounds = np.searchsorted(self._at, self._starts)
        for group in np.flatnonzero(np.diff(bounds)).tolist():
            places = self._at[bounds[group] : bounds[group + 1]]
            yield from self._decoded(self._group(group), group, places)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> StoredRows: ...
    def __getitem__(self, at: int | slice) -> Row | StoredRows:
        if isinstance(at, slice):
            return self.taken(np.arange(len(self))[at])
        place = self._at[at]
        group = int(np.searchsorted(self._starts, place, "right")) - 1
        if self._held[0] != group:
            self._held = (group, self._group(group))
        return next(self._decoded(self._held[1], group, np.array([place])))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def taken(self, which: Places) -> StoredRows:
        """A view of the rows at these ascending places of this sequence."""
        view = object.__new__(StoredRows)
        view.path, view._kind, view._starts, view._changed = self.path, self._kind, self._starts, self._changed
        view._at, view._held = self._at[which], (-1, None)
        return view

    def pieces(self) -> Iterator[StoredRows]:
        """A view for each row group."""
        bounds = np.searchsorted(self._at, self._starts).tolist()
        return (self.taken(np.arange(low, high)) for low, high in itertools.pairwise(bounds) if high > low)

    def place(self, at: int) -> int:
        """Where the row at `at` is in the file."""
        return int(self._at[at])

    @property
    def is_changed(self) -> bool:
        """Whether some rows may be others than the file's."""
        return self._changed is not None

    def earlier(self, at: int) -> Row | None:
        """The row at `at` where it is another one than the file's."""
        return None if self._changed is None else self._changed.get(self.place(at), self._kind)

    def with_changed(self, changed: Changed) -> StoredRows:
        """A view in which the rows at these places of the file are others."""
        view = self.taken(np.arange(len(self)))
        view._changed = changed
        return view

    def __getstate__(self) -> dict[str, Any]:
        if self._changed is not None:
            raise DataError("rows that were changed cannot be sent to another process", remedy="write them to a file first")
        return {"path": self.path, "at": self._at}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["at"])  # type: ignore[misc]

    def _group(self, group: int) -> Any:
        pa = need("pyarrow", extra="data")
        try:
            with open_read(self.path) as stream:
                return open_parquet(stream, self.path)[0].read_row_group(group, use_threads=False)  # threads keep arenas of their own
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged_parquet(self.path, error) from error

    def _decoded(self, table: Any, group: int, places: Places) -> Iterator[Row]:
        local = places - self._starts[group]
        for start in range(0, len(places), STEP):
            part = local[start : start + STEP]
            whole = part[-1] - part[0] + 1 == len(part)
            try:
                rows = list(decoded_rows(self._kind, table.slice(int(part[0]), len(part)) if whole else table.take(part)))
            except (ValueError, TypeError) as error:
                raise damaged_parquet(self.path, error) from error
            if self._changed is None:
                yield from rows
            else:
                for place, row in zip(places[start : start + STEP].tolist(), rows, strict=True):
                    yield self._changed.get(place, self._kind) or row


class Chained(Sequence[Row]):
    """Several sequences of rows as one; those that lie in files stay there."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[Row]:
        return itertools.chain.from_iterable(self._parts)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Chained: ...
    def __getitem__(self, at: int | slice) -> Row | Chained:
        if isinstance(at, slice):
            return self.taken(np.arange(len(self))[at])
        place = range(len(self))[at]
        part = int(np.searchsorted(self._ends, place, "right"))
        return self._parts[part][place - self._start(part)]

    def taken(self, which: Places) -> Chained:
        """Those at these ascending places."""
        bounds = np.searchsorted(which, [0, *self._ends])
        places = [which[low:high] - self._start(part) for part, (low, high) in enumerate(itertools.pairwise(bounds.tolist()))]
        return Chained([taken(part, own) for part, own in zip(self._parts, places, strict=True)])

    def pieces(self) -> Iterator[Sequence[Row]]:
        """The pieces of each part, in their order; of rows in memory slices."""
        for part in self._parts:
            if isinstance(part, StoredRows | Chained):
                yield from part.pieces()
            else:
                yield from (part[start : start + STEP] for start in range(0, len(part), STEP))

    def _start(self, part: int) -> int:
        return int(self._ends[part - 1]) if part else 0


def chained(parts: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """The rows of all parts as one sequence: a list where they are in memory already, else a view of them where they are."""
    if any(isinstance(part, StoredRows | Chained) for part in parts):
        return Chained(parts)
    return [row for part in parts for row in part]


class Rewriting:
    """Rows some of which are put right, in ascending order: those of a list in a list of its own, those of a file on disk beside it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._list = None if isinstance(rows, StoredRows) else list(rows)
        self._changed, self._next = Changed(), 0

    def put(self, at: int, row: Row) -> None:
        """The row that is now at `at`."""
        if self._list is not None:
            self._list[at] = row
        elif isinstance(self._rows, StoredRows):
            self._carry(self._rows, at)
            self._changed.put(self._rows.place(at), row)
            self._next = at + 1

    def left(self, which: Places) -> Sequence[Row]:
        """The rows at these ascending places, as they are now."""
        if self._list is not None:
            return taken(self._list, which)
        assert isinstance(self._rows, StoredRows)
        self._carry(self._rows, len(self._rows))
        return self._rows.with_changed(self._changed).taken(which)

    def _carry(self, rows: StoredRows, end: int) -> None:
        """What was changed before and is not changed now."""
        for at in range(self._next, end) if rows.is_changed else ():
            if (row := rows.earlier(at)) is not None:
                self._changed.put(rows.place(at), row)
        self._next = end


SMALL = 20_000  # rows that are worth holding: asking a file for one row reads its row group


def rows_of_file(path: str | Path) -> Sequence[Row]:
    """The rows of a file that `write_parquet` wrote: a list when they are few, else left on disk. Raises as `StoredRows`."""
    rows = StoredRows(path)
    return rows if len(rows) > SMALL else list(rows)


def taken(rows: Sequence[Row], which: Places) -> Sequence[Row]:
    """The rows at these ascending places: a view of stored rows, else a list."""
    return rows.taken(which) if isinstance(rows, StoredRows | Chained) else [rows[i] for i in which.tolist()]
