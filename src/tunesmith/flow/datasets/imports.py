"""Import as a stream: sources → an immutable version, without holding the rows. Knows nothing about formats, and cleans nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.progress import Progress
from tunesmith.data import version as versions
from tunesmith.data.collect import IncomingRow, Source, refuse_invalid, stream_all
from tunesmith.data.import_stream import Intake, OnIncoming, intake
from tunesmith.data.sources import files
from tunesmith.data.version import DatasetVersion
from tunesmith.flow.sources import ALL


def imported(
    root: Path,
    sources: Sequence[Source],
    recipe: Mapping[str, Any],
    *,
    max_invalid: float,
    note: str,
    on_row: OnIncoming,
    named: Callable[[str], str],
) -> tuple[DatasetVersion, Intake]:
    """The version that `version.freeze` would make of the same rows and recipe. Raises as `intake`, and then there is no version."""
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".import-", dir=root))
    work.chmod(0o755)  # mkdtemp makes it for its owner alone
    try:
        files = versions.rows_file(work, ALL), work / versions.LEDGER
        taken = intake(sources, *files, max_invalid=max_invalid, rejects=root / "rejects.jsonl", on_row=on_row, named=named)
        version = versions.described(recipe, {ALL: taken.digest}, {ALL: taken.rows}, taken.fates.items(), note=note)
        return versions.adopt(root, work, version), taken
    finally:
        shutil.rmtree(work, ignore_errors=True)


def surveyed(sources: Sequence[Source], *, max_invalid: float) -> Intake:
    """What an import would take in, counted; nothing is written. Raises as `imported`."""
    taken = Intake()
    for incoming in stream_all(sources, taken.formats):
        taken.enter(incoming)
    refuse_invalid(taken, max_invalid, None)
    return taken


def reading(sources: Sequence[Source], progress: Progress, named: Callable[[str], str]) -> OnIncoming:
    """What moves the bar of an import: how many bytes of the sources' files are read. (Of tables and archives, whole files.)"""
    local = [file for source in sources if not source.query and "://" not in source.path for file in files(source.path)]
    sizes = {named(str(file)): file.stat().st_size for file in local}
    before, total = {}, 0
    for path, size in sizes.items():
        before[path], total = total, total + size

    def on_row(incoming: IncomingRow) -> None:
        path = incoming.origin.rpartition(":")[0]
        if path in sizes:
            progress.bar("reading", before[path] + min(incoming.offset or 0, sizes[path]), total)

    return on_row
