"""What the endpoints of one application share; knows nothing about any of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.requests import Request

from tunesmith.deploy.engine import Answering
from tunesmith.deploy.router import Router
from tunesmith.monitor.log import InteractionLog
from tunesmith.monitor.metrics import ServerMetrics


@dataclass(slots=True)
class State:
    """Shared by all requests. `ready` is what /readyz says; `log` None keeps no log."""

    router: Router
    answering: Answering
    metrics: ServerMetrics
    log: InteractionLog | None
    default_max_tokens: int
    python_graders: bool = False
    ready: bool = True
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that must outlive its request."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait for what `spawn` started."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def state_of(request: Request) -> State:
    """The state of the application that a request came to."""
    return cast(State, request.app.state.tunesmith)
