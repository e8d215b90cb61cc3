"""Work that pages started and that may outlast a request: done in the background, two at a time. Knows no page, and nothing about the
work."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

_AT_ONCE, _REMEMBERED = 2, 100


@dataclass(frozen=True)
class Outcome:
    """Where one sees what was done, and a sentence about it."""

    path: str
    said: str = ""


@dataclass(frozen=True)
class Errand:
    """One piece of work: what it is in words, when and by whose project it was begun."""

    id: str
    what: str
    begun: float
    project: str
    future: Future[Outcome]


class Errands:
    """The errands of one server; the last hundred are remembered."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, "errand")
        self._known: OrderedDict[str, Errand] = OrderedDict()

    def begin(self, what: str, project: str, work: Callable[[], Outcome]) -> Errand:
        """Start it, or let it wait for its turn."""
        errand = Errand(uuid.uuid4().hex[:16], what, time.time(), project, self._pool.submit(work))
        self._known[errand.id] = errand
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return errand

    def find(self, number: str) -> Errand | None:
        """An errand by its id; None for one that this server does not remember."""
        return self._known.get(number)

    def under_way(self) -> list[Errand]:
        """Those that have not ended, the newest first."""
        return [errand for errand in reversed(self._known.values()) if not errand.future.done()]
