"""Requests passed through to another server: their bytes are not touched, each is logged. Knows nothing about models here.

Only the model's name is put in place of the alias. A row is on disk before the last bytes of the answer leave.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from tunesmith.api import errors, proxy_read, proxy_responses
from tunesmith.api.errors import APIError
from tunesmith.api.exchange import VARIANT_HEADER, answered_by, ended_by, opened
from tunesmith.api.http import Receive, Scope, Send
from tunesmith.api.state import State
from tunesmith.core import wire
from tunesmith.core.deployment import Variant
from tunesmith.core.types import CLIENT_LEFT
from tunesmith.deploy.answered import Exchange, Outcome, client_left
from tunesmith.deploy.router import Target
from tunesmith.models.base import Passing, passing
from tunesmith.models.connection import Incoming

# What is passed: how the log names it, and how the ids of its rows begin where the answer has none.
_PASSED = {
    "/v1/chat/completions": ("chat.completions", "chatcmpl-"),
    "/v1/responses": ("responses", "resp_"),
    "/v1/completions": ("completions", "cmpl-"),
    "/v1/embeddings": ("embeddings", "embd-"),
}
_ENDS = (b"data: [DONE]",)
_VARIANT = VARIANT_HEADER.encode()
_LOOK_S = 0.25  # a request that took so long is worth looking whether its client is still there
_UNIQUE = 24  # characters of an id that can be taken for random
_HEADERS = (b"content-type", b"content-encoding", b"retry-after", b"x-request-id")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Proxy:
    """The application in front of `app` that answers for models of other servers; all else it hands on, unread or as it was read."""

    def __init__(self, app: Any, *, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, or hand it on."""
        path = scope["path"] if scope["type"] == "http" and scope["method"] == "POST" else ""
        if path not in _PASSED:
            if scope["type"] == "http" and scope["path"].startswith("/v1/models"):
                await self.state.refresh()
            await self.app(scope, receive, send)
            return
        answer: Any = None
        try:
            body = await _body(receive)
            head = wire.head_of(body)
            await self.state.refresh(head.model)
            wanted = any(name == _VARIANT for name, _ in scope["headers"])
            if not wanted and (target := self.state.passed_to(head.model)) is not None:
                answer = await self._pass(scope, body, head, receive, target)
        except Exception as error:  # noqa: BLE001 - as Starlette's own handler would: every failure is an answer
            answer = errors.response(error)
        if answer is not None:
            await answer(scope, receive, send)
        else:
            await self.app(scope, _again(body, receive), send)

    async def _pass(self, scope: Scope, body: bytes, head: wire.RequestHead, receive: Receive, first: Target) -> Response | Streamed | None:
        """The other server's answer; None when the strategy chooses a model here once it is known who asks. `first` is whom it would
        choose for nobody in particular."""
        path = scope["path"]
        exchange = opened(self.state, scope, *_PASSED[path], head)
        try:
            tree = _object.decode(body)
            if path == proxy_responses.PATH:
                await proxy_responses.note_prompt(self.state, exchange, tree)
            else:
                _note_prompt(exchange, path, body, tree)
            target = first if first.deployment is None else self.state.passed_to(head.model, exchange.key)
            upstream = passing(target.model) if target is not None else None
            if target is None or upstream is None:
                return None
            passage = ProxiedRequest(self.state, exchange, path)
            if path == proxy_responses.PATH:
                if not await proxy_responses.passes(self.state, exchange, tree, target):
                    return None
                passage.ends, passage.read = proxy_responses.ENDS, proxy_responses.answer
                passage.keep = proxy_responses.keeping(self.state, exchange, tree)
                passage.lacks = proxy_responses.lacking
            answered_by(exchange, target)
            _put_in(tree, target, path)
            tree["model"] = msgspec.Raw(msgspec.json.encode(target.model.name))
            answer = await passed(passage, upstream, msgspec.json.encode(tree), receive)
            if answer is None:
                proxy_responses.note_absent(self.state, target)
            return answer
        except asyncio.CancelledError:  # the server ends: this task with it, so the row is written by one of its own
            self.state.spawn(exchange.end(client_left()))
            raise
        except Exception as error:
            await ended_by(exchange, error, self.state)
            raise


def _note_prompt(exchange: Exchange, path: str, body: bytes, tree: dict[str, msgspec.Raw]) -> None:
    """The prompt, as the log has it."""
    if path.endswith("/chat/completions"):
        exchange.ask(proxy_read.messages(body))
        return
    given = tree.get("input" if path.endswith("/embeddings") else "prompt")
    read = proxy_read.inputs if path.endswith("/embeddings") else proxy_read.texts
    exchange.messages = read(msgspec.json.decode(given)) if given is not None else ()


def _put_in(tree: dict[str, msgspec.Raw], target: Target, path: str) -> None:
    """What the variant brings to a chat: its instruction in place of the request's, its shots, its sampling where the request leaves it
    open."""
    limits = {"/v1/chat/completions": ("max_tokens", "max_completion_tokens"), proxy_responses.PATH: ("max_output_tokens",)}.get(path)
    if limits is None:
        return
    turns = msgspec.json.decode(tree["messages"]) if target.variant.prompted and "messages" in tree else None
    if isinstance(turns, list):
        tree["messages"] = msgspec.Raw(msgspec.json.encode(_under(target.variant, turns)))
    for name, value in target.defaults.items():
        names = limits if name == "max_tokens" else (name,)
        if not any(own in tree for own in names):
            tree[names[0]] = msgspec.Raw(msgspec.json.encode(int(value) if name == "max_tokens" else value))


