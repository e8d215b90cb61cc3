"""One final fate for every input row, with rule and reason, and counts that add up or raise; knows nothing about why a rule decides.

A row is known by its origin (`file:line`). What was put right before a row was dropped stays in the reason. In memory a row costs some
fifty bytes; what rules say of rows is on disk, each word appended and the last one counting.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, NotFound, nearest
from tunesmith.core.origins import Origins
from tunesmith.core.rows import read_jsonl, write_jsonl
from tunesmith.core.spool import Spool
from tunesmith.core.types import Fate, LedgerLine, canonical

LOST: frozenset[Fate] = frozenset({"dropped", "duplicate_of"})
_ID_BYTES = 12
_NOT_HEX = bytes(_ID_BYTES)
_decode = msgspec.json.Decoder(LedgerLine).decode


class Ledger:
    """The fates of all rows of one import, in the order of the input."""

    def __init__(self) -> None:
        self._origins = Origins()
        self._ids = bytearray()
        self._other_ids: dict[int, str] = {}  # those that are not 24 hexadecimal digits
        self._spoken, self._said_at = Spool(), array("q")  # offset of a row's line; -1: it is kept and nothing was said
        self._fates: Counter[Fate] = Counter()
        self._rules: Counter[str] = Counter()

    def enter(self, origin: str, row: str) -> None:
        """A row came in; until something else is said it is kept. Raises DataError when the origin is already there."""
        place = self._origins.append_new(origin)
        if place is None:
            raise DataError("this row was entered twice: is the same file named twice?", where=origin, remedy="name each source once")
        self._ids += _NOT_HEX
        self._said_at.append(-1)
        self._set_id(place, row)

    def add(self, line: LedgerLine) -> None:
        """A row came in and this became of it. Raises DataError when its origin is already there."""
        self.enter(line.origin, line.row)
        if line.fate != "kept":
            self._say(len(self._said_at) - 1, line)

    def mark(self, origin: str, fate: Fate, rule: str, reason: str = "", *, row: str | None = None, other: str | None = None) -> None:
        """Give a row its fate. `row` is its new id when mending changed its content; `other` the origin that a duplicate repeats.

        Mends and truncations add up; nothing can happen to a row that is already lost (DataError).
        """
        place = self._origins.find(origin)
        if place is None:
            raise DataError("a fate for a row that never came in", where=origin)
        before = self._line(place) if self._said_at[place] >= 0 else None
        if before is not None and before.fate in LOST:
            raise DataError(f"rule '{rule}' speaks of a row that '{before.rule}' already took out", where=origin)
        if row is not None:
            self._set_id(place, row)
        if before is not None and fate not in LOST:
            fate = "truncated" if "truncated" in (fate, before.fate) else fate
            rule = before.rule if rule in before.rule.split(", ") else f"{before.rule}, {rule}"
            reason = "; ".join(part for part in (before.reason, reason) if part)
        elif before is not None:
            reason = "; ".join(part for part in (reason, f"before: {before.fate} by {before.rule}") if part)
        if before is not None:
            self._fates[before.fate] -= 1
            self._rules.subtract(before.rule.split(", "))
        self._say(place, LedgerLine(row=self._id(place), origin=origin, fate=fate, rule=rule, reason=reason, other=other))

    def _say(self, place: int, line: LedgerLine) -> None:
        self._fates[line.fate] += 1
        self._rules.update(line.rule.split(", "))
        self._said_at[place] = self._spoken.append(canonical(line))

    def _line(self, place: int) -> LedgerLine:
        offset = self._said_at[place]
        if offset < 0:
            return LedgerLine(row=self._id(place), origin=self._origins[place], fate="kept")
        return _decode(self._spoken.read(offset))

    def _set_id(self, place: int, row: str) -> None:
        packed = _packed(row)
        if packed is None:
            self._other_ids[place] = row
        else:
            self._other_ids.pop(place, None)
        self._ids[place * _ID_BYTES : (place + 1) * _ID_BYTES] = packed or _NOT_HEX

    def _id(self, place: int) -> str:
        return self._other_ids.get(place) or self._ids[place * _ID_BYTES : (place + 1) * _ID_BYTES].hex()

    def __len__(self) -> int:
        return len(self._said_at)

    def __iter__(self) -> Iterator[LedgerLine]:
        """A line for every input row, in the order of the input."""
        return map(self._line, range(len(self)))

    def counts(self) -> dict[str, int]:
        """Rows by fate; the values add up to the number of input rows."""
        unsaid = len(self) - self._fates.total()
        counts = {"kept": unsaid, **self._fates}
        counts["kept"] = unsaid + self._fates["kept"]
        return {fate: n for fate, n in counts.items() if n}

    def rules(self) -> dict[str, int]:
        """Rows by the rules that touched them, most first."""
        return {rule: n for rule, n in self._rules.most_common() if n}

    def find(self, row: str) -> list[LedgerLine]:
        """The lines whose origin or row id is `row` (several rows can have the same content). Raises NotFound."""
        place = self._origins.find(row)
        lines = [self._line(at) for at in sorted({*self._with_id(row), *([] if place is None else [place])})]
        if not lines:
            raise NotFound(
                f"no row '{row}' in the ledger", remedy=nearest(row, self._origins[:10_000]) or "name it as file:line or by its id"
            )
        return lines

    def _with_id(self, row: str) -> Iterator[int]:
        packed, at = _packed(row), -1
        if packed is None:
            yield from (place for place, name in self._other_ids.items() if name == row)
            return
        while (at := self._ids.find(packed, at + 1)) >= 0:
            if at % _ID_BYTES == 0:
                yield at // _ID_BYTES

    def check(self, inputs: int, survivors: int) -> None:
        """Raise DataError unless every one of `inputs` rows has a line and exactly `survivors` of them were not lost."""
        lost = sum(self._fates[fate] for fate in LOST)
        if len(self) != inputs or len(self) - lost != survivors:
            raise DataError(
                f"the ledger does not add up: {counted(inputs, 'row')} came in and {survivors} are left, "
                f"but it has {counted(len(self), 'line')} of which {lost} are lost ({self.counts()})",
                remedy="this is a fault of a rule or of Tunesmith: please report it with the ledger",
            )

    def write(self, path: str | Path) -> int:
        """Write all lines as JSONL, whole or not at all; returns how many."""
        return write_jsonl(path, self)

    @classmethod
    def read(cls, path: str | Path) -> Ledger:
        """The ledger that `write` wrote."""
        ledger = cls()
        for line in read_jsonl(path, LedgerLine):
            ledger.add(line)
        return ledger


def _packed(row: str) -> bytes | None:
    """The bytes of an id of 24 lower-case hexadecimal digits that are not all zero; None for any other id."""
    if len(row) != 2 * _ID_BYTES:
        return None
    try:
        packed = bytes.fromhex(row)
    except ValueError:
        return None
    return packed if packed.hex() == row and packed != _NOT_HEX else None
