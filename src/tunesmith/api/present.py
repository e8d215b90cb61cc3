"""Whether the client of a request is still there; knows nothing about what is waited for."""

from __future__ import annotations

import asyncio

from tunesmith.api.http import Receive

_LOOK_S = 0.25  # a request that took so long is worth looking whether its client is still there


class Gone(ConnectionError):
    """The client left."""


class Present:
    """A client that leaves while the block waits ends it with `Gone`. A short request pays for a timer only, no task."""

    __slots__ = ("_left", "_receive", "_task", "_timer", "_watch")

    def __init__(self, receive: Receive) -> None:
        self._receive, self._left = receive, False
        self._watch: asyncio.Future[None] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._left and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise Gone("the client left") from None

    def _look(self) -> None:
        self._watch = asyncio.ensure_future(self._until_left())

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self._left = self._task.cancel()
