"""Which model answers to which name; knows nothing about how models answer."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tunesmith.core.errors import NotFound, nearest
from tunesmith.models.base import Model


class Router:
    """Names that clients ask for (aliases) → the models that answer to them (variants). Changes take effect with the next request."""

    def __init__(self, models: Mapping[str, Model] | None = None) -> None:
        self._models: dict[str, tuple[Model, float]] = {}
        for alias, model in (models or {}).items():
            self.put(alias, model)

    def put(self, alias: str, model: Model) -> None:
        """Let `model` answer to `alias` from now on. Its digest is computed here, since that reads the weights."""
        _ = model.digest
        self._models = {**self._models, alias: (model, time.time())}  # replaced whole: readers in other threads see the old or the new

    def drop(self, alias: str) -> None:
        """Take a name away. Raises NotFound."""
        self.find(alias)
        self._models = {name: entry for name, entry in self._models.items() if name != alias}

    def has(self, alias: str) -> bool:
        """Whether a model answers to the name."""
        return alias in self._models

    def find(self, alias: str) -> Model:
        """The model that answers to a name. Raises NotFound with the nearest name."""
        entry = self._models.get(alias)
        if entry is None:
            raise NotFound(
                f"The model '{alias}' does not exist", allowed=", ".join(self._models) or "none", remedy=nearest(alias, self._models)
            )
        return entry[0]

    def listed(self) -> list[tuple[str, float]]:
        """(name, since when) of every alias, in the order in which they came."""
        return [(alias, since) for alias, (_, since) in self._models.items()]
