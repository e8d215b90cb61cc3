"""Local models loaded once, whoever asks first: bases by folder, and adapters on them by name; knows nothing about who may use them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from tunesmith.models.base import Model
from tunesmith.models.local import LocalModel

Find = Callable[[str], Path]


class Bases:
    """Bases in memory. `find` gives the folder of a base's name; `loaded` are models that are in memory already."""

    def __init__(self, find: Find, loaded: Iterable[Model] = ()) -> None:
        self._find, self._lock = find, threading.Lock()
        self._bases = {str(model.base.resolve()): model for model in loaded if isinstance(model, LocalModel)}
        self._tuned: dict[tuple[str, str], LocalModel] = {}

    def base(self, name: str) -> LocalModel:
        """The base of that name (a catalogue name or a folder), loaded now when it is new. Raises NotFound, SourceUnavailable."""
        folder = self._find(name)
        return self._load(folder, name)

    def tuned(self, name: str, base: str, folder: Path) -> LocalModel:
        """What a job made: an adapter on its base, or a whole model. Raises NotFound when the folder is gone."""
        key = (name, str(folder))
        if key not in self._tuned:
            whole = (folder / "config.json").is_file()
            model = self._load(folder, name) if whole else self.base(base).with_adapter(folder, name)
            _ = model.digest  # reads the weights: here, in the caller's thread
            self._tuned[key] = model
        return self._tuned[key]

    def forget(self, name: str) -> None:
        """Do not keep a tuned model any longer."""
        for key in [key for key in self._tuned if key[0] == name]:
            del self._tuned[key]

    def _load(self, folder: Path, name: str) -> LocalModel:
        key = str(folder.resolve())
        with self._lock:  # two requests for a new base must not load it twice
            if key not in self._bases:
                model = LocalModel(folder, name=name)
                _ = model.digest
                self._bases[key] = model
            return self._bases[key].with_adapter(None, name)
