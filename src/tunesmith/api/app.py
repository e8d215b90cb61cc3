"""The HTTP application: routes, request ids, limits, health; and how it is run. Knows nothing about what an endpoint does."""

from __future__ import annotations

import ipaddress
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

import sqlalchemy as sa
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tunesmith.api import chat, errors, graders, models
from tunesmith.api.errors import APIError
from tunesmith.api.state import State, state_of
from tunesmith.core.errors import DataError, TunesmithError, UsageError
from tunesmith.core.types import Record
from tunesmith.deploy.engine import Answering, Overloaded
from tunesmith.deploy.router import Router
from tunesmith.models.base import Model
from tunesmith.monitor.log import InteractionLog
from tunesmith.monitor.metrics import ServerMetrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class ServeConfig(Record, frozen=True):
    """Where and how a server listens. Sizes in bytes, times in seconds; `python_graders` lets clients run Python in the sandbox.

    After SIGTERM the server says that it is not ready, goes on answering for `notice_s`, then takes no new connection and lets what is open
    end within `drain_s`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 16 << 20
    default_max_tokens: int = 1024
    max_waiting: int = 512
    python_graders: bool = False
    notice_s: float = 0.0
    drain_s: float = 60.0


def create_app(models_by_alias: Mapping[str, Model] | Router, log: sa.Engine | None = None, config: ServeConfig | None = None) -> Starlette:
    """The application that serves `models_by_alias`; each request is logged to the store's engine `log` (None: nowhere)."""
    config = config or ServeConfig()
    router = models_by_alias if isinstance(models_by_alias, Router) else Router(models_by_alias)
    answering = Answering(max_waiting=config.max_waiting)
    state = State(
        router,
        answering,
        ServerMetrics(answering.load),
        InteractionLog(log) if log is not None else None,
        default_max_tokens=config.default_max_tokens,
        python_graders=config.python_graders,
    )
    app = Starlette(routes=_routes(), lifespan=_lifespan, exception_handlers=_handlers())
    app.state.tunesmith = state
    app.add_middleware(Door, max_body_bytes=config.max_body_bytes, local_only=is_loopback(config.host))
    return app


def _routes() -> list[Route]:
    return [
        Route("/v1/chat/completions", chat.create, methods=["POST"]),
        Route("/v1/models", models.list_models, methods=["GET"]),
        Route("/v1/models/{model:path}", models.retrieve, methods=["GET"]),
        Route("/v1/fine_tuning/alpha/graders/run", graders.run, methods=["POST"]),
        Route("/v1/fine_tuning/alpha/graders/validate", graders.validate, methods=["POST"]),
        Route("/healthz", _health, methods=["GET"]),
        Route("/readyz", _ready, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
    ]


def _handlers() -> dict[Any, Any]:
    kinds = (APIError, TunesmithError, UsageError, DataError, Overloaded, HTTPException, Exception)
    return dict.fromkeys(kinds, errors.handler)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    state: State = app.state.tunesmith
    yield
    await state.settled()
    state.answering.close()
    if state.log is not None:
        state.log.close()


async def _health(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _ready(request: Request) -> Response:
    ready = state_of(request).ready
    return PlainTextResponse("ready\n" if ready else "draining\n", 200 if ready else 503)


async def _metrics(request: Request) -> Response:
    return PlainTextResponse(state_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class Door:
    """What every request passes: an `x-request-id` in the answer, a limit on the body, JSON only, and no foreign Host on loopback.

    A page in a browser can send requests to this machine. It cannot send JSON without asking first, and by DNS rebinding it comes with
    its own name as Host: both are refused.
    """

    def __init__(self, app: Any, *, max_body_bytes: int, local_only: bool) -> None:
        self.app, self.max_body_bytes, self.local_only = app, max_body_bytes, local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers.get(b"x-request-id", "")[:64]
        if not request_id.isascii() or not request_id.isprintable() or not request_id:
            request_id = f"req_{secrets.token_hex(16)}"
        seen = 0

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_body_bytes:
                raise _too_large(self.max_body_bytes)
            return message

        try:
            self._check(scope, headers)
        except APIError as error:
            await errors.response(error)(scope, receive, send_with_id)
            return
        await self.app(scope, counted, send_with_id)

    def _check(self, scope: Scope, headers: dict[bytes, str]) -> None:
        host = re.sub(r":\d*$", "", headers.get(b"host", ""))
        if self.local_only and host.strip("[]").lower() not in _LOCAL_NAMES:
            raise APIError(403, f"Host '{host}' is not this machine", code="invalid_host")
        if headers.get(b"content-length", "0").isdigit() and int(headers.get(b"content-length", "0")) > self.max_body_bytes:
            raise _too_large(self.max_body_bytes)
        kind = headers.get(b"content-type", "").split(";")[0].strip().lower()
        if scope["method"] == "POST" and kind not in ("application/json", "multipart/form-data"):
            raise APIError(400, f"Content-Type is '{kind}'; send application/json", code="invalid_content_type")


def _too_large(limit: int) -> APIError:
    return APIError(413, f"The request body is larger than {limit} bytes", code="request_too_large")


def is_loopback(host: str) -> bool:
    """Whether listening on `host` is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError when the port is taken, the host is not ours, or reachable from elsewhere."""
    if not is_loopback(host):
        raise UsageError(
            f"'{host}' can be reached from other machines, and this server has no API keys",
            allowed="127.0.0.1, ::1, localhost",
            remedy="listen on loopback, behind a proxy that asks for a key",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except (OSError, OverflowError) as error:
        bound.close()
        raise UsageError(
            f"cannot listen on {host}:{port}: {error}", remedy="stop what uses the port, or choose another one with --port"
        ) from error
    return bound


class _Server(uvicorn.Server):
    """uvicorn, which says that it is not ready before it stops taking connections."""

    def __init__(self, config: uvicorn.Config, state: State, notice_s: float) -> None:
        super().__init__(config)
        self._state, self._notice_s = state, notice_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once. A drained SIGTERM is a clean end; ctrl-C stays a KeyboardInterrupt."""
        again, self._state.ready = not self._state.ready, False
        if again:
            self.force_exit = self.should_exit = True
        elif sig == signal.SIGTERM:
            threading.Timer(self._notice_s, setattr, (self, "should_exit", True)).start()
        else:
            super().handle_exit(sig, frame)


def _server(app: Starlette, config: ServeConfig) -> _Server:
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(config.drain_s)),
        timeout_keep_alive=30,
    )
    return _Server(settings, app.state.tunesmith, config.notice_s)


def serve(app: Starlette, config: ServeConfig, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or ctrl-C, then drain. `on_ready` is called with the base URL. Blocks; call it from the main thread."""
    bound = listen(config.host, config.port)
    if on_ready is not None:
        on_ready(_url(bound))
    _server(app, config).run(sockets=[bound])


@contextmanager
def running(app: Starlette, config: ServeConfig | None = None) -> Iterator[str]:
    """The application on a free port of this machine, in a thread; gives its base URL (`http://127.0.0.1:PORT/v1`), drains at the end."""
    config = config or ServeConfig(port=0)
    bound = listen(config.host, config.port)
    server = _server(app, config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="server", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise UsageError("the server did not start", remedy="see its log above")
            time.sleep(0.005)
        yield _url(bound)
    finally:
        server.should_exit = True
        thread.join()


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
