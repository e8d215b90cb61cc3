"""Requests passed through to another server: their bytes are not touched, each is logged. Knows nothing about models here.

Only the model's name is put in place of the alias. A row is on disk before the last bytes of the answer leave.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from tunesmith.api import errors
from tunesmith.api.errors import APIError
from tunesmith.api.http import GONE, Receive, Scope, Send
from tunesmith.api.state import State
from tunesmith.core import wire
from tunesmith.core.types import Interaction, Message, Role
from tunesmith.models.connection import Incoming
from tunesmith.models.upstream import Upstream

# What is passed, and how the ids of its rows begin where the answer has none. Embeddings say nothing, and are only counted.
_KINDS = {"/v1/chat/completions": "chatcmpl", "/v1/completions": "cmpl", "/v1/embeddings": ""}
_END = b"data: [DONE]"
_LOOK_S = 0.25  # a request that took so long is worth looking whether its client is still there
_UNIQUE = 24  # characters of an id that can be taken for random
_KEPT = (b"content-type", b"content-encoding", b"retry-after", b"x-request-id")


class _Said(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Said = _Said()
    delta: _Said = _Said()
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(msgspec.Struct, frozen=True):
    id: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None


class _Message(msgspec.Struct, frozen=True):
    role: Role
    content: Any = None


class _Asked(msgspec.Struct, frozen=True):
    messages: list[_Message] = []


_answer, _asked = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Asked)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Proxy:
    """The application in front of `app` that answers for models of other servers; all else it hands on, unread or as it was read."""

    def __init__(self, app: Any, *, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, or hand it on."""
        path = scope["path"] if scope["type"] == "http" and scope["method"] == "POST" else ""
        if path not in _KINDS:
            await self.app(scope, receive, send)
            return
        answer: Any = None
        try:
            body = await _body(receive)
            name = wire.model_of(body)
            if (target := self.state.passed_to(name)) is not None and isinstance(upstream := target.model, Upstream):
                entry = Entry(self.state, path, name, upstream.name, body, time.perf_counter(), time.time())
                answer = await passed(entry, upstream, receive)
        except Exception as error:  # noqa: BLE001 - as Starlette's own handler would: every failure is an answer
            answer = errors.response(error)
        if answer is not None:
            await answer(scope, receive, send)
        else:
            await self.app(scope, _again(body, receive), send)


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


async def passed(entry: Entry, upstream: Upstream, receive: Receive) -> Response | Streamed:
    """The upstream's answer to a request. Raises APIError 502 when it cannot be reached, 499 when the client left before it."""
    tree = _object.decode(entry.body)
    tree["model"] = msgspec.Raw(msgspec.json.encode(upstream.name))
    try:
        with _Present(receive):
            answer = await upstream.send(entry.path.removeprefix("/v1"), msgspec.json.encode(tree))
            entry.status = answer.status
            headers = [(name, answer.headers[name]) for name in _KEPT if name in answer.headers]
            if answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                return Streamed(answer, headers, entry)
            try:
                whole = await answer.read()
            finally:
                answer.close()
    except OSError as error:
        told = entry.broken(error)
        await entry.write(b"")
        raise told from error
    await entry.write(whole)
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
    entry: Entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they come. A client that leaves ends the upstream's work."""
        seen, tail, rest = list[bytes](), b"", b""
        try:
            with _Present(receive):
                await send({"type": "http.response.start", "status": self.answer.status, "headers": self.headers})
                async for piece in self.answer.pieces():
                    self.entry.first_s = self.entry.first_s or time.perf_counter() - self.entry.started
                    seen.append(piece)
                    if rest:
                        rest += piece
                        continue
                    if (end := (tail + piece).find(_END)) >= 0:  # the mark may come in two pieces
                        cut = max(end - len(tail), 0)
                        piece, rest = piece[:cut], piece[cut:]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    tail = (tail + piece)[1 - len(_END) :]
        except OSError as error:
            rest = b"data: " + msgspec.json.encode(self.entry.broken(error).body) + b"\n\n"
        finally:
            self.answer.close()
        await self.entry.write(b"".join(seen))
        await send({"type": "http.response.body", "body": rest})


@dataclass(slots=True)
class Entry:
    """The log's row of one request."""

    state: State
    path: str
    alias: str
    variant: str
    body: bytes
    started: float
    created: float
    status: int = 200
    first_s: float | None = None
    error: str = ""

    def broken(self, error: OSError) -> APIError:
        """Note why no whole answer came; gives what the client is told."""
        self.status, self.error = (GONE if isinstance(error, _Left) else 502), str(error)
        return APIError(self.status, f"The server behind '{self.alias}' did not answer: {error}", code="upstream_unreachable")

    async def write(self, whole: bytes) -> None:
        """Count the request and write the row of its answer's bytes: one JSON object, or the events of a stream."""
        text, last = _read(whole)
        used, total_s = last.usage or _Usage(), time.perf_counter() - self.started
        first_s = self.first_s if self.first_s is not None else total_s
        otherwise = "cancelled" if self.status == GONE else "error" if self.status >= 400 else "stop"
        finish = next((choice.finish_reason for choice in last.choices if choice.finish_reason), otherwise)
        if self.status < 400:
            self.state.metrics.answered(self.alias, finish, (used.prompt_tokens, used.completion_tokens), first_s, total_s)
        else:
            self.state.metrics.failed(self.status)
        if self.state.log is None or not _KINDS[self.path]:
            return
        row = Interaction(
            # Some servers count their answers, or draw from a few numbers: two of those must not become one row.
            id=last.id if len(last.id) >= _UNIQUE else f"{last.id or _KINDS[self.path]}-{secrets.token_hex(16)}",
            created=self.created,
            alias=self.alias,
            variant=self.variant,
            messages=_messages(self.body) if self.path.endswith("/chat/completions") else _prompt(self.body),
            answer=text,
            finish_reason=finish,
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            first_token_s=first_s,
            total_s=total_s,
            status=self.status,
            error=self.error,
        )
        await self.state.log.write(row)


def _messages(body: bytes) -> tuple[Message, ...]:
    """The messages that were asked, as far as they are any: the upstream judges requests, not this log."""
    try:
        return tuple(Message(role=m.role, content=m.content if isinstance(m.content, str) else None) for m in _asked.decode(body).messages)
    except msgspec.DecodeError:
        return ()


def _prompt(body: bytes) -> tuple[Message, ...]:
    """What a completion goes on from, as one message: a text, or texts one a line; nothing for token ids."""
    given = _object.decode(body).get("prompt")
    texts = msgspec.json.decode(given) if given is not None else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        return ()
    return (Message(role="user", content="\n".join(texts)),)


def _words(choice: _Choice) -> str:
    return choice.message.content or choice.delta.content or choice.text or ""


def _read(whole: bytes) -> tuple[str, _Answer]:
    """(the first choice's words, the last object with choices and the usage); of what cannot be read, nothing."""
    words, last = list[str](), _Answer()
    try:
        if not whole.startswith(b"data:"):
            last = _answer.decode(whole)
            return "".join(map(_words, last.choices[:1])), last
        for line in whole.split(b"\n"):
            if line.startswith(b"data:") and (event := line[5:].strip()).startswith(b"{"):
                chunk = _answer.decode(event)
                words += map(_words, chunk.choices[:1])
                choices = chunk.choices if any(choice.finish_reason for choice in chunk.choices) else last.choices
                last = _Answer(id=chunk.id, choices=choices, usage=chunk.usage or last.usage)
    except msgspec.DecodeError:
        pass  # the upstream's bytes are the client's to judge
    return "".join(words), last
