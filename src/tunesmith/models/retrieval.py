"""Models with something to look up: what MODEL?INDEX means, and the indexes that are in memory. Knows nothing about who answers.

MODEL?manuals               the model with the passages of the index `manuals`
MODEL?manuals&k=8           the eight best in place of four
MODEL?manuals&how=words     by words alone (or vectors; fused is both)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tunesmith.core.errors import NotFound, UsageError, nearest
from tunesmith.core.passages import Retrieval
from tunesmith.models.base import Encoding, Model
from tunesmith.models.catalog import Catalog
from tunesmith.models.grounded import TEMPLATE, GroundedModel
from tunesmith.models.passage_index import PassageIndex
from tunesmith.store.indexes import Indexes
from tunesmith.store.store import Store

_KEYS = ("k", "how")


def asked_with(word: str) -> tuple[str, Retrieval | None]:
    """The word of the model alone, and what it looks up. Raises UsageError for a key or a value that cannot be."""
    model, mark, query = word.rpartition("?")
    if not mark or "#" in query or "/" in query:
        return word, None
    index, *pairs = query.split("&")
    if not model or not index or "=" in index:
        raise UsageError(f"'{word}' names no {'index' if model else 'model'}", allowed="MODEL?INDEX, MODEL?INDEX&k=8&how=words")
    settings: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in _KEYS or key in settings:
            what = f"'{word}' has the key '{key}'" + (" twice" if key in settings else "")
            raise UsageError(what, allowed=", ".join(f"{name}=…" for name in _KEYS), remedy=nearest(key, _KEYS))
        settings[key] = value
    try:
        return model, msgspec.convert({"index": index, **settings}, Retrieval, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"'{word}': {error}", allowed="k from 1 to 64, how=words, vectors or fused") from error


@dataclass
class LoadedIndexes:
    """Indexes and their encoders, each read once."""

    _indexes: dict[Path, PassageIndex] = field(default_factory=dict)
    _encoders: dict[str, Encoding] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, digest: str, store: Store, catalog: Catalog) -> PassageIndex:
        """The index of a digest. Raises NotFound for one that is no longer there, StoreError for one that is damaged."""
        folder = Indexes(store.layout).folder(digest)
        if not folder.is_dir():
            remedy = "tunesmith data documents makes it again, from the same documents"
            raise NotFound("the index of passages is no longer there", where=str(folder), remedy=remedy)
        with self._lock:
            if folder not in self._indexes:
                self._indexes[folder] = PassageIndex.load(folder, lambda name: self._encoder(name, catalog))
            return self._indexes[folder]

    def encoder(self, name: str, catalog: Catalog) -> Encoding:
        """An encoder of the catalogue, or in a folder, which is its name then, wherever the command runs."""
        place = Path(name).expanduser()
        with self._lock:
            return self._encoder(str(place.resolve()) if place.is_dir() else name, catalog)

    def _encoder(self, name: str, catalog: Catalog) -> Encoding:
        from tunesmith.models.encoder import Encoder

        if name not in self._encoders:
            folder = Path(name) if Path(name).is_dir() else catalog.encoder(name)
            self._encoders[name] = Encoder(folder, name=name, digest=catalog.digest(folder))
        return self._encoders[name]

    def grounded(self, model: Model, retrieval: Retrieval, store: Store | None, catalog: Catalog) -> GroundedModel:
        """The model with what it looks up. Raises NotFound, and UsageError for what the index cannot do."""
        if store is None:
            raise UsageError(f"'{model.name}' looks passages up in '{retrieval.index}', and there is no store here")
        index = self.load(Indexes(store.layout).find(retrieval.index), store, catalog)
        how = retrieval.how or index.ways[-1]
        template = TEMPLATE if retrieval.template is None else retrieval.template
        return GroundedModel(model, index, retrieval.k, how, template, retrieval.turns)
