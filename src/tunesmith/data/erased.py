"""Frozen data sets without some of their rows, under new names: what is frozen does not change, so whoever must be forgotten is left out of
a version that takes its place, and the old one is deleted. Knows nothing about who that is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.core.rows import Row, read_jsonl, read_parquet
from tunesmith.core.seal import SEAL as DIGESTS
from tunesmith.core.seal import seal
from tunesmith.core.types import LedgerLine, canonical
from tunesmith.data import version as versions
from tunesmith.data.ledger import Ledger
from tunesmith.data.version import LEDGER, SEAL, DatasetVersion

About = Callable[[Any], bool]


def without_rows(root: Path, about: About) -> dict[str, str]:
    """Put in the place of each version that has rows, or lines of its ledger, `about` somebody one without them; old name → new name, empty
    where no row was left. Later versions name the new one as their parent."""
    renamed: dict[str, str] = {}
    for version in reversed(versions.log(root)):  # parents first
        parent = renamed.get(version.parent or "", version.parent) or None
        gone, kept = set[str](), dict[str, list[Row]]()
        for name in version.counts:
            rows = list(read_parquet(versions.rows_file(root / version.id, name)))
            kept[name] = [row for row in rows if not about(msgspec.to_builtins(row))]
            still = {row.origin for row in kept[name]}
            gone |= {row.origin for row in rows if row.origin not in still}
        lines = _lines(root / version.id)
        left = [line for line in lines if line.origin not in gone and not about(msgspec.to_builtins(line))]
        if gone or len(left) < len(lines) or about(msgspec.to_builtins(version)):
            renamed[version.id] = _replaced(root, version, kept, left, parent)
        elif parent != version.parent:
            _child_of(root / version.id, version, parent)
    return renamed


def _lines(folder: Path) -> list[LedgerLine]:
    return list(read_jsonl(folder / LEDGER, LedgerLine)) if (folder / LEDGER).is_file() else []


def _replaced(root: Path, version: DatasetVersion, kept: dict[str, list[Row]], left: list[LedgerLine], parent: str | None) -> str:
    """Freeze what is left, and delete the version; the new name."""
    new = ""
    if any(kept.values()):
        erased = sum(version.counts.values()) - sum(map(len, kept.values()))
        note = f"{version.note}; {counted(erased, 'row')} erased".removeprefix("; ")
        new = versions.freeze(root, kept, {**version.recipe, "erased": erased}, parent=parent, note=note).id
        ledger = Ledger()
        for line in left:
            ledger.add(line)
        if left:
            ledger.write(root / new / LEDGER)
            _child_of(root / new, msgspec.structs.replace(versions.load(root, new), fates=dict(ledger.counts())), parent)
    shutil.rmtree(root / version.id)
    return new


def _child_of(folder: Path, version: DatasetVersion, parent: str | None) -> None:
    """Write down another parent, which is no part of a version's name."""
    (folder / SEAL).unlink()
    (folder / DIGESTS).unlink(missing_ok=True)
    seal(folder)
    write_atomic(folder / SEAL, canonical(msgspec.structs.replace(version, parent=parent)))
