"""Which folders a model is made of, and what others call its base; knows nothing about formats, and nothing about where it came from."""

from __future__ import annotations

from pathlib import Path

from tunesmith.core.model_ref import ModelRef
from tunesmith.deploy.export.model_files import ModelFiles
from tunesmith.flow.evaluation.run import Bench
from tunesmith.models.catalog import Catalog, HubSource


def model_files(word: str, ref: ModelRef, at: Bench) -> ModelFiles:
    """The folders of a model; a base that is not there yet is fetched. A name for clients is the word, or the last part of a folder."""
    base, adapter = at.models.folders(ref)
    name = Path(word).name if word.startswith((".", "/", "~")) or Path(word).is_dir() else word
    return ModelFiles(name=name, base=base, adapter=adapter, base_name=public_name(ref, base, at.models.catalog))


def public_name(ref: ModelRef, base: Path, catalog: Catalog) -> str:
    """What others load the base by: its id on the hub, where it has one, else its folder here."""
    if ref.weights is not None or ref.base.startswith((".", "/")):
        return str(base)
    entry = catalog.listing.models.get(ref.base)
    if entry is None:
        return ref.base if catalog.is_repository(ref.base) else str(base)
    hubs = [source.hub for source in entry.resolved() if isinstance(source, HubSource)]
    return hubs[0] if hubs else str(base)
