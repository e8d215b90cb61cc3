"""Sources → files of rows, fates and rejects, in memory that does not grow with the rows; knows nothing about versions.

What `collect` holds in lists goes to disk here as it comes: good rows to Parquet in batches, a ledger line for every row, and the rows with
faults apart. Whole or nothing: a source that breaks off in the middle leaves no file behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.core.atomic import atomic_file
from tunesmith.core.counted import counted
from tunesmith.core.digests import RunningDigest
from tunesmith.core.errors import DataError, Fault
from tunesmith.core.rows import Row, write_parquet
from tunesmith.core.types import Fate, LedgerLine, canonical
from tunesmith.data.collect import IncomingRow, Source, faults_of, refuse_invalid, stream_all
from tunesmith.data.ledger import LOST
from tunesmith.data.no_gc import no_cycles

FAULTS = 1_000  # that are kept to be shown; all are in the rejects
TOLD_EVERY = 1_000  # rows

OnIncoming = Callable[[IncomingRow], None]


@dataclass
class Intake:
    """What came in: how many rows, how many had faults (and the first of these faults), the format of each file, the rows by fate, and the
    digest of the good ones as `data.version.digest_of` has it."""

    inputs: int = 0
    invalid: int = 0
    faults: list[Fault] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    fates: Counter[Fate] = field(default_factory=Counter)
    digest: str = ""

    @property
    def rows(self) -> int:
        """How many good rows there are."""
        return self.inputs - self.invalid

    def enter(self, incoming: IncomingRow) -> LedgerLine:
        """Count one row; its line of the ledger."""
        line = incoming.fate
        self.inputs += 1
        self.fates[line.fate] += 1
        if incoming.row is None:
            self.invalid += 1
            self.faults += faults_of(incoming)[: FAULTS - len(self.faults)]
        return line


@no_cycles()
def intake(
    sources: Source | Sequence[Source],
    rows: Path,
    ledger: Path,
    *,
    max_invalid: float = 0.0,
    rejects: Path | None = None,
    on_row: OnIncoming = lambda incoming: None,
    named: Callable[[str], str] = lambda path: path,
) -> Intake:
    """Read every row of the sources into the files `rows` (Parquet) and `ledger` (JSONL); rows with faults go to `rejects` (JSONL), which
    is written only when there are some. `on_row` hears every thousandth row that came in; `named` says what a file is called in origins.

    Memory: one batch of rows, and the ids of rows that bring one. Raises as `collect`, and then `ledger`, which comes last, is not there.
    """
    counts, total = Intake(), RunningDigest()
    if rejects is not None:
        rejects.unlink(missing_ok=True)  # those of an earlier import would be taken for this one's

    def good() -> Iterator[Row]:
        with ExitStack() as bad:
            turned_away = None
            for incoming in stream_all(sources, counts.formats, named):
                lines.write(canonical(counts.enter(incoming)) + b"\n")
                if counts.inputs % TOLD_EVERY == 0:
                    on_row(incoming)
                if incoming.row is not None:
                    total.add(incoming.row)
                    yield incoming.row
                    continue
                if rejects is not None:
                    turned_away = turned_away or bad.enter_context(atomic_file(rejects))
                    turned_away.write(canonical(incoming.reject) + b"\n")
        refuse_invalid(counts, max_invalid, rejects)

    with atomic_file(ledger) as lines:
        add_up(counts, write_parquet(rows, good()))
    counts.digest = total.hexdigest()
    return counts


def add_up(counts: Intake, written: int) -> None:
    """Raise DataError unless every row has a fate and the rows on disk are those that were not lost."""
    lost = sum(n for fate, n in counts.fates.items() if fate in LOST)
    if counts.fates.total() != counts.inputs or counts.inputs - lost != written or lost != counts.invalid:
        raise DataError(
            f"the ledger does not add up: {counted(counts.inputs, 'row')} came in, {counts.invalid} have faults, {written} were written, "
            f"and the ledger has {dict(counts.fates)}",
            remedy="this is a fault of Tunesmith: please report it",
        )
