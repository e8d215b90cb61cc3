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

from tunesmith.api import errors, proxy_hidden, proxy_read, proxy_responses
from tunesmith.api.errors import APIError
from tunesmith.api.exchange import VARIANT_HEADER, answered_by, ended_by, opened
from tunesmith.api.http import Receive, Scope, Send
from tunesmith.api.present import Gone, Present
from tunesmith.api.proxy_hidden import HiddenStream
from tunesmith.api.proxy_variant import body_for
from tunesmith.api.state import State
from tunesmith.core import wire
from tunesmith.core.types import CLIENT_LEFT
from tunesmith.deploy.answered import Exchange, Outcome, client_left
from tunesmith.deploy.engine import WaitingPlace
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
            if (
                not wanted
                and (target := self.state.passed_to(head.model)) is not None
                and (not target.several or path == proxy_hidden.PATH)
            ):
                answer = await self._pass(scope, body, head, receive, target)
        except Exception as error:  # noqa: BLE001 - as Starlette's own handler would: every failure is an answer
            answer = errors.response(error)
        if answer is not None:
            await answer(scope, receive, send)
        else:
            await self.app(scope, _again(body, receive), send)

    async def _pass(
        self, scope: Scope, body: bytes, head: wire.RequestHead, receive: Receive, first: Target
    ) -> Response | Streamed | HiddenStream | None:
        """The other server's answer; None when the strategy chooses a model here once it is known who asks. `first` is whom it would
        choose for nobody in particular."""
        path = scope["path"]
        exchange = opened(self.state, scope, *_PASSED[path], head)
        try:
            tree = _object.decode(body)
            if first.several:
                return await self._hidden(exchange, tree, body, receive)
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
            answer = await passed(passage, upstream, body_for(tree, target, path), receive)
            if answer is None:
                proxy_responses.note_absent(self.state, target)
            return answer
        except asyncio.CancelledError:  # the server ends: this task with it, so the row is written by one of its own
            self.state.spawn(exchange.end(client_left()))
            raise
        except Exception as error:
            await ended_by(exchange, error, self.state)
            raise

    async def _hidden(
        self, exchange: Exchange, tree: dict[str, msgspec.Raw], body: bytes, receive: Receive
    ) -> Response | HiddenStream | None:
        """The answer of one of several variants; None where this server is to keep it, which the endpoint does."""
        if bytes(tree.get("store", b"")) == b"true":
            return None
        exchange.ask(proxy_read.messages(body))
        known = await self.state.known_of(exchange, exchange.alias)
        target = self.state.passed_to(exchange.alias, exchange.key, known)
        if target is None:
            raise APIError(503, f"The model '{exchange.alias}' has just changed", code="model_not_answering")
        answered_by(exchange, target)
        self.state.note_assigned(exchange)
        return await proxy_hidden.passed(self.state, exchange, target, tree, body, receive)


def _note_prompt(exchange: Exchange, path: str, body: bytes, tree: dict[str, msgspec.Raw]) -> None:
    """The prompt, as the log has it."""
    if path.endswith("/chat/completions"):
        exchange.ask(proxy_read.messages(body))
        return
    given = tree.get("input" if path.endswith("/embeddings") else "prompt")
    read = proxy_read.inputs if path.endswith("/embeddings") else proxy_read.texts
    exchange.messages = read(msgspec.json.decode(given)) if given is not None else ()


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
        self.status, self.error = (CLIENT_LEFT if isinstance(error, Gone) else 502), str(error)
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

    Raises APIError 502 when it cannot be reached, 499 when the client left before it; Overloaded where too many wait for it.
    """
    place, stays = passage.state.answering.wait_at(upstream), False
    try:
        with Present(receive):
            answer = await upstream.send(passage.path.removeprefix("/v1"), body)
            passage.status = answer.status
            headers = [(name, answer.headers[name]) for name in _HEADERS if name in answer.headers]
            if answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                stays = True  # many servers send the headers of a stream while it waits for its turn
                return Streamed(answer, headers, passage, place)
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
    finally:
        if not stays:
            place.leave()
    await passage.end(whole)
    response = Response(whole, answer.status)
    response.raw_headers += headers
    return response


@dataclass(slots=True)
class Streamed:
    """An answer that comes in pieces, as the response that it becomes: only the mark of the end waits for the log."""

    answer: Incoming
    headers: list[tuple[bytes, bytes]]
    passage: ProxiedRequest
    place: WaitingPlace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they come. A client that leaves ends the upstream's work."""
        seen, tail, rest, ends = list[bytes](), b"", b"", self.passage.ends
        longest = max(map(len, ends))
        try:
            with Present(receive):
                await send({"type": "http.response.start", "status": self.answer.status, "headers": self.headers})
                async for piece in self.answer.pieces():
                    self.place.leave()
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
            self.place.leave()
            self.answer.close()
        await self.passage.end(b"".join(seen))
        await send({"type": "http.response.body", "body": rest})
