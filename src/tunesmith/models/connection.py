"""Connections to one HTTP/1.1 server, kept open between requests; knows nothing about what goes over them.

A proxy does little else, so its client is most of its cost: aiohttp takes several times the processor time of this, httpx ten times that.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import cast
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httptools

_CONNECT_S = 10.0
_MOST_WAITING = 1 << 20  # bytes of an answer that wait for their reader before the server is made to wait


class Connections:
    """Sends requests to the server at `base_url`, as many at once as are asked for. Each answer must be whole within `timeout_s`."""

    def __init__(self, base_url: str, *, timeout_s: float) -> None:
        url = urlsplit(base_url)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._host, self._port = url.hostname or "", url.port or (443 if self._tls else 80)
        self._authority, self._path, self._timeout_s = url.netloc.rpartition("@")[2], url.path, timeout_s
        self._idle_of: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Connection]] = WeakKeyDictionary()

    def head(self, path: str, headers: dict[str, str], method: str = "POST") -> bytes:
        """The lines of a request for `path` below the base, up to the number of its body's bytes."""
        lines = [
            f"{method} {self._path}{path} HTTP/1.1",
            f"host: {self._authority}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "content-length: "]).encode("latin-1")

    async def send(self, head: bytes, body: bytes) -> Incoming:
        """The answer as soon as its headers have come; `close` it. Raises OSError when there is none (TimeoutError when it is late).

        A connection that the server closed while it was idle is replaced: what was sent over it was not read.
        """
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        idle = self._idle
        while True:
            used = self._at_hand(idle)
            connection = used or await self._connect()
            answer = Incoming(connection, idle, self._timeout_s)
            try:
                connection.transport.write(request)
                await answer.begun()
                return answer
            except ConnectionResetError:
                answer.close()
                if used is None or answer.status:
                    raise
            except BaseException:
                answer.close()
                raise

    @property
    def _idle(self) -> list[_Connection]:
        """Those of the running loop: a connection belongs to the loop that made it, also once that has ended."""
        return self._idle_of.setdefault(asyncio.get_running_loop(), [])

    @staticmethod
    def _at_hand(idle: list[_Connection]) -> _Connection | None:
        while idle:
            if not (connection := idle.pop()).transport.is_closing():
                return connection
        return None

    async def _connect(self) -> _Connection:
        async with asyncio.timeout(_CONNECT_S):
            made = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port, ssl=self._tls)
        return made[1]

    def close(self) -> None:
        """Close what is idle of the running loop."""
        idle = self._idle
        while idle:
            idle.pop().transport.abort()


class _Connection(asyncio.Protocol):
    """One connection; `answer` is what it brings, None while it is idle."""

    transport: asyncio.Transport
    answer: Incoming | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            self.transport.abort()
        else:
            self.answer.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None:
            self.answer.lost()


class Incoming:
    """An answer on its way: `status` and `headers` (names in small letters) are there, the body is read whole or in pieces."""

    def __init__(self, connection: _Connection, idle: list[_Connection], timeout_s: float) -> None:
        self.status, self.headers = 0, dict[bytes, bytes]()
        self._connection, self._idle = connection, idle
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: list[bytes] = []
        self._begun = self._whole = self._keep = self._paused = False
        self._error: OSError | None = None
        self._news: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timeout_s, self._fail, TimeoutError(f"no whole answer within {timeout_s:g} s"))
        connection.answer = self

    async def begun(self) -> None:
        """Wait for the headers. Raises OSError when none come."""
        while not self._begun:
            await self._more()

    async def read(self) -> bytes:
        """The whole body. Raises OSError when it breaks off."""
        while not self._whole:
            await self._more()
        return self._take()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises OSError when it breaks off."""
        while True:
            if self._waiting:
                yield self._take()
            elif self._whole:
                return
            else:
                await self._more()

    def close(self) -> None:
        """Keep the connection for the next request when the answer is whole, otherwise close it: what has not come is given up."""
        self._timer.cancel()
        connection = self._connection
        if connection.answer is not self:
            return
        connection.answer = None
        if self._whole and self._keep and not connection.transport.is_closing():
            self._idle.append(connection)
        else:
            connection.transport.abort()
            self._fail(ConnectionAbortedError("the answer was given up"))

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        if self._paused:
            self._paused = False
            self._connection.transport.resume_reading()
        self._news = self._loop.create_future()
        await self._news
        if self._error is not None:
            raise self._error

    def _take(self) -> bytes:
        taken, self._waiting = self._waiting, []
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _fail(self, error: OSError) -> None:
        if not self._whole:
            self._error = self._error or error
        self._wake()

    # What the connection calls.

    def feed(self, data: bytes) -> None:
        """Bytes have come."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(OSError(f"what came is no HTTP/1.1: {error}"))
        if sum(map(len, self._waiting)) > _MOST_WAITING and not self._whole and not self._paused:
            self._paused = True
            self._connection.transport.pause_reading()
        self._wake()

    def lost(self) -> None:
        """No more bytes will come: the end of a body that has no other."""
        if self._begun and b"content-length" not in self.headers and b"transfer-encoding" not in self.headers:
            self._whole = True
        self._fail(ConnectionResetError("the connection was closed before the answer was whole"))

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """All headers. Those of an interim answer (1xx) are nobody's."""
        self.status = self._parser.get_status_code()
        self._begun, self._keep = self.status >= 200, self._parser.should_keep_alive()
        if not self._begun:
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        self._waiting.append(data)

    def on_message_complete(self) -> None:
        """The end."""
        self._whole = self._begun
