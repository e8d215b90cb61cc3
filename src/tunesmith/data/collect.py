"""Sources → rows, each with its place, its faults and its fate; knows nothing about what happens to good rows afterwards.

All faults of all rows are gathered in one go. Whether any are tolerated is the caller's `max_invalid`, a share of the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.errors import ConfigError, DataError, Fault
from tunesmith.core.row_kinds import kind_of, only
from tunesmith.core.rows import Row, write_jsonl
from tunesmith.core.types import Example, LedgerLine, Record
from tunesmith.data.formats.objects import load_object
from tunesmith.data.formats.registry import Parsed, check_format, detect, parse_line, parse_row, rename
from tunesmith.data.formats.turns import Notes
from tunesmith.data.ledger import Ledger
from tunesmith.data.no_gc import no_cycles
from tunesmith.data.sources import SourceItem, Unread, is_text, read_items

SAMPLE = 200  # rows that the format is detected from


class Source(Record, frozen=True):
    """Where rows come from.

    `path`: a file, a folder, a pattern (`data/*.jsonl`) or a URL; with a `query`, a database (`sqlite:///rows.db`).
    `format`: 'auto' or a name of `data.formats.registry.FORMATS`; 'paragraphs' reads .txt and .md files with a row for each paragraph,
    which 'text' (and 'auto') read as one row a file.
    `map`: the format's key → the file's column, such as {"prompt": "question", "response": "answer"}.
    `ignore`: keys of turns that may be left out, such as ["reasoning_content"]; any other unknown key of a turn is a fault.
    `encoding`: of text files, such as "utf-16" or "cp1252".
    `unique_ids`: an `id` that comes twice is a fault (turn it off where `id` names a document, not a row).
    """

    path: str
    format: str = "auto"
    map: dict[str, str] = {}
    ignore: tuple[str, ...] = ()
    encoding: str = "utf-8"
    unique_ids: bool = True
    query: str = ""


class IncomingRow(NamedTuple):
    """One input row: where it is, the record (None when it has faults), its faults, its mends, its text for the rejects, and the byte of
    its file (unpacked) that it begins at, where it is a line."""

    origin: str
    row: Row | None
    faults: tuple[tuple[str, str], ...]
    mends: tuple[str, ...]
    raw: bytes | dict[str, Any]
    offset: int | None = None

    @property
    def fate(self) -> LedgerLine:
        """Its line in the ledger: kept, mended (the rules are the mends) or dropped as invalid."""
        if self.row is None:
            reason = "; ".join(message for _, message in self.faults)
            return LedgerLine(row=_raw_id(self.raw), origin=self.origin, fate="dropped", rule="invalid", reason=reason)
        if self.mends:
            return LedgerLine(row=self.row.id, origin=self.origin, fate="mended", rule=", ".join(self.mends))
        return LedgerLine(row=self.row.id, origin=self.origin, fate="kept")

    @property
    def reject(self) -> dict[str, Any]:
        """What is kept of a row with faults: its file, line and byte, each fault with its path in the row, and the row itself (the first
        10,000 characters)."""
        file, _, line = self.origin.rpartition(":")
        shown = self.raw.decode("utf-8", "replace")[:10_000] if isinstance(self.raw, bytes) else msgspec.to_builtins(self.raw, enc_hook=str)
        faults = [{"code": code, "path": _path(message), "message": message} for code, message in self.faults]
        return {"origin": self.origin, "file": file, "line": int(line), "offset": self.offset, "faults": faults, "row": shown}


@dataclass
class Collected:
    """What came in. `rows` are the good ones in the order of the input; `ledger` has a line for every row."""

    rows: list[Row] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    faults: list[Fault] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    inputs: int = 0
    invalid: int = 0

    @property
    def examples(self) -> list[Example]:
        """The rows as Examples. Raises DataError when they are of another kind."""
        return only(self.rows, Example)


@no_cycles()
def collect(
    sources: Source | Sequence[Source],
    *,
    max_invalid: float = 0.0,
    rejects: str | Path | None = None,
    named: Callable[[str], str] = lambda path: path,
) -> Collected:
    """Every row of the sources. Rows with faults are dropped in the ledger (rule `invalid`) and written to `rejects` (JSONL); `named` says
    what a file is called in origins.

    Raises NotFound, or DataError: a source that cannot be read or has no rows, mixed kinds of rows, or a share of invalid rows
    above `max_invalid` (with every fault, after the rejects were written).
    """
    collected, bad = Collected(), []
    for incoming in stream_all(sources, collected.formats, named):
        collected.inputs += 1
        if incoming.row is not None and not incoming.mends:  # nearly all
            collected.ledger.enter(incoming.origin, incoming.row.id)
        else:
            collected.ledger.add(incoming.fate)
        if incoming.row is not None:
            collected.rows.append(incoming.row)
            continue
        collected.invalid += 1
        collected.faults += faults_of(incoming)
        bad.append(incoming.reject)
    if rejects is not None and bad:
        write_jsonl(rejects, bad)
    refuse_invalid(collected, max_invalid, rejects)
    kind_of(collected.rows)
    collected.ledger.check(collected.inputs, len(collected.rows))
    return collected


def faults_of(incoming: IncomingRow) -> list[Fault]:
    """The faults of one row with its place."""
    return [Fault(incoming.origin, code, message) for code, message in incoming.faults]


class Counted(Protocol):
    """What is known of an import's rows when it is over."""

    inputs: int
    invalid: int
    faults: list[Fault]


