"""Cleaning and splitting as they are done everywhere: by the stages of a run, by `data clean` and `data split`. Knows nothing about where
the result is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import msgspec

from tunesmith.core.progress import Progress, Silent
from tunesmith.core.rows import Row
from tunesmith.data.clean import Clean, Cleaned, clean
from tunesmith.data.dedup import Ints
from tunesmith.data.fingerprints import Fingerprints
from tunesmith.data.ledger import Ledger
from tunesmith.data.semantic import SemanticLeakage
from tunesmith.data.set_rules import NearDuplicates, near_clusters
from tunesmith.data.split import Split, Splits, leakages, split
from tunesmith.flow.datasets.leaks import meaning
from tunesmith.flow.datasets.vectors import embed
from tunesmith.models.catalog import Catalog


def cleaned_rows(
    rows: Sequence[Row],
    ledger: Ledger,
    settings: Clean,
    catalog: Catalog,
    *,
    evaluation: Sequence[Row] = (),
    progress: Progress | None = None,
) -> Cleaned:
    """The rows that the section `clean` leaves; every change is marked in the ledger. Raises as `data.clean.clean`."""
    encoder = partial(embed, catalog=catalog, encoder=settings.semantic_duplicates.encoder)
    return clean(rows, settings, ledger, evaluation=evaluation, encoder=encoder, progress=progress)


def divided_rows(
    rows: Sequence[Row],
    clusters: Ints,
    settings: Split,
    catalog: Catalog,
    *,
    prints: Fingerprints | None = None,
    progress: Progress | None = None,
) -> Splits:
    """The rows divided by the section `split`, the leakage of the parts measured in words and in meaning. Raises as `data.split.split`."""
    parts = split(rows, settings, clusters, prints)
    return replace(parts, meaning=meaning(parts, settings.semantic, catalog, progress or Silent()))


def salted(settings: Split, parts: Sequence[str | None]) -> Split:
    """The section for rows that were parts of a split before: the same salt would give each of them the side that it came from, and leave
    the train part without held-out rows."""
    named = [part for part in parts if part is not None]
    return msgspec.structs.replace(settings, salt=":".join([settings.salt, *named])) if named else settings


def clusters_of(rows: Sequence[Row], settings: NearDuplicates) -> Ints:
    """The cluster of each row, as cleaning finds it."""
    return near_clusters(rows, settings)[1]


def given_parts(
    train: Sequence[Row], validation: Sequence[Row], test: Sequence[Row], name: str, settings: SemanticLeakage, catalog: Catalog
) -> Splits:
    """Parts that were divided before, measured again: they are used as they are."""
    note = f"the parts are those of version {name}; clean and split of this project do not apply"
    leakage = leakages(train, {"validation": validation, "test": test})
    parts = Splits(train, validation, test, leakage, (note,))
    return replace(parts, meaning=meaning(parts, settings, catalog))
