"""Local models in memory: each base once, whoever asks, and adapters on it, those that were asked last; knows nothing about names and where
folders come from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tunesmith.core.memory import give_back
from tunesmith.core.model_ref import ModelRef
from tunesmith.models.base import Batching
from tunesmith.models.local import LocalModel

ADAPTERS = 64


class Loadable(Protocol):
    """An adapter that need not be in memory."""

    def load(self) -> LocalModel: ...


class Weights:
    """Bases in memory by their folder. With `alone` a base that is loaded takes the place of the one before: a machine that trains or
    evaluates holds one model at a time. `max_rows` answers are written at once; of adapters on demand `max_adapters` are held."""

    def __init__(self, *, alone: bool = False, max_rows: int = 64, max_adapters: int = ADAPTERS) -> None:
        self._alone, self._max_rows, self.max_adapters = alone, max_rows, max_adapters
        self._lock = threading.Lock()
        self._bases: dict[Path, LocalModel] = {}
        self._asked_last: OrderedDict[Loadable, LocalModel] = OrderedDict()
        self._order = threading.Lock()

    def model(self, name: str, base: Path, adapter: Path | None = None, ref: ModelRef | None = None) -> LocalModel:
        """The base (its folder), alone or under an adapter, as `name`; loaded now where it is not in memory. A failure leaves nothing of it
        there. Raises NotFound, UsageError."""
        return self.base(base).with_adapter(adapter, name, ref)

    def present(self, wanted: Loadable) -> LocalModel:
        """An adapter's model, loaded now where it is not held; who was not asked for longest makes room. Raises as loading does."""
        with self._order:
            if (model := self._asked_last.get(wanted)) is not None:
                self._asked_last.move_to_end(wanted)
                return model
        model, crowded = wanted.load(), False
        with self._order:
            self._asked_last[wanted] = model
            while len(self._asked_last) > self.max_adapters:
                self._asked_last.popitem(last=False)
                crowded = True
        if crowded:
            self._unload_unheld()
        return model

    def holds(self, wanted: Loadable) -> bool:
        """Whether an adapter is in memory."""
        return wanted in self._asked_last

    def _unload_unheld(self) -> None:
        """Let go of the adapters that no model has any longer, neither here nor where one answers with it."""
        for base in list(self._bases.values()):
            base.unload_unheld()

    def base(self, folder: Path) -> LocalModel:
        """The base of a folder, loaded now where it is not in memory. Raises NotFound, UsageError."""
        key = folder.resolve()
        with self._lock:  # two requests for a new base must not load it twice
            if key not in self._bases:
                if self._alone:
                    self._forget()
                self._bases[key] = LocalModel(folder, name=folder.name, max_rows=self._max_rows)
            return self._bases[key]

    def keep(self, models: Iterable[Batching]) -> None:
        """Let go of the bases of which none of the models is, and of adapters that none of them has; what answers with one still holds it
        until it has answered."""
        wanted = list(models)
        keys = {model.batch_key for model in wanted}
        with self._order:
            asked = {id(model) for model in wanted}
            for unused_adapter in [held for held in self._asked_last if id(held) not in asked]:
                del self._asked_last[unused_adapter]
        with self._lock:
            unused = [folder for folder, base in self._bases.items() if base.batch_key not in keys]
            for folder in unused:
                del self._bases[folder]
        self._unload_unheld()
        if unused:
            give_back(cycles=True)

    def forget(self) -> None:
        """Let go of every base; who asks next loads it again."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._bases:
            self._asked_last.clear()
            self._bases.clear()
            give_back(cycles=True)
