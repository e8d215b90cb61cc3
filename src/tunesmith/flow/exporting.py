"""A model of the project written out for other programs: resolves the word, gathers what the store knows of it, and hands both to the
target. Knows nothing about formats."""

from __future__ import annotations

from pathlib import Path

from tunesmith.core.errors import StoreError
from tunesmith.core.model_ref import ModelRef
from tunesmith.deploy.export.card import CardFacts, CardMetric
from tunesmith.deploy.export.model_files import ModelFiles
from tunesmith.deploy.export.targets import export as write
from tunesmith.deploy.export.targets import free, known
from tunesmith.evaluate.run import load_evaluation
from tunesmith.flow.evaluation.results import KeptEvaluation, kept_evaluations
from tunesmith.flow.evaluation.run import Bench
from tunesmith.flow.exported_files import model_files
from tunesmith.flow.trace import lineage_of

_UNRECORDED = ("unknown", "base")


def export(word: str, target: str, out: Path, at: Bench) -> list[str]:
    """Write the model that the word names to the folder `out` as the target takes it; returns the files.

    Raises UsageError for an unknown target, a folder that is there, a model without weights here, or one that the target cannot hold.
    """
    known(target)
    free(out)
    ref = at.models.ref(word)
    files = model_files(word, ref, at)
    return write(target, files, card_facts(word, ref, files, at), out)


def card_facts(word: str, ref: ModelRef, files: ModelFiles, at: Bench) -> CardFacts:
    """What the store and the catalogue know of a model. Its digest is the one that was remembered when it answered; it is not loaded."""
    entry = at.models.catalog.listing.models.get(ref.base)
    remembered = ref.digest or at.models.lazy(ref, word).remembered_digest or ""
    links = [link for link in lineage_of(at.store, ref) if link.kind not in _UNRECORDED]
    return CardFacts(
        name=files.name,
        base=files.base_name if not files.base_name.startswith("/") else files.base.name,
        base_digest=at.models.catalog.digest(files.base),
        license=entry.license if entry is not None else "",
        digest=remembered,
        lineage=tuple((link.kind, link.id, link.text) for link in links),
        measured=tuple(_measured(remembered, at)),
    )


def _measured(model_digest: str, at: Bench) -> list[CardMetric]:
    """Every kept number of these very weights, the newest evaluation of the same rows only."""
    if not model_digest:
        return []
    newest: dict[tuple[str, str], CardMetric] = {}
    for evaluation in kept_evaluations(at.folder):
        if not _is_of(evaluation, model_digest, at.folder):
            continue
        for name in evaluation.metrics:
            value = evaluation.values[name]
            if value is not None:
                line = CardMetric(data=evaluation.data, rows=evaluation.rows, metric=name, value=value, interval=evaluation.intervals[name])
                newest.setdefault((evaluation.dataset_digest, name), line)
    return list(newest.values())


def _is_of(evaluation: KeptEvaluation, model_digest: str, folder: Path) -> bool:
    """Whether an evaluation is one of these weights."""
    places = [folder / evaluation.id / f"seed-{seed}" for seed in evaluation.seeds] or [folder / evaluation.id]
    try:
        return load_evaluation(places[0]).model_digest == model_digest
    except StoreError:
        return False
