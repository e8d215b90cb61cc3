"""Data sets that do not change: rows, splits, ledger and recipe under their own digest, with lineage and difference; knows nothing about
how rows were made.

    <root>/<digest>/version.json     written last: a folder without it is unfinished and does not count
    <root>/<digest>/<split>.parquet
    <root>/<digest>/ledger.jsonl
"""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import atomic_file
from tunesmith.core.digests import RunningDigest
from tunesmith.core.errors import DataError, NotFound, UsageError, nearest
from tunesmith.core.rows import Row, write_parquet
from tunesmith.core.seal import seal
from tunesmith.core.stored_rows import rows_of_file
from tunesmith.core.types import Record, canonical, digest
from tunesmith.data.ledger import Ledger

SEAL, LEDGER = "version.json", "ledger.jsonl"


class DatasetVersion(Record, frozen=True):
    """One immutable data set. `id`: digest of the recipe and of every split's rows, in order. `parent`: the version it came from.
    `counts`: rows by split; `fates`: input rows by fate, which add up to what came in. `created`: seconds since 1970 (not in the id)."""

    id: str
    recipe: dict[str, Any]
    counts: dict[str, int]
    digests: dict[str, str]
    parent: str | None = None
    fates: dict[str, int] = {}
    note: str = ""
    created: float = 0.0


@dataclass(frozen=True)
class ChangedRow:
    """One row of a difference: where it came from, and its content before and after (None: not there)."""

    origin: str
    before: Row | None
    after: Row | None


@dataclass(frozen=True)
class VersionDifference:
    """Rows that only the newer version has, that only the older one has, those whose content changed under the same origin, and those
    that moved to another split (origin, old, new)."""

    added: list[ChangedRow]
    removed: list[ChangedRow]
    changed: list[ChangedRow]
    moved: list[tuple[str, str, str]]


def freeze(
    root: str | Path,
    splits: Mapping[str, Sequence[Row]],
    recipe: Mapping[str, Any],
    *,
    ledger: Ledger | None = None,
    parent: str | None = None,
    note: str = "",
) -> DatasetVersion:
    """Keep a data set; the same rows and recipe give the same version, which is then left as it is.

    Raises DataError when the ledger's survivors are not the rows of the splits, NotFound for an unknown parent.
    """
    root = Path(root)
    if ledger is not None:
        ledger.check(len(ledger), sum(map(len, splits.values())))
    if parent is not None:
        parent = load(root, parent).id
    version = described(
        recipe,
        {name: digest_of(rows) for name, rows in splits.items()},
        {name: len(rows) for name, rows in splits.items()},
        ledger.counts().items() if ledger is not None else (),
        parent=parent,
        note=note,
    )
    folder = root / version.id
    if (folder / SEAL).exists():
        return load(root, version.id)
    for name, rows in splits.items():
        write_parquet(rows_file(folder, name), rows)
    if ledger is not None:
        ledger.write(folder / LEDGER)
    return _sealed(folder, version)


def described(
    recipe: Mapping[str, Any],
    digests: dict[str, str],
    counts: dict[str, int],
    fates: Iterable[tuple[str, int]],
    *,
    parent: str | None = None,
    note: str = "",
) -> DatasetVersion:
    """The record of a version whose id follows from the recipe and the digests of its rows."""
    return DatasetVersion(
        id=digest(dict(recipe), digests, size=12),
        recipe=msgspec.to_builtins(dict(recipe)),
        counts=counts,
        digests=digests,
        parent=parent,
        fates=dict(fates),
        note=note,
        created=time.time(),
    )


def adopt(root: Path, filled: Path, version: DatasetVersion) -> DatasetVersion:
    """Make the folder `filled`, which holds a version's rows and ledger and lies under `root`, that version. One that is there already is
    left as it is, and so is the folder."""
    folder = root / version.id
    if (folder / SEAL).exists():
        return load(root, version.id)
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted import left: without its seal it does not count
    _sealed(filled, version)
    try:
        filled.rename(folder)
    except OSError:
        if (folder / SEAL).exists():  # another process was faster with the same rows
            return load(root, version.id)
        raise
    return version


def rows_file(folder: Path, split: str) -> Path:
    """Where the rows of a split lie in a version's folder."""
    return folder / f"{split}.parquet"


def _sealed(folder: Path, version: DatasetVersion) -> DatasetVersion:
    seal(folder)
    with atomic_file(folder / SEAL) as stream:
        stream.write(canonical(version))
    return version


def digest_of(rows: Iterable[Row]) -> str:
    """Hex digest of rows in their order, with all their fields."""
    total = RunningDigest()
    for row in rows:
        total.add(row)
    return total.hexdigest()


