"""Where a project's rows come from and where its stages keep them: sources with real paths, the hash of their content, the rows of a part.
Knows nothing about how rows are read or cleaned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tunesmith.core.row_kinds import only
from tunesmith.core.rows import Row, read_parquet
from tunesmith.core.types import Example
from tunesmith.data.collect import Source
from tunesmith.data.sources import files
from tunesmith.models.catalog import Catalog

PARTS = ("train", "validation", "test")


def located(sources: Sequence[Source], folder: Path, catalog: Catalog) -> list[Source]:
    """The sources with real paths: `catalog:NAME` fetched, relative ones taken from the project's folder."""
    found = []
    for source in sources:
        if source.path.startswith("catalog:"):
            path = str(catalog.dataset(source.path.removeprefix("catalog:")))
        else:
            path = source.path if "://" in source.path else str(folder / Path(source.path).expanduser())
        found.append(msgspec.structs.replace(source, path=path))
    return found


def content(sources: Sequence[Source]) -> list[str]:
    """What names the content of the sources: a hash of every file, so that a changed file is a changed input."""
    hashes = []
    for source in sources:
        for path in files(source.path):
            with open(path, "rb") as file:
                hashes.append(hashlib.file_digest(file, "blake2b").hexdigest()[:32])
    return hashes


def rows(folder: Path, part: str) -> list[Row]:
    """The rows of one part, of whatever kind they are."""
    return list(read_parquet(folder / f"{part}.parquet"))


def examples(folder: Path, part: str) -> list[Example]:
    """The rows of one part. Raises DataError naming the method that fits when they are no examples."""
    return only(rows(folder, part), Example, "train.method")
