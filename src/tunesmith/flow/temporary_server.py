"""What puts models behind a port for a while: handed in to the flows, because the HTTP layer stands above them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from tunesmith.models.base import Model
from tunesmith.models.resolve import Models
from tunesmith.store.store import Store


class Server(Protocol):
    """Puts models behind a port and gives the base URL."""

    def __call__(self, models: Mapping[str, Model], log: Store, live: Live | None = None) -> AbstractContextManager[str]:
        """Serve until the block ends. With `live` its alias answers, too, as the store says from request to request."""


class Live(NamedTuple):
    """An alias that is served as it is deployed, and what its variants mean as models."""

    alias: str
    models: Models
