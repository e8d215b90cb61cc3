"""Local models in memory: each base once, whoever asks, and adapters on it; knows nothing about names and where folders come from."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from tunesmith.core.memory import give_back
from tunesmith.core.model_ref import ModelRef
from tunesmith.models.base import Batching
from tunesmith.models.local import LocalModel


class Weights:
    """Bases in memory by their folder. With `alone` a base that is loaded takes the place of the one before: a machine that trains or
    evaluates holds one model at a time. `max_rows` answers are written at once."""

    def __init__(self, *, alone: bool = False, max_rows: int = 64) -> None:
        self._alone, self._max_rows = alone, max_rows
        self._lock = threading.Lock()
        self._bases: dict[Path, LocalModel] = {}

    def model(self, name: str, base: Path, adapter: Path | None = None, ref: ModelRef | None = None) -> LocalModel:
        """The base (its folder), alone or under an adapter, as `name`; loaded now where it is not in memory. A failure leaves nothing of it
        there. Raises NotFound, UsageError."""
        return self._base(base).with_adapter(adapter, name, ref)

    def _base(self, folder: Path) -> LocalModel:
        key = folder.resolve()
        with self._lock:  # two requests for a new base must not load it twice
            if key not in self._bases:
                if self._alone:
                    self._forget()
                self._bases[key] = LocalModel(folder, name=folder.name, max_rows=self._max_rows)
            return self._bases[key]

    def keep(self, models: Iterable[Batching]) -> None:
        """Let go of the bases of which none of the models is; what answers with one still holds it until it has answered."""
        keys = {model.batch_key for model in models}
        with self._lock:
            unused = [folder for folder, base in self._bases.items() if base.batch_key not in keys]
            for folder in unused:
                del self._bases[folder]
        if unused:
            give_back(cycles=True)

    def forget(self) -> None:
        """Let go of every base; who asks next loads it again."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._bases:
            self._bases.clear()
            give_back(cycles=True)
