"""One final fate for every input row, with rule and reason, and counts that add up or raise; knows nothing about why a rule decides.

A row is known by its origin (`file:line`). What was put right before a row was dropped stays in the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tunesmith.core.errors import DataError, NotFound, nearest
from tunesmith.core.rows import read_jsonl, write_jsonl
from tunesmith.core.types import Fate, LedgerLine

LOST: frozenset[Fate] = frozenset({"dropped", "duplicate_of"})


class Ledger:
    """The fates of all rows of one import, in the order of the input. Kept rows cost two strings each."""

    def __init__(self) -> None:
        self._rows: dict[str, str] = {}
        self._fates: dict[str, LedgerLine] = {}

    def enter(self, origin: str, row: str) -> None:
        """A row came in; until something else is said it is kept. Raises DataError when the origin is already there."""
        if origin in self._rows:
            raise DataError("this row was entered twice: is the same file named twice?", where=origin, remedy="name each source once")
        self._rows[origin] = row

    def add(self, line: LedgerLine) -> None:
        """A row came in and this became of it. Raises DataError when its origin is already there."""
        self.enter(line.origin, line.row)
        if line.fate != "kept":
            self._fates[line.origin] = line

    def mark(self, origin: str, fate: Fate, rule: str, reason: str = "", *, row: str | None = None, other: str | None = None) -> None:
        """Give a row its fate. `row` is its new id when mending changed its content; `other` the origin that a duplicate repeats.

        Mends and truncations add up; nothing can happen to a row that is already lost (DataError).
        """
        before = self._fates.get(origin)
        if origin not in self._rows:
            raise DataError("a fate for a row that never came in", where=origin)
        if before is not None and before.fate in LOST:
            raise DataError(f"rule '{rule}' speaks of a row that '{before.rule}' already took out", where=origin)
        if row is not None:
            self._rows[origin] = row
        if before is not None and fate not in LOST:
            fate = "truncated" if "truncated" in (fate, before.fate) else fate
            rule = before.rule if rule in before.rule.split(", ") else f"{before.rule}, {rule}"
            reason = "; ".join(part for part in (before.reason, reason) if part)
        elif before is not None:
            reason = "; ".join(part for part in (reason, f"before: {before.fate} by {before.rule}") if part)
        self._fates[origin] = LedgerLine(row=self._rows[origin], origin=origin, fate=fate, rule=rule, reason=reason, other=other)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[LedgerLine]:
        """A line for every input row, in the order of the input."""
        for origin, row in self._rows.items():
            yield self._fates.get(origin) or LedgerLine(row=row, origin=origin, fate="kept")

    def counts(self) -> dict[str, int]:
        """Rows by fate; the values add up to the number of input rows."""
        counts = Counter(line.fate for line in self._fates.values())
        kept = len(self._rows) - len(self._fates)
        return {fate: n for fate, n in (("kept", kept + counts.pop("kept", 0)), *counts.items()) if n}

    def rules(self) -> dict[str, int]:
        """Rows by the rules that touched them, most first."""
        return dict(Counter(rule for line in self._fates.values() for rule in line.rule.split(", ")).most_common())

    def find(self, row: str) -> list[LedgerLine]:
        """The lines whose origin or row id is `row` (several rows can have the same content). Raises NotFound."""
        found = [line for line in self if row in (line.origin, line.row)]
        if not found:
            raise NotFound(
                f"no row '{row}' in the ledger", remedy=nearest(row, list(self._rows)[:10_000]) or "name it as file:line or by its id"
            )
        return found

    def check(self, inputs: int, survivors: int) -> None:
        """Raise DataError unless every one of `inputs` rows has a line and exactly `survivors` of them were not lost."""
        lost = sum(line.fate in LOST for line in self._fates.values())
        if len(self._rows) != inputs or len(self._rows) - lost != survivors:
            raise DataError(
                f"the ledger does not add up: {inputs} rows came in and {survivors} are left, "
                f"but it has {len(self._rows)} lines of which {lost} are lost ({self.counts()})",
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
