"""The data stages of the circle: sources → rows → clean rows → split → token ids and loss masks, each with the ledger of what happened.
Knows nothing about weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import DataError
from tunesmith.core.rows import read_parquet, write_jsonl, write_parquet
from tunesmith.core.stored_rows import StoredRows
from tunesmith.core.types import Example
from tunesmith.data.import_stream import Intake, intake
from tunesmith.data.ledger import Ledger
from tunesmith.data.summary import summary as summary_of
from tunesmith.flow.datasets.leaks import as_plain
from tunesmith.flow.datasets.prepared import cleaned_rows, clusters_of, divided_rows, given_parts, salted
from tunesmith.flow.runner import Output
from tunesmith.flow.sources import PARTS, examples, relative_to
from tunesmith.train.plan import Plan

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
            rejects=context.store.folder / "rejects.jsonl",
            named=relative_to(context.folder),
        )
    summary = {"inputs": taken.inputs, "invalid": taken.invalid, "rows": taken.rows, "formats": sorted(set(taken.formats.values()))}
    if not versions:
        return summary
    kept = [list(read_parquet(own[0]))] if files else []
    kept += [frozen.rows(part) for frozen in versions for part in frozen.parts]
    lines = [Ledger.read(own[1])] if files else []
    lines += [frozen.ledger() for frozen in versions]
    written = write_parquet(target[0], chain.from_iterable(kept))
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
        rows = [*train, *validation, *test]
        clusters = clusters_of(rows, project.clean.near_duplicates)
        parts = given_parts(train, validation, test, given.name, project.split.semantic, catalog)
        context.progress.say(parts.notes[0])
    for name in PARTS:
        write_parquet(work / f"{name}.parquet", getattr(parts, name))
        if not getattr(parts, name):
            raise DataError(
                f"the split leaves no {name} rows ({len(rows)} rows in all)",
                where="split",
                remedy="add rows, or change the shares; a data set of a few dozen rows cannot be split three ways",
            )
    numbers = {row.id: int(cluster) for row, cluster in zip(rows, clusters, strict=True)}
    (work / "clusters.json").write_bytes(msgspec.json.encode(numbers))
    ledger.write(work / "ledger.jsonl")
    told = {**summary_of(rows, ledger=ledger, clusters=clusters, splits=parts), "meaning": as_plain(parts.meaning)}
    return told if given is None else {**told, "version": given.version.id}


def tokenize(split_folder: Path, base: Path, plan: Plan, work: Path) -> dict[str, Any]:
    """Render train and validation rows by the base's template: the mask gate. Rows over `max_length` are dropped or cut, in the ledger.

    Raises DataError when nothing is left to train.
    """
    renderer = Renderer.load(base)
    ledger = Ledger.read(split_folder / "ledger.jsonl")
    facts: dict[str, Any] = {"template": renderer.digest}
    for part in ("train", "validation"):
        rows = examples(split_folder, part)
        rendered = renderer.examples(rows)
        kept = _fitting(rendered, rows, plan, ledger)
        if part == "train" and plan.method != "grpo" and not any(row.trained for row in kept):
            shortest = min((len(row.ids) for row in rendered if row.trained), default=None)
            mend = "rows need an assistant turn whose weight is not 0"
            if shortest is not None:
                mend = f"max_length is {plan.max_length}, and the shortest of {len(rows)} rows has {shortest} tokens"
            raise DataError("no token of any row would be trained", where="mask gate", remedy=mend)
        save_rendered(work / f"{part}.npz", kept)
        lengths = [len(row.ids) for row in kept]
        facts[part] = {
            "rows": len(kept),
            "tokens": sum(lengths),
            "trained": sum(row.trained for row in kept),
            "longest": max(lengths, default=0),
        }
        if part == "train":
            facts["lengths"] = lengths
            facts["shared_prefix"] = _shared_prefix(kept)
            facts["longest_answer"] = max(row.trained for row in kept)
            shown = min(kept, key=lambda row: abs(len(row.ids) - int(np.median(lengths))))
            facts["shown"] = [renderer.pieces(shown.ids.tolist()), shown.mask.tolist()]
    ledger.write(work / "ledger.jsonl")
    return facts


def _fitting(rendered: Sequence[Rendered], rows: Sequence[Example], plan: Plan, ledger: Ledger) -> list[Rendered]:
    if plan.max_length == "auto":
        return list(rendered)
    kept = []
    for row, example in zip(rendered, rows, strict=True):
        if len(row.ids) <= plan.max_length:
            kept.append(row)
            continue
        short, reason = row.limited(plan.max_length), f"{len(row.ids)} tokens, max_length {plan.max_length}"
        if plan.over_length == "truncate" and short.trained:
            ledger.mark(example.origin, "truncated", "max_length", f"{reason}: {short.cut} tokens cut")
            kept.append(short)
        else:
            why = reason if plan.over_length == "drop" else f"{reason}: nothing trained would be left"
            ledger.mark(example.origin, "dropped", "max_length", why)
    return kept


def _shared_prefix(rows: Sequence[Rendered]) -> int:
    """How many leading tokens all rows share (a common system prompt); training computes them once a batch."""
    if not rows:
        return 0
    first, shared = rows[0].ids, len(rows[0].ids)
    for row in rows[1:]:
        length = min(shared, len(row.ids))
        differ = np.flatnonzero(first[:length] != row.ids[:length])
        shared = int(differ[0]) if differ.size else length
    return shared


def save_rendered(path: Path, rows: Sequence[Rendered]) -> None:
    """Rendered rows as one file of flat arrays (no pickle)."""
    np.savez(
        path,
        ids=np.concatenate([row.ids for row in rows]) if rows else np.zeros(0, np.int32),
        mask=np.concatenate([row.mask for row in rows]) if rows else np.zeros(0, np.uint8),
        lengths=np.array([len(row.ids) for row in rows], dtype=np.int64),
        cut=np.array([row.cut for row in rows], dtype=np.int64),
        names=np.array([row.example_id for row in rows], dtype=np.str_),
    )


def load_rendered(path: Path) -> list[Rendered]:
    """The rows that `save_rendered` wrote."""
    with np.load(path, allow_pickle=False) as kept:
        ends = np.cumsum(kept["lengths"])
        ids, mask, cut, names = kept["ids"], kept["mask"], kept["cut"], kept["names"]
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    return [
        Rendered(str(names[i]), ids[start:end], mask[start:end], int(cut[i]))
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]
