"""Clients that send slowly: a request whose headers or body do not come in time is answered with 408 and its connection closed. Knows no
endpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tunesmith.api.errors import APIError
from tunesmith.api.http import Receive
from tunesmith.core import wire

_MOST_HEAD = 1 << 20  # bytes that may come before the headers are whole; the beginning of a body is among them
_SLOWEST = 1024  # bytes a second at which a body may go on once its time is over


def too_slow(what: str, seconds: float) -> APIError:
    """The error of a request that did not come in time."""
    message = f"The request's {what} did not come within {seconds:g} seconds"
    return APIError(408, message, code="request_timeout", headers={"connection": "close"})


class HeadersInTime(HttpToolsProtocol):
    """uvicorn's protocol, which waits `headers_s` for the headers of each request that has begun, and of the first one."""

    def __init__(self, *args: Any, headers_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headers_s, self._head_bytes = headers_s, 0
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come: it begins to speak in time."""
        super().connection_made(transport)
        self._wait()

    def on_message_begin(self) -> None:
        """A request has begun."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """Its headers are whole."""
        self._stop()
        self._head_bytes = 0
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Bytes; a head without end is refused before it fills the memory."""
        if self._waiting is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD:
                self._refuse(431, f"The request's headers are larger than {_MOST_HEAD} bytes", "headers_too_large")
                return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._stop()
        self._waiting = self.loop.call_later(self._headers_s, self._late)

    def _stop(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _late(self) -> None:
        self._refuse(408, too_slow("headers", self._headers_s).message, "request_timeout")

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._stop()
        body = msgspec.json.encode(wire.error_body(message, "invalid_request_error", None, code))
        words = {408: "Request Timeout", 431: "Request Header Fields Too Large"}[status]
        head = f"HTTP/1.1 {status} {words}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()


class BodyInTime:
    """Reads one request's messages: its body within `seconds`, later only as fast as a slow line sends. Raises APIError 408."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive, self._seconds, self._until = receive, seconds, time.monotonic() + seconds
        self._whole = False

    async def __call__(self) -> MutableMapping[str, Any]:
        """The next message."""
        if self._whole:  # what is waited for now is that the client leaves
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise too_slow("body", self._seconds) from None
        self._whole = not message.get("more_body", False)
        self._until += len(message.get("body", b"")) / _SLOWEST
        return message