def refuse_invalid(counts: Counted, max_invalid: float, rejects: str | Path | None) -> None:
    """Raise DataError when a larger share of the rows than `max_invalid` has faults, or all of them have."""
    if not 0 <= max_invalid <= 1:
        raise ConfigError(f"max_invalid is {max_invalid}", allowed="a share of the rows from 0 to 1, such as 0.01 or 1%")
    if not counts.invalid:
        return
    place = f"; all of these rows with their faults: {rejects}" if rejects is not None else ""
    if counts.invalid == counts.inputs:
        raise DataError(
            f"none of the {counted(counts.inputs, 'row')} can be used{place}",
            faults=counts.faults,
            remedy="mend them, or name the --format",
        )
    if counts.invalid / counts.inputs > max_invalid:
        tenths = -(-1_000 * counts.invalid // counts.inputs)  # of a percent, rounded up
        raise DataError(
            f"{counts.invalid} of {counted(counts.inputs, 'row')} cannot be used{place}",
            faults=counts.faults,
            allowed=f"at most {100 * max_invalid:g}% of the rows (max_invalid)",
            remedy=f"mend them, or accept their loss with max_invalid: {tenths / 10:g}%",
        )


def stream_all(
    sources: Source | Sequence[Source], formats: dict[str, str], named: Callable[[str], str] = lambda path: path
) -> Iterator[IncomingRow]:
    """The rows of all sources, one by one; `named` says what a file is called in origins.

    Raises as `stream`, and DataError for a source without rows or a file that is named twice.
    """
    for source in [sources] if isinstance(sources, Source) else sources:
        before, known = len(formats), 0
        mine: dict[str, str] = {}
        for incoming in stream(source, mine, named):
            if len(mine) > known:  # a file begins
                known, path = len(mine), next(reversed(mine))
                if path in formats:
                    raise DataError(
                        "its rows were entered twice: is the same file named twice?", where=path, remedy="name each source once"
                    )
                formats[path] = mine[path]
            yield incoming
        if len(formats) == before:
            raise DataError(
                "there are no rows in it", where=source.path, remedy="check that this is the right file and that it is complete"
            )


def stream(source: Source, formats: dict[str, str] | None = None, named: Callable[[str], str] = lambda path: path) -> Iterator[IncomingRow]:
    """The rows of one source, one by one, in bounded memory. `formats` is told the format of each file, `named` says what it is called.

    Raises NotFound, ConfigError, or DataError when the source cannot be read or its format is not recognised.
    """
    seen: dict[str, str] = {}
    by_paragraph = source.format == "paragraphs"
    for path, items in read_items(source.path, source.query, by_paragraph, source.encoding):
        name = "text" if by_paragraph or (source.format == "auto" and is_text(path)) else source.format
        check_format(name) if name != "auto" else None
        sample, rest = _peek(items)
        if name == "auto" and sample:
            name = _detect(sample, source, path)
        path = named(path)
        if formats is not None:
            formats[path] = name
        for item in _chain(sample, rest):
            if by_paragraph and isinstance(item.data, dict):  # a split keeps the paragraphs of a file together
                item = item._replace(data={"group": path, **item.data})
            origin = f"{path}:{item.number}"
            parsed = _parse(item, name, source, origin)
            if source.unique_ids and parsed.row is not None and (twice := _same_id(parsed.row, seen)):
                again = f"its id {parsed.row.meta['id']!r} was already used at {twice}"
                hint = "where it names a document and not a row: unique_ids: false"
                parsed = Parsed(None, (("duplicate_id", f"{again}; {hint}"),))
            yield IncomingRow(origin, *parsed, item.data if not isinstance(item.data, Unread) else b"", item.offset)


def _parse(item: SourceItem, name: str, source: Source, origin: str) -> Parsed:
    if isinstance(item.data, Unread):
        return Parsed(None, ((item.data.code, item.data.message),))
    if isinstance(item.data, dict):
        return parse_row(item.data, name, mapping=source.map, origin=origin, ignored=source.ignore)
    return parse_line(item.data, name, mapping=source.map, origin=origin, ignored=source.ignore)


def _peek(items: Iterator[SourceItem]) -> tuple[list[SourceItem], Iterator[SourceItem]]:
    sample: list[SourceItem] = []
    for item in items:
        sample.append(item)
        if len(sample) >= SAMPLE:
            break
    return sample, items


def _chain(sample: list[SourceItem], rest: Iterator[SourceItem]) -> Iterator[SourceItem]:
    yield from sample
    yield from rest


def _detect(sample: list[SourceItem], source: Source, path: str) -> str:
    rows: list[dict[str, Any]] = []
    faults: list[Fault] = []
    for item in sample:
        if isinstance(item.data, Unread):
            faults.append(Fault(f"{path}:{item.number}", item.data.code, item.data.message))
            continue
        row, fault = (item.data, None) if isinstance(item.data, dict) else load_object(item.data)
        if fault is None:
            rows.append(rename(row, source.map, Notes()))
        else:
            faults.append(Fault(f"{path}:{item.number}", *fault))
    if not rows:
        raise DataError("no row could be read", faults=faults, where=path, allowed="JSONL: one JSON object on each line, in UTF-8")
    return detect(rows, where=path)


def _same_id(row: Row, seen: dict[str, str]) -> str | None:
    """The origin of an earlier row with the same `id` column, or None; remembers this one."""
    identity = row.meta.get("id")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        return None
    earlier = seen.setdefault(str(identity), row.origin)
    return None if earlier == row.origin else earlier


def _raw_id(raw: bytes | dict[str, Any]) -> str:
    data = raw if isinstance(raw, bytes) else repr(raw).encode("utf-8", "backslashreplace")
    return "raw-" + hashlib.blake2b(data, digest_size=10).hexdigest()


def _path(message: str) -> str:
    """The path in the row that a message ends with; the whole row where it names none."""
    _, marker, path = message.rpartition(" (at ")
    return path.removesuffix(")") if marker else "$"
