"""Stored rows for people who look: the versions there are, a page of one's rows, one row with its fate and its tokens. A file of millions
of rows is paged where it lies, and its digest is not recomputed for a look: each page of the file has its own checksum."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec

from tunesmith.core.chat import Renderer
from tunesmith.core.errors import NotFound, nearest
from tunesmith.core.rows import Row
from tunesmith.data import version as versions
from tunesmith.data.ledger_file import LedgerPage, fate_of, page_of
from tunesmith.data.table import PlacedRow, TablePage, Wanted, table_of
from tunesmith.data.version import LEDGER, DatasetVersion, rows_file
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.datasets.tokens import mask
from tunesmith.flow.datasets.versions import shown
from tunesmith.flow.rows import Rows
from tunesmith.flow.sources import Frozen, frozen_of, splits_of_runs

BUDGET_S = 0.05  # how long a search goes on before it says how far it came
_REMEMBERED = 4
_rows: OrderedDict[tuple[str, str], Rows] = OrderedDict()


def every_version(at: ProjectContext) -> list[DatasetVersion]:
    """Every version and every split of a run, newest first."""
    known = [*versions.log(at.store.layout.datasets), *(split.version for split in splits_of_runs(at.store))]
    return sorted(known, key=lambda version: -version.created)


def version_of(at: ProjectContext, word: str) -> Frozen:
    """The version that a word names; `latest` is a run's split where there is no other. Raises NotFound."""
    if word == "latest" and (newest := next(iter(every_version(at)), None)) is not None:
        word = newest.id
    frozen = frozen_of(word, at.store.folder, lambda: splits_of_runs(at.store))
    if frozen is None:
        known = [version.id for version in every_version(at)]
        raise NotFound(
            f"no data version '{word}'", allowed=", ".join(known[:5]) or "none: there is no data yet", remedy=nearest(word, known)
        )
    return frozen


def frozen_rows(at: ProjectContext, word: str) -> Rows:
    """The rows of the version that a word names (also VERSION:PART), which never change and are remembered. Raises NotFound."""
    frozen = version_of(at, word)
    key = (str(frozen.folder), frozen.name)
    if key not in _rows:
        splits = {part: frozen.rows(part) for part in frozen.parts}
        _rows[key] = Rows(frozen.name, splits, frozen.ledger(), frozen.version)
    _rows.move_to_end(key)
    while len(_rows) > _REMEMBERED:
        _rows.popitem(last=False)
    return _rows[key]


def page_of_rows(frozen: Frozen, part: str, wanted: Wanted, start: int, count: int, *, budget_s: float = BUDGET_S) -> TablePage:
    """Some rows of a part that are wanted, from a place on. Raises NotFound."""
    return table_of(_file(frozen, part)).search(wanted, start, count, budget_s)


def page_of_fates(frozen: Frozen, fates: Sequence[Any], start: int, count: int, *, budget_s: float = BUDGET_S) -> LedgerPage:
    """Some lines of the version's ledger. Raises NotFound where it has none."""
    return page_of(frozen.folder / LEDGER, fates, start, count, budget_s)


def in_short(placed: PlacedRow) -> dict[str, Any]:
    """A row for a line of a table: its place, what is asked, what is answered, its label."""
    row = shown(placed.row)
    turns = row["turns"]
    asked = next((turn["text"] for turn in reversed(turns) if turn["role"] in ("user", "text")), turns[0]["text"] if turns else "")
    answers = [row.get("preferred"), row.get("answer"), row.get("reference")]
    answers += [turn["text"] for turn in turns[::-1] if turn["role"] == "assistant"]
    label = row.get("label", row.get("desirable"))
    return {
        "place": placed.place,
        "origin": row["origin"],
        "asked": asked,
        "answered": next((text for text in answers if text is not None), ""),
        "label": "" if label is None else str(label),
    }


def one_row(at: ProjectContext, frozen: Frozen, part: str, place: int) -> dict[str, Any]:
    """A row, what became of it, and how it came in where that is another content. Raises NotFound."""
    table = table_of(_file(frozen, part))
    row = table.row(place)
    ledger = frozen.folder / LEDGER
    fate = fate_of(ledger, row.origin) if ledger.is_file() else None
    return {
        "row": shown(row),
        "fate": None if fate is None else msgspec.to_builtins(fate),
        "came_in": _as_it_came(at, frozen.version, row) if fate is not None and fate.fate in ("mended", "truncated") else None,
        "place": place,
        "total": len(table),
    }


def masked_row(at: ProjectContext, frozen: Frozen, part: str, place: int) -> list[dict[str, Any]]:
    """The row as the project's base sees it, token by token (see `tokens.mask`). Raises NotFound for a base that is not here."""
    return mask(table_of(_file(frozen, part)).row(place), Renderer.load(at.base))


def _as_it_came(at: ProjectContext, version: DatasetVersion, row: Row) -> dict[str, Any] | None:
    """The row of the same origin in the first version of the line; None where it is not found."""
    root = at.store.layout.datasets
    first = versions.lineage(root, version.id)[-1] if (root / version.id).is_dir() else version
    if first.id == version.id:
        return None
    for part in first.counts:
        page = table_of(rows_file(root / first.id, part)).search(Wanted(origin=row.origin), 0, 5, 1.0)
        before = next((placed.row for placed in page.rows if placed.row.origin == row.origin), None)
        if before is not None:
            return shown(before)
    return None


def _file(frozen: Frozen, part: str) -> Any:
    if part not in frozen.version.counts:
        allowed = ", ".join(frozen.parts)
        raise NotFound(f"version {frozen.name} has no part '{part}'", allowed=allowed, remedy=nearest(part, frozen.parts))
    return rows_file(frozen.folder, part)
