"""What a URL or a query gave, kept in a folder, so that it can be read again as it was; knows nothing about rows.

<folder>/source.manifest    written last: what it is called, when it was read, the digest of all bytes, the files with their names
<folder>/…                  the files as they came; of a query its rows as JSONL
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import atomic_folder, write_atomic
from tunesmith.core.errors import DataError
from tunesmith.core.rows import write_jsonl
from tunesmith.core.seal import seal
from tunesmith.core.types import Record
from tunesmith.data.sources import MANIFEST, SourceItem, download, public_name, read_items


class FetchedManifest(Record, frozen=True):
    """What was read: its name without secrets, seconds since 1970, a digest of all bytes, and file → the name its rows are known by."""

    url: str
    read: float
    digest: str
    files: dict[str, str]


def fetch(path: str, query: str, folder: Path) -> FetchedManifest:
    """Read the URL (or the query's rows) into `folder`, which is there whole or as it was. Raises as `sources.read_items`."""
    with atomic_folder(folder) as work:
        if query:
            ((name, items),) = read_items(path, query)
            write_jsonl(work / "rows.jsonl", (_row(item) for item in items))
            named = {"rows.jsonl": name}
        else:
            named = {file.name: shown for shown, file in download(path, work)}
            name = public_name(path)
        return _sealed(work, name, named)


def keep_rows(name: str, rows: Iterable[dict[str, Any]], folder: Path) -> FetchedManifest:
    """Keep rows that came from elsewhere under a name, as JSONL; the folder is there whole or as it was. Raises DataError for no rows:
    kept, they would hide those that come later."""
    with atomic_folder(folder) as work:
        if not write_jsonl(work / "rows.jsonl", rows):
            raise DataError("there are no rows in it", where=name, remedy="tunesmith monitor status tells what was asked")
        return _sealed(work, name, {"rows.jsonl": name})


def _sealed(work: Path, name: str, named: dict[str, str]) -> FetchedManifest:
    manifest = FetchedManifest(url=name, read=time.time(), digest=_digest(work, named), files=named)
    write_atomic(work / MANIFEST, msgspec.json.encode(manifest))
    seal(work)
    return manifest


def _row(item: SourceItem) -> dict[str, Any]:
    if not isinstance(item.data, dict):
        raise DataError("the query gave something else than rows", remedy="select columns by name")
    return item.data


def _digest(folder: Path, names: dict[str, str]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for name in names:
        with (folder / name).open("rb") as file:
            total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()


def manifest_of(folder: Path) -> FetchedManifest | None:
    """What was kept in the folder; None where it is no such folder. Raises DataError when it is damaged."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=FetchedManifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise DataError(f"what was read is damaged: {error}", where=str(folder), remedy="tunesmith data fetch") from error
