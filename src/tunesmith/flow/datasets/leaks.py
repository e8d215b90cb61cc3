"""Whether held-out rows say the same as training rows in other words: the data room's measure and gate with an encoder of the catalogue.
Knows nothing about how rows were divided."""

from __future__ import annotations

from functools import partial

import msgspec

from tunesmith.core.progress import Progress
from tunesmith.data.semantic import Overlap, SemanticLeakage, gate_overlap, overlaps
from tunesmith.data.split import Splits
from tunesmith.flow.datasets.vectors import at_hand, embed, rough
from tunesmith.models.catalog import Catalog


def meaning(parts: Splits, settings: SemanticLeakage, catalog: Catalog, progress: Progress | None = None) -> dict[str, Overlap]:
    """The semantic overlap of validation and test with train; where it was not measured, why.

    Raises GateRefused above the limit, and SourceUnavailable when the encoder is required and cannot be had.
    """
    held_out = {name: rows for name, rows in (("validation", parts.validation), ("test", parts.test)) if rows}
    why = "split.semantic.action is off" if settings.action == "off" else ""
    if settings.action == "auto" and (missing := at_hand(catalog, settings.encoder)):
        why = f"{missing}; --split.semantic.action require fetches it"
    if why:
        return {name: Overlap(looked_at=0, found=0, threshold=settings.threshold, why=why) for name in held_out}
    if progress is not None:
        progress.say("looking for held-out rows that say the same as training rows in other words")
    vectors = [partial(how, catalog=catalog, encoder=settings.encoder) for how in (rough, embed)]
    measured = overlaps(parts.train, held_out, settings, vectors[0], vectors[1])
    for name, overlap in measured.items():
        gate_overlap(overlap, settings, name)
    return measured


def lines_of(measured: dict[str, Overlap]) -> list[str]:
    """One line a part, for people."""
    return [
        f"{name}: not measured in meaning: {part.why}"
        if part.why
        else f"{name}: {part.found} of {part.looked_at} rows say the same as a training row in other words (cosine ≥ {part.threshold})"
        for name, part in measured.items()
    ]


def as_plain(measured: dict[str, Overlap]) -> dict[str, dict[str, object]]:
    """The same as plain objects with the share."""
    return {name: {**msgspec.to_builtins(overlap), "share": overlap.share} for name, overlap in measured.items()}