def _under(variant: Variant, turns: list[Any]) -> list[Any]:
    """A request's turns as the variant has them asked; what is no turn of a chat stays, for the upstream to judge."""
    leading = [isinstance(turn, dict) and turn.get("role") in ("system", "developer") for turn in turns]
    shots = [wire.message_body(shot) for shot in variant.shots]
    if variant.instruction is None:
        cut = leading.index(False) if False in leading else len(turns)
        return [*turns[:cut], *shots, *turns[cut:]]
    rest = [turn for turn, first in zip(turns, leading, strict=True) if not first]
    return [{"role": "system", "content": variant.instruction}, *shots, *rest]


async def _body(receive: Receive) -> bytes:
    parts, more = list[bytes](), True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """What hands out a body that was read already."""
    first: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> MutableMapping[str, Any]:
        return first.pop() if first else await receive()

    return given


@dataclass(slots=True)
class ProxiedRequest:
    """One request on its way through: its exchange, and what went wrong with its answer. `ends` are the marks of a stream's end, `read`
    reads its bytes, `keep` keeps what was answered, `lacks` tells that the server does not have the path, so that nothing was answered."""

    state: State
    exchange: Exchange
    path: str
    status: int = 200
    error: str = ""
    ends: tuple[bytes, ...] = _ENDS
    read: Callable[[bytes], tuple[str, Outcome]] = proxy_read.answer
    keep: Callable[[bytes], Awaitable[None]] | None = None
    lacks: Callable[[int, bytes], bool] | None = None

    def broken(self, error: OSError) -> APIError:
        """Note why no whole answer came; gives what the client is instruction."""
        self.status, self.error = (CLIENT_LEFT if isinstance(error, _Left) else 502), str(error)
        message = f"The server behind '{self.exchange.alias}' did not answer: {error}"
        return APIError(self.status, message, code="upstream_unreachable")

    async def end(self, whole: bytes, status: int | None = None) -> None:
        """End the exchange with the bytes of the answer."""
        self.status = status or self.status
        number, outcome = self.read(whole)
        # Some servers count their answers, or draw from a few numbers: two of those must not become one row.
        if len(number) >= _UNIQUE:
            self.exchange.own_id = number
        elif number:
            self.exchange.own_id = f"{number}-{secrets.token_hex(16)}"
        if self.status >= 400:
            finish = "cancelled" if self.status == CLIENT_LEFT else "error"
            error = self.error or proxy_read.error(whole)
            outcome = msgspec.structs.replace(outcome, status=self.status, error=error, finish_reason=finish)
        await self.exchange.end(outcome)
        if self.keep is not None and self.status < 400:
            await self.keep(whole)


async def passed(passage: ProxiedRequest, upstream: Passing, body: bytes, receive: Receive) -> Response | Streamed | None:
    """The upstream's answer to a request; None of one that lacks the path, where the passage looks at that.

    Raises APIError 502 when it cannot be reached, 499 when the client left before it.
    """
    try:
        with _Present(receive):
            answer = await upstream.send(passage.path.removeprefix("/v1"), body)
            passage.status = answer.status
            headers = [(name, answer.headers[name]) for name in _HEADERS if name in answer.headers]
            if answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                return Streamed(answer, headers, passage)
            try:
                whole = await answer.read()
            finally:
                answer.close()
            if passage.lacks is not None and passage.lacks(answer.status, whole):
                return None
    except OSError as error:
        problem = passage.broken(error)
        await passage.end(b"")
        raise problem from error
    await passage.end(whole)
    response = Response(whole, answer.status)
    response.raw_headers += headers
    return response


class _Left(ConnectionError):
    """The client left."""


class _Present:
    """A client that leaves while the block waits ends it with `_Left`. A short request pays for a timer only, no task."""

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
            raise _Left("the client left") from None

    def _look(self) -> None:
        self._watch = asyncio.ensure_future(self._until_left())

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self._left = self._task.cancel()


@dataclass(slots=True)
class Streamed:
    """An answer that comes in pieces, as the response that it becomes: only the mark of the end waits for the log."""

    answer: Incoming
    headers: list[tuple[bytes, bytes]]
    passage: ProxiedRequest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they come. A client that leaves ends the upstream's work."""
        seen, tail, rest, ends = list[bytes](), b"", b"", self.passage.ends
        longest = max(map(len, ends))
        try:
            with _Present(receive):
                await send({"type": "http.response.start", "status": self.answer.status, "headers": self.headers})
                async for piece in self.answer.pieces():
                    self.passage.exchange.first_token()
                    seen.append(piece)
                    if rest:
                        rest += piece
                        continue
                    places = [at for mark in ends if (at := (tail + piece).find(mark)) >= 0]
                    if places:  # the mark may come in two pieces
                        cut = max(min(places) - len(tail), 0)
                        piece, rest = piece[:cut], piece[cut:]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    tail = (tail + piece)[1 - longest :]
        except asyncio.CancelledError:
            self.passage.state.spawn(self.passage.end(b"".join(seen), CLIENT_LEFT))
            raise
        except OSError as error:
            rest = b"data: " + msgspec.json.encode(self.passage.broken(error).body) + b"\n\n"
        finally:
            self.answer.close()
        await self.passage.end(b"".join(seen))
        await send({"type": "http.response.body", "body": rest})
