"""Sources → rows, each with its place, its faults and its fate; knows nothing about what happens to good rows afterwards.

All faults of all rows are gathered in one go. Whether any are tolerated is the caller's `max_invalid`, a share of the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.errors import ConfigError, DataError, Fault
from tunesmith.core.rows import Row, write_jsonl
from tunesmith.core.types import Example, Record
from tunesmith.data.bulk import no_cycles
from tunesmith.data.convert import Notes
from tunesmith.data.format import Parsed, check_format, detect, parse_line, parse_row, rename
from tunesmith.data.ledger import Ledger
from tunesmith.data.objects import load_object
from tunesmith.data.sources import Item, Unread, read_items

SAMPLE = 200  # rows that the format is detected from


class Source(Record, frozen=True):
    """Where rows come from.

    `path`: a file, a folder, a pattern (`data/*.jsonl`) or a URL; with a `query`, a database (`sqlite:///rows.db`).
    `format`: 'auto' or a name of `data.format.FORMATS`.
    `map`: the format's key → the file's column, such as {"prompt": "question", "response": "answer"}.
    `unique_ids`: an `id` that comes twice is a fault (turn it off where `id` names a document, not a row).
    """

    path: str
    format: str = "auto"
    map: dict[str, str] = {}
    unique_ids: bool = True
    query: str = ""


class Incoming(NamedTuple):
    """One input row: where it is, the record (None when it has faults), its faults, its mends, and its text for the rejects."""

    origin: str
    row: Row | None
    faults: tuple[tuple[str, str], ...]
    mends: tuple[str, ...]
    raw: bytes | dict[str, Any]


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
        """The rows as Examples. Raises DataError when they are preference pairs."""
        if any(not isinstance(row, Example) for row in self.rows):
            raise DataError("these rows are preference pairs, not examples", remedy="train them with method dpo, or name supervised files")
        return [row for row in self.rows if isinstance(row, Example)]


@no_cycles()
def collect(sources: Source | Sequence[Source], *, max_invalid: float = 0.0, rejects: str | Path | None = None) -> Collected:
    """Every row of the sources. Rows with faults are dropped in the ledger (rule `invalid`) and written to `rejects` (JSONL).

    Raises NotFound, or DataError: a source that cannot be read or has no rows, mixed kinds of rows, or a share of invalid rows
    above `max_invalid` (with every fault, after the rejects were written).
    """
    sources = [sources] if isinstance(sources, Source) else list(sources)
    found, bad = Collected(), []
    for source in sources:
        before = found.inputs
        for incoming in stream(source, found.formats):
            found.inputs += 1
            found.ledger.enter(incoming.origin, incoming.row.id if incoming.row else _raw_id(incoming.raw))
            if incoming.row is not None:
                found.rows.append(incoming.row)
                if incoming.mends:
                    found.ledger.mark(incoming.origin, "mended", ", ".join(incoming.mends))
                continue
            found.invalid += 1
            found.faults += [Fault(incoming.origin, code, message) for code, message in incoming.faults]
            found.ledger.mark(incoming.origin, "dropped", "invalid", "; ".join(message for _, message in incoming.faults))
            bad.append(_reject(incoming))
        if found.inputs == before:
            raise DataError(
                "there are no rows in it", where=source.path, remedy="check that this is the right file and that it is complete"
            )
    if rejects is not None and bad:
        write_jsonl(rejects, bad)
    _refuse(found, max_invalid, rejects)
    found.ledger.check(found.inputs, len(found.rows))
    return found


def _refuse(found: Collected, max_invalid: float, rejects: str | Path | None) -> None:
    if not 0 <= max_invalid <= 1:
        raise ConfigError(f"max_invalid is {max_invalid}", allowed="a share of the rows from 0 to 1, such as 0.01")
    if found.invalid > max_invalid * found.inputs:
        place = f"; the rows are in {rejects}" if rejects is not None else ""
        raise DataError(
            f"{found.invalid} of {found.inputs} rows cannot be used{place}",
            faults=found.faults,
            allowed=f"at most {max_invalid:.1%} of the rows (max_invalid)",
            remedy=f"mend them, or accept their loss with max_invalid: {min(1.0, found.invalid / found.inputs * 1.05):.3f}",
        )
    if len({type(row) for row in found.rows}) > 1:
        raise DataError("some sources hold examples and others preference pairs", remedy="collect them one kind at a time")
    if not found.rows:
        raise DataError(f"none of the {found.inputs} rows can be used", faults=found.faults)


def stream(source: Source, formats: dict[str, str] | None = None) -> Iterator[Incoming]:
    """The rows of one source, one by one, in bounded memory. `formats` is told the format of each file.

    Raises NotFound, ConfigError, or DataError when the source cannot be read or its format is not recognised.
    """
    seen: dict[str, str] = {}
    for path, items in read_items(source.path, source.query):
        name = source.format
        check_format(name) if name != "auto" else None
        sample, rest = _peek(items)
        if name == "auto" and sample:
            name = _detect(sample, source, path)
        if formats is not None:
            formats[path] = name
        for item in _chain(sample, rest):
            origin = f"{path}:{item.number}"
            parsed = _parse(item, name, source, origin)
            if source.unique_ids and parsed.row is not None and (twice := _same_id(parsed.row, seen)):
                parsed = Parsed(None, (("duplicate_id", f"its id {parsed.row.meta['id']!r} was already used at {twice}"),))
            yield Incoming(origin, *parsed, item.data if not isinstance(item.data, Unread) else b"")


def _parse(item: Item, name: str, source: Source, origin: str) -> Parsed:
    if isinstance(item.data, Unread):
        return Parsed(None, ((item.data.code, item.data.message),))
    if isinstance(item.data, dict):
        return parse_row(item.data, name, mapping=source.map, origin=origin)
    return parse_line(item.data, name, mapping=source.map, origin=origin)


def _peek(items: Iterator[Item]) -> tuple[list[Item], Iterator[Item]]:
    sample: list[Item] = []
    for item in items:
        sample.append(item)
        if len(sample) >= SAMPLE:
            break
    return sample, items


def _chain(sample: list[Item], rest: Iterator[Item]) -> Iterator[Item]:
    yield from sample
    yield from rest


def _detect(sample: list[Item], source: Source, path: str) -> str:
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


def _reject(incoming: Incoming) -> dict[str, Any]:
    raw = incoming.raw
    shown = raw.decode("utf-8", "replace")[:10_000] if isinstance(raw, bytes) else msgspec.to_builtins(raw, enc_hook=str)
    faults = [{"code": code, "message": message} for code, message in incoming.faults]
    return {"origin": incoming.origin, "faults": faults, "row": shown}
