"""The HTTP application: routes and health; and how it is run. Knows nothing about what an endpoint does."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tunesmith.api import (
    batches,
    chat,
    completions,
    embeddings,
    errors,
    feedback,
    files,
    fine_tuning,
    graders,
    models,
    responses,
    stored_chat,
    stored_responses,
    unserved,
    uploads,
    webhooks,
)
from tunesmith.api.auth import Auth, Caller
from tunesmith.api.cors import Cors
from tunesmith.api.errors import APIError
from tunesmith.api.guard import Guard, Site
from tunesmith.api.http import away
from tunesmith.api.identity import IdentityWatch
from tunesmith.api.proxy import Proxy
from tunesmith.api.reload import Reload
from tunesmith.api.shadow import Shadows
from tunesmith.api.slow_clients import HeadersInTime
from tunesmith.api.state import State, Watch, state_of
from tunesmith.core.errors import DataError, TunesmithError, UsageError
from tunesmith.deploy.answered import Answered
from tunesmith.deploy.engine import Answering, Overloaded
from tunesmith.deploy.router import Router
from tunesmith.deploy.serve_config import LogConfig, OtlpConfig, ServeConfig
from tunesmith.flow.experiments import look_at_experiments
from tunesmith.flow.prices import prices_of
from tunesmith.flow.redaction import redaction
from tunesmith.flow.rollouts import look_at_all
from tunesmith.models.base import Model, passing
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import Models
from tunesmith.monitor.metrics import ServerMetrics
from tunesmith.monitor.telemetry import Telemetry
from tunesmith.store.files import Files
from tunesmith.store.interactions import InteractionLog, Interactions
from tunesmith.store.keys import DEFAULT_PROJECT, Keys
from tunesmith.store.responses import Responses
from tunesmith.store.shadows import ShadowAnswers
from tunesmith.store.store import Store
from tunesmith.store.uploads import Uploads
from tunesmith.store.wording import Reworded

_log = logging.getLogger("tunesmith.api")
_ROLLOUTS_S = 0.5  # how often is asked whether a rollout is to be looked at
_EXPERIMENTS_S = 60.0
_SWEEP_S = 5.0  # how long what has expired may stay on the disk
# OpenAI's names for embeddings, so that unchanged code gets vectors; their sizes are the local encoder's.
_ENCODERS = {"text-embedding-3-small": "minilm-l6-v2", "text-embedding-ada-002": "minilm-l6-v2"}


def create_app(
    models_by_alias: Mapping[str, Model] | Router,
    log: Store | None = None,
    config: ServeConfig | None = None,
    *,
    store: Store | None = None,
    models: Models | None = None,
    reload: Reload | None = None,
    site: Site | None = None,
    watch: Watch | None = None,
) -> Starlette:
    """The application that serves `models_by_alias`; each request is logged in the store `log` (None: nowhere). `models` says what other
    names mean (None: what the store and the catalogue say), `reload` takes what is deployed meanwhile into effect, `site` has the pages,
    `watch` looks at alerts every so many seconds.

    With a `store` it also keeps files, fine-tuning jobs and what they make, and logs there. Jobs are worked on by processes of their own
    (`python -m tunesmith.flow.jobs.worker`).
    """
    config = config or ServeConfig()
    router = models_by_alias if isinstance(models_by_alias, Router) else Router(models_by_alias)
    state = _state(router, log or store, config, store, models or Models(store, Catalog()), reload)
    if reload is not None:
        reload.on_deployed = state.let_go
    state.watch = watch
    app = Starlette(routes=_routes(), lifespan=_lifespan, exception_handlers=_handlers())
    app.state.tunesmith = state
    app.state.identity = partial(IdentityWatch, state, every_s=config.identity_s, elsewhere_s=config.identity_elsewhere_s)
    app.add_middleware(Proxy, state=state)
    app.add_middleware(
        Guard,
        auth=state.auth,
        refused=state.metrics.failed,
        max_body_bytes=config.max_body_bytes,
        local_only=is_loopback(config.host),
        cors=Cors(config.cors_origins),
        body_s=config.body_s,
        site=site,
    )
    return app


def _state(router: Router, log: Store | None, config: ServeConfig, store: Store | None, models: Models, reload: Reload | None) -> State:
    """What all requests share."""
    answering = Answering(max_waiting=config.max_waiting)
    metrics, redact = ServerMetrics(answering.load), redaction(config.log.redact)
    return State(
        router,
        answering,
        metrics,
        Answered(_log_of(log, config.log, redact) if log is not None else None, metrics, prices_of(config), _sender_of(config.otlp)),
        Shadows(answering, ShadowAnswers(log, redact) if log is not None else None, metrics.copied),
        default_max_tokens=config.default_max_tokens,
        models=models,
        auth=Auth(store, config.requests_per_minute),
        store=store,
        names=config.names,
        base64_embeddings=config.base64_embeddings,
        webhooks=config.webhooks,
        encoder_names=_ENCODERS | config.encoders,
        python_graders=config.python_graders,
        log=log,
        reload=reload,
        retention_days=config.log.retention_days,
    )


def _log_of(store: Store, settings: LogConfig, redact: Reworded | None) -> InteractionLog:
    return InteractionLog(store, at_once=settings.survives == "power", sample=settings.sample, redact=redact)


def _sender_of(settings: OtlpConfig | None) -> Telemetry | None:
    return None if settings is None else Telemetry(settings.endpoint, settings.every_s)


def _routes() -> list[Route]:
    return [
        Route("/v1/chat/completions", chat.create, methods=["POST"]),
        Route("/v1/responses", responses.create, methods=["POST"]),
        Route("/v1/completions", completions.create, methods=["POST"]),
        Route("/v1/embeddings", embeddings.create, methods=["POST"]),
        Route("/v1/models", models.list_models, methods=["GET"]),
        Route("/v1/models/{model:path}", models.retrieve, methods=["GET"]),
        Route("/v1/models/{model:path}", models.delete, methods=["DELETE"]),
        *_stored(),
        *unserved.routes(),
        Route("/v1/fine_tuning/alpha/graders/run", graders.run, methods=["POST"]),
        Route("/v1/fine_tuning/alpha/graders/validate", graders.validate, methods=["POST"]),
        Route("/healthz", _health, methods=["GET"]),
        Route("/readyz", _ready, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
    ]


def _stored() -> list[Route]:
    """What needs the store."""
    job, permissions = "/v1/fine_tuning/jobs/{job}", "/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions"
    return [
        Route("/v1/files", files.create, methods=["POST"]),
        Route("/v1/files", files.list_files, methods=["GET"]),
        Route("/v1/files/{file_id}", files.retrieve, methods=["GET"]),
        Route("/v1/files/{file_id}", files.delete, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", files.content, methods=["GET"]),
        Route("/v1/uploads", uploads.create, methods=["POST"]),
        Route("/v1/uploads/{upload}/parts", uploads.add_part, methods=["POST"]),
        Route("/v1/uploads/{upload}/complete", uploads.complete, methods=["POST"]),
        Route("/v1/uploads/{upload}/cancel", uploads.cancel, methods=["POST"]),
        Route("/v1/batches", batches.create, methods=["POST"]),
        Route("/v1/batches", batches.list_batches, methods=["GET"]),
        Route("/v1/batches/{batch}", batches.retrieve, methods=["GET"]),
        Route("/v1/batches/{batch}/cancel", batches.cancel, methods=["POST"]),
        Route("/v1/chat/completions", stored_chat.list_chats, methods=["GET"]),
        Route("/v1/chat/completions/{chat}", stored_chat.retrieve, methods=["GET"]),
        Route("/v1/chat/completions/{chat}", stored_chat.update, methods=["POST"]),
        Route("/v1/chat/completions/{chat}", stored_chat.delete, methods=["DELETE"]),
        Route("/v1/chat/completions/{chat}/messages", stored_chat.messages, methods=["GET"]),
        Route("/v1/responses/{response}", stored_responses.retrieve, methods=["GET"]),
        Route("/v1/responses/{response}", stored_responses.delete, methods=["DELETE"]),
        Route("/v1/responses/{response}/cancel", stored_responses.cancel, methods=["POST"]),
        Route("/v1/responses/{response}/input_items", stored_responses.input_items, methods=["GET"]),
        Route("/v1/feedback", feedback.create, methods=["POST"]),
        Route("/v1/feedback", feedback.list_feedback, methods=["GET"]),
        Route("/v1/feedback/{feedback:path}", feedback.retrieve, methods=["GET"]),
        Route("/v1/fine_tuning/jobs", fine_tuning.create, methods=["POST"]),
        Route("/v1/fine_tuning/jobs", fine_tuning.list_jobs, methods=["GET"]),
        Route(job, fine_tuning.retrieve, methods=["GET"]),
        Route(f"{job}/cancel", fine_tuning.cancel, methods=["POST"]),
        Route(f"{job}/pause", fine_tuning.pause, methods=["POST"]),
        Route(f"{job}/resume", fine_tuning.resume, methods=["POST"]),
        Route(f"{job}/events", fine_tuning.list_events, methods=["GET"]),
        Route(f"{job}/checkpoints", fine_tuning.list_checkpoints, methods=["GET"]),
        Route(permissions, fine_tuning.create_permissions, methods=["POST"]),
        Route(permissions, fine_tuning.list_permissions, methods=["GET"]),
        Route(f"{permissions}/{{permission}}", fine_tuning.delete_permission, methods=["DELETE"]),
    ]


def _handlers() -> dict[Any, Any]:
    kinds = (APIError, TunesmithError, UsageError, DataError, Overloaded, HTTPException, Exception)
    return dict.fromkeys(kinds, errors.handler)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    state: State = app.state.tunesmith
    tasks = [asyncio.create_task(work) for work in _background(app, state)]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await state.shadows.close()
    await state.settled()
    state.answering.close()
    state.answered.close()
    for model in state.router.models():
        if (upstream := passing(model)) is not None:
            upstream.close()


def _background(app: Starlette, state: State) -> list[Coroutine[Any, Any, None]]:
    """What the server does besides answering: batches, and webhooks where there are any."""
    if state.store is None:
        return []
    inner = Proxy(ExceptionMiddleware(app.router, handlers=_handlers()), state=state)

    def inside(project: str) -> Any:
        """The application behind its door, for requests that were let in before."""

        async def call(scope: Any, receive: Any, send: Any) -> None:
            await inner({**scope, "app": app, "state": {"project": project, "caller": Caller(project)}}, receive, send)

        return call

    state.inside = inside
    work = [batches.work(inside, state.store), _sweep(state.store, state.retention_days)]
    if state.reload is not None:
        looks = app.state.identity(inside=inside(DEFAULT_PROJECT)).work()
        work += [state.reload.watch(), _rollouts(state), _experiments(state.store), looks]
    if state.watch is not None:
        work.append(_watching(*state.watch))
    return [*work, webhooks.work(state.store, state.webhooks)] if state.webhooks else work


async def _sweep(store: Store, retention_days: float | None) -> None:
    """Take what has expired off the disk, for as long as the server runs."""
    sweeps: list[Callable[[], object]] = [Files(store).sweep, Uploads(store).sweep, Keys(store).sweep, Responses(store).sweep]
    if retention_days is not None:
        sweeps.append(lambda: Interactions(store).expire(time.time() - 86_400 * retention_days))
    while True:
        for sweep in sweeps:
            try:
                await away(sweep)
            except TunesmithError as error:  # a database that is away for a moment
                _log.warning("what has expired could not be removed: %s", error)
        await asyncio.sleep(_SWEEP_S)


async def _rollouts(state: State) -> None:
    """Look at the rollouts of the store whose time has come, for as long as the server runs."""
    store = cast(Store, state.store)
    while True:
        began = time.monotonic()
        try:
            if await away(look_at_all, store):
                await state.refresh()
        except TunesmithError as error:  # a database that is away for a moment
            _log.warning("the rollouts could not be looked at: %s", error)
        await asyncio.sleep(max(_ROLLOUTS_S, 4 * (time.monotonic() - began)))  # a fifth of a thread, however many requests are to count


async def _experiments(store: Store) -> None:
    """Look at the experiments of the store, for as long as the server runs; a fiftieth of a thread, however many requests are to add up."""
    took = 0.0
    while True:
        await asyncio.sleep(max(_EXPERIMENTS_S, 50 * took))
        began = time.monotonic()
        try:
            for line in await away(look_at_experiments, store):
                _log.warning("experiment %s", line)
        except TunesmithError as error:  # a database that is away for a moment
            _log.warning("the experiments could not be looked at: %s", error)
        except Exception:  # noqa: BLE001 - what one look met must not end all that come after it
            _log.exception("the experiments could not be looked at")
        took = time.monotonic() - began


async def _watching(look: Callable[[], object], every_s: float) -> None:
    """Look at alerts, for as long as the server runs."""
    while True:
        try:
            await away(look)
        except Exception:  # noqa: BLE001 - the task must live as long as the server
            _log.exception("alerts could not be looked at; they are looked at again")
        await asyncio.sleep(every_s)


async def _health(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _ready(request: Request) -> Response:
    ready = state_of(request).ready
    return PlainTextResponse("ready\n" if ready else "draining\n", 200 if ready else 503)


async def _metrics(request: Request) -> Response:
    page = state_of(request).metrics.text(request.state.caller.sees)
    return PlainTextResponse(page, media_type="text/plain; version=0.0.4; charset=utf-8")


def is_loopback(host: str) -> bool:
    """Whether listening on `host` is reachable from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, *, keyed: bool = False) -> socket.socket:
    """A listening socket. Raises UsageError when the port is taken, the host is not ours, or reachable from elsewhere without keys."""
    if not keyed and not is_loopback(host):
        raise UsageError(
            f"'{host}' can be reached from other machines, and this server has no API keys",
            allowed="127.0.0.1, ::1, localhost",
            remedy="tunesmith keys create NAME, or listen on loopback",
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
        log_config=None,  # the logging of whoever embeds the server is theirs: uvicorn would close their handlers
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        http=cast(Any, partial(HeadersInTime, headers_s=config.headers_s)),
        timeout_graceful_shutdown=max(1, round(config.drain_s)),
        timeout_keep_alive=30,
    )
    return _Server(settings, app.state.tunesmith, config.notice_s)


def serve(app: Starlette, config: ServeConfig, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or ctrl-C, then drain. `on_ready` is called with the base URL. Blocks; call it from the main thread."""
    bound = listen(config.host, config.port, keyed=app.state.tunesmith.auth.needed())
    if on_ready is not None:
        on_ready(_url(bound))
    _server(app, config).run(sockets=[bound])


@contextmanager
def running(app: Starlette, config: ServeConfig | None = None) -> Iterator[str]:
    """The application on a free port of this machine, in a thread; gives its base URL (`http://127.0.0.1:PORT/v1`), drains at the end."""
    config = config or ServeConfig(port=0)
    bound = listen(config.host, config.port, keyed=app.state.tunesmith.auth.needed())
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
