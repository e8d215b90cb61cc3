"""What every endpoint that asks a model shares: its request is opened here and ends once in `deploy/answered`, however it ends. Knows
nothing about what an endpoint asks.

A further endpoint is one file: a handler under `asks("its.name", "prefix-")` that notes the prompt (`exchange.ask`), finds who answers
(`target_of`), and ends the exchange with what was answered before its last bytes leave. What it raises ends the exchange too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tunesmith.api import errors
from tunesmith.api.errors import APIError, as_api_error
from tunesmith.api.state import State, state_of
from tunesmith.core import wire
from tunesmith.core.errors import StoreError
from tunesmith.core.types import CLIENT_LEFT, Answer
from tunesmith.deploy.answered import Exchange, client_left, refused
from tunesmith.deploy.router import Target

T = TypeVar("T")
Handler = Callable[[Request, Exchange, bytes], Awaitable[Response]]
_encode = msgspec.json.Encoder().encode
_SSE = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_LONGEST_NAME = 200
VARIANT_HEADER, PROBE_HEADER = "x-tunesmith-variant", "x-tunesmith-probe"


class ClientLeft(Exception):
    """Nobody waits for the answer any longer."""


def opened(state: State, scope: MutableMapping[str, Any], endpoint: str, prefix: str, head: wire.RequestHead) -> Exchange:
    """The exchange of a request whose body begins as `head` says; the header `x-conversation-id` names a conversation too,
    and `x-tunesmith-probe` makes it a probe, where an operator sends it."""
    exchange = state.answered.open(endpoint, prefix, head.model[:_LONGEST_NAME], scope["state"]["project"])
    exchange.user_key, exchange.conversation = head.user, head.conversation
    operated = "admin" in scope["state"]["caller"].scopes
    exchange.probe = operated and any(name == PROBE_HEADER.encode() for name, _ in scope["headers"])
    if exchange.conversation is None:
        for name, value in scope["headers"]:
            if name == b"x-conversation-id":
                exchange.conversation = value.decode("latin-1")[:512] or None
    return exchange


def asks(endpoint: str, prefix: str) -> Callable[[Handler], Callable[[Request], Awaitable[Response]]]:
    """Make a handler an endpoint: `endpoint` is its name in the log, `prefix` begins the ids of its answers."""

    def made(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        @wraps(handler)
        async def create(request: Request) -> Response:
            state, body = state_of(request), b""
            exchange = state.answered.open(endpoint, prefix, "", request.scope["state"]["project"])
            try:
                body = await request.body()
                exchange = opened(state, request.scope, endpoint, prefix, wire.head_of(body))
                return await handler(request, exchange, body)
            except ClientLeft:
                await exchange.end(client_left())
                return Response(status_code=CLIENT_LEFT)
            except Exception as error:
                await ended_by(exchange, error, state)
                raise
            except asyncio.CancelledError:  # the server ends: this task with it, so the row is written by one of its own
                state.spawn(exchange.end(client_left()))
                raise

        return create

    return made


async def ended_by(exchange: Exchange, error: Exception, state: State) -> None:
    """End an exchange with an error, as its client is told."""
    problem = as_api_error(error)
    if exchange.variant is None and state.router.has(exchange.alias):  # refused before anybody was asked: who would have answered
        target = state.router.target(exchange.alias, exchange.key)
        if not target.several:  # else nobody was assigned it, and no variant is to be blamed
            answered_by(exchange, target)
    if problem.code == "context_length_exceeded":
        exchange.messages = ()  # no model read it: refusing must cost little of the disk
    await exchange.end(refused(problem.status, problem.message))


def answered_by(exchange: Exchange, target: Target) -> None:
    """Note who answers."""
    exchange.variant, exchange.model_digest = target.variant, target.model.digest
    exchange.deployment, exchange.propensity, exchange.strategy = target.deployment, target.propensity, target.strategy
    exchange.experiment = target.experiment


async def target_of(request: Request, exchange: Exchange, name: str) -> Target:
    """Who answers, noted: the variant that the header `x-tunesmith-variant` names, where an operator sends it, else the strategy's. Raises
    NotFound, and APIError 403 for that header with the key of anybody else."""
    state, wanted = state_of(request), request.headers.get(VARIANT_HEADER)
    if wanted is not None and "admin" not in request.scope["state"]["caller"].scopes:
        raise APIError(403, f"'{VARIANT_HEADER}' needs a key with the scope admin", code="insufficient_permissions")
    known = await state.known_of(exchange, name)
    target = await state.target(name, exchange.project, exchange.key, known, wanted)
    answered_by(exchange, target)
    state.note_assigned(exchange)
    return target


def with_calls(answer: Answer, number: str, choice: int = 0, *, several: bool) -> Answer:
    """The answer `number` with one tool call where no more are wanted; each with an id that no other call has, and that is the same in its
    stream, in the log and where the answer is kept."""
    calls = answer.tool_calls if several else answer.tool_calls[:1]
    if not calls:
        return answer
    named = tuple(msgspec.structs.replace(call, id=call_id(number, choice, i)) for i, call in enumerate(calls))
    return msgspec.structs.replace(answer, tool_calls=named)


def call_id(number: str, choice: int, at: int) -> str:
    """The id of a tool call of the answer `number`."""
    return f"call_{hashlib.blake2b(f'{number}/{choice}/{at}'.encode(), digest_size=12).hexdigest()}"


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The result of work that its client waits for. Raises ClientLeft as soon as it does not; the work is cancelled then."""
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    waited: list[asyncio.Future[Any]] = [task, gone]
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, slots=True)
class Live:
    """A streamed answer: its exchange, what is whole of it so far (filled as it comes), and what stops it."""

    state: State
    exchange: Exchange
    answers: dict[int, Answer]
    cancel: Callable[[], None]

    def response(self, events: AsyncGenerator[bytes], headers: Mapping[str, str]) -> Response:
        """Its server-sent events as a response; `events` ends the exchange before its last words."""
        return StreamingResponse(self._guarded(events), media_type="text/event-stream", headers={**_SSE, **headers})

    async def _guarded(self, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
        except Exception as error:  # noqa: BLE001 - the status line is sent already: an error event is the only way left to tell
            with contextlib.suppress(StoreError):  # the client hears of the first error, not that its row could not be written either
                await ended_by(self.exchange, error, self.state)
            yield sse(errors.noted(error).body)
        finally:
            self.cancel()
            if not self.exchange.ended:  # the client left: this task is being cancelled, so the row is written by one of its own
                self.state.spawn(self.exchange.end(client_left(list(self.answers.values()))))


def sse(body: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + _encode(body) + b"\n\n"