def load(root: str | Path, name: str) -> DatasetVersion:
    """The version of that id, or of the only id that begins with `name`. Raises NotFound, or UsageError when several do."""
    known = {version.id: version for version in log(root)}
    fits = [identity for identity in known if identity.startswith(name)] if name else []
    if len(fits) > 1 and name not in known:
        raise UsageError(f"'{name}' is the beginning of {len(fits)} versions", allowed=", ".join(fits[:5]))
    if not fits:
        raise NotFound(f"no data version '{name}'", where=str(root), remedy=nearest(name, known) or "tunesmith data log lists them")
    return known[name if name in known else fits[0]]


def log(root: str | Path) -> list[DatasetVersion]:
    """All finished versions, newest first."""
    versions = []
    for path in Path(root).glob(f"*/{SEAL}"):
        try:
            versions.append(msgspec.json.decode(path.read_bytes(), type=DatasetVersion))
        except msgspec.DecodeError as error:
            raise DataError(f"this version is damaged: {error}", where=str(path), remedy="remove its folder and make it again") from error
    return sorted(versions, key=lambda version: (-version.created, version.id))


def rows_of(root: str | Path, version: DatasetVersion, split: str) -> Sequence[Row]:
    """The rows of one split, verified against the version's digest. Raises NotFound, or DataError when they are not what was frozen."""
    if split not in version.counts:
        raise NotFound(
            f"version {version.id} has no split '{split}'", allowed=", ".join(version.counts), remedy=nearest(split, version.counts)
        )
    return rows_in(Path(root) / version.id, version, split)


def rows_in(folder: Path, version: DatasetVersion, split: str) -> Sequence[Row]:
    """The rows of one split in the version's folder, verified where the version has their digest. Raises as `rows_of`."""
    path = rows_file(folder, split)
    rows = rows_of_file(path)
    if split in version.digests and digest_of(rows) != version.digests[split]:
        raise DataError("the rows are not those that were frozen", where=str(path), remedy="restore the file, or make the version again")
    return rows


def lineage(root: str | Path, name: str) -> list[DatasetVersion]:
    """The version and its parents, youngest first."""
    versions = [load(root, name)]
    while (parent := versions[-1].parent) is not None:
        versions.append(load(root, parent))
    return versions


def diff(old: Mapping[str, Sequence[Row]], new: Mapping[str, Sequence[Row]]) -> VersionDifference:
    """What changed between two data sets (split → rows). Rows are the same by their content, wherever in a file they stand; of those that
    are not, one that has the same origin as before was changed."""
    before = [(split, row) for split, rows in old.items() for row in rows]
    after = [(split, row) for split, rows in new.items() for row in rows]
    pairs, gone, fresh = _paired(before, after)
    origins: dict[str, list[Row]] = defaultdict(list)
    for row in fresh:
        origins[row.origin].append(row)
    changed, removed = [], []
    for row in gone:
        if origins.get(row.origin):
            changed.append(ChangedRow(row.origin, row, origins[row.origin].pop(0)))
        else:
            removed.append(ChangedRow(row.origin, row, None))
    added = [ChangedRow(row.origin, None, row) for rows in origins.values() for row in rows]
    moved = [(row.origin, was, now) for row, was, now in pairs if was != now]
    return VersionDifference(added, removed, changed, moved)


def _paired(before: list[tuple[str, Row]], after: list[tuple[str, Row]]) -> tuple[list[tuple[Row, str, str]], list[Row], list[Row]]:
    """Rows of equal content as (new row, old split, new split), and the rows of each side that have no such other. Of several equal rows
    those in the same split belong together first."""
    left: dict[bytes, list[tuple[str, Row]]] = defaultdict(list)
    for split, row in before:
        left[_content(row)].append((split, row))
    pairs, alone = [], []
    for split, row in sorted(after, key=lambda named: not any(was == named[0] for was, _ in left.get(_content(named[1]), ()))):
        equal = left.get(_content(row), [])
        if not equal:
            alone.append((split, row))
            continue
        best = next((i for i, (was, _) in enumerate(equal) if was == split), 0)
        pairs.append((row, equal.pop(best)[0], split))
    fresh = {id(row) for _, row in alone}
    gone = {id(row) for several in left.values() for _, row in several}
    return pairs, [row for _, row in before if id(row) in gone], [row for _, row in after if id(row) in fresh]


def _content(row: Row) -> bytes:
    """All that a row is but for where it came from."""
    return canonical(msgspec.structs.replace(row, origin=""))
