"""Import as a stream: sources → an immutable version, without holding the rows. Knows nothing about formats, and cleans nothing."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.progress import Progress
from tunesmith.core.rows import atomic
from tunesmith.core.types import canonical, digest
from tunesmith.data import version as versions
from tunesmith.data.collect import Incoming, Source
from tunesmith.data.intake import Intake, Told, intake
from tunesmith.data.sources import files
from tunesmith.data.version import DatasetVersion

ALL = "all"  # the name of the one split that an import makes


def imported(
    root: Path, sources: Sequence[Source], recipe: Mapping[str, Any], *, max_invalid: float, note: str, told: Told
) -> tuple[DatasetVersion, Intake]:
    """The version that `version.freeze` would make of the same rows and recipe. Raises as `intake`, and then there is no version."""
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".import-", dir=root))
    try:
        found = intake(
            sources, work / f"{ALL}.parquet", work / "ledger.jsonl", max_invalid=max_invalid, rejects=root / "rejects.jsonl", told=told
        )
        identity = digest(dict(recipe), {ALL: found.digest}, size=12)
        folder = root / identity
        if (folder / "version.json").exists():
            return versions.load(root, identity), found
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted import left: without version.json it does not count
        work.chmod(0o755)  # mkdtemp makes it for its owner alone
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    version = DatasetVersion(
        id=identity,
        recipe=msgspec.to_builtins(dict(recipe)),
        counts={ALL: found.rows},
        digests={ALL: found.digest},
        fates={str(fate): n for fate, n in found.fates.items()},
        note=note,
        created=time.time(),
    )
    with atomic(folder / "version.json") as stream:
        stream.write(canonical(version))
    return version, found


def reading(sources: Sequence[Source], progress: Progress) -> Told:
    """What moves the bar of an import: how many bytes of the sources' files are read. (Of tables and archives, whole files.)"""
    sizes = {
        str(file): file.stat().st_size for source in sources if not source.query and "://" not in source.path for file in files(source.path)
    }
    before, total = {}, 0
    for path, size in sizes.items():
        before[path], total = total, total + size

    def told(incoming: Incoming) -> None:
        path = incoming.origin.rpartition(":")[0]
        if path in sizes:
            progress.bar("reading", before[path] + min(incoming.offset or 0, sizes[path]), total)

    return told
