"""The data stages of a project: rows → clean rows → split, with the ledger of what happened. Knows nothing about tokens or weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError
from tunesmith.core.rows import Row, write_jsonl, write_parquet
from tunesmith.core.stored_rows import StoredRows, chained
from tunesmith.data.import_stream import Intake, intake
from tunesmith.data.ledger import Ledger
from tunesmith.data.summary import summary as summary_of
from tunesmith.flow.clusters import write_clusters
from tunesmith.flow.datasets.leaks import as_plain
from tunesmith.flow.datasets.prepared import cleaned_rows, clusters_of, divided_rows, given_parts, salted
from tunesmith.flow.runner import Output
from tunesmith.flow.sources import PARTS, relative_to

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext


def collect(context: ProjectContext, work: Path) -> Output:
    """Every row of the sources with the ledger of what came in; of a version its rows and its ledger. Rows with faults lie in the store's
    own folder, since a stage that fails leaves no folder to look into."""
    versions = [place.frozen for place in context.places if place.frozen is not None]
    files = [place.source for place in context.places if place.frozen is None]
    target, taken = (work / "rows.parquet", work / "ledger.jsonl"), Intake()
    own = (work / "files.parquet", work / "files.jsonl") if versions else target
    if files:
        taken = intake(
            files,
            *own,
            max_invalid=context.project.max_invalid,
            rejects=context.store.layout.rejects,
            named=relative_to(context.folder),
        )
    summary = {"inputs": taken.inputs, "invalid": taken.invalid, "rows": taken.rows, "formats": sorted(set(taken.formats.values()))}
    if not versions:
        return summary
    parts: list[Sequence[Row]] = [StoredRows(own[0])] if files else []
    parts += [frozen.rows(part) for frozen in versions for part in frozen.parts]
    lines = [Ledger.read(own[1])] if files else []
    lines += [frozen.ledger() for frozen in versions]
    written = write_parquet(target[0], chain.from_iterable(parts))
    inputs = write_jsonl(target[1], chain.from_iterable(lines))
    for path in own:
        path.unlink(missing_ok=True)
    return {**summary, "inputs": inputs, "rows": written, "versions": [frozen.name for frozen in versions]}


def clean_and_split(context: ProjectContext, work: Path) -> Output:
    """Clean the rows and divide them, unless they are a version that is split already; writes one Parquet file a part, clusters.json and
    the ledger of both."""
    folder, project, catalog = context.data.folder("collect"), context.project, context.catalog
    ledger, given = Ledger.read(folder / "ledger.jsonl"), context.given_split
    if given is None:
        cleaned = cleaned_rows(StoredRows(folder / "rows.parquet"), ledger, project.clean, catalog)
        rows, clusters = cleaned.rows, cleaned.clusters
        again = [place.frozen.part for place in context.places if place.frozen is not None]
        parts = divided_rows(rows, clusters, salted(project.split, again), catalog, prints=cleaned.prints)
    else:
        train, validation, test = (given.rows(part) for part in PARTS)
        rows = chained([train, validation, test])
        clusters = clusters_of(rows, project.clean.near_duplicates)
        parts = given_parts(train, validation, test, given.name, project.split.semantic, catalog)
        context.progress.say(parts.notes[0])
    for name in PARTS:
        write_parquet(work / f"{name}.parquet", getattr(parts, name))
        if not getattr(parts, name):
            raise DataError(
                f"the split leaves no {name} rows ({counted(len(rows), 'row')} in all)",
                where="split",
                remedy="add rows, or change the shares; a data set of a few dozen rows cannot be split three ways",
            )
    write_clusters(work, ((row.id, int(cluster)) for row, cluster in zip(rows, clusters, strict=True)))
    ledger.write(work / "ledger.jsonl")
    summary = {**summary_of(rows, ledger=ledger, clusters=clusters, splits=parts), "meaning": as_plain(parts.meaning)}
    return summary if given is None else {**summary, "version": given.version.id}
