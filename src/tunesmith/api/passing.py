"""A chat completion passed through to another server: its bytes are not touched, the request is logged. Knows nothing about models here.

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

from tunesmith.api import errors
from tunesmith.api.errors import APIError
from tunesmith.api.http import GONE, Receive, Scope, Send
from tunesmith.api.state import State
from tunesmith.core import wire
from tunesmith.core.types import Interaction, Message, Role
from tunesmith.deploy.connection import Incoming
from tunesmith.deploy.upstream import Upstream

_PATH = "/v1/chat/completions"
_END = b"data: [DONE]"
_UNIQUE = 24  # characters of an id that can be taken for random
_KEPT = (b"content-type", b"content-encoding", b"retry-after", b"x-request-id")


class _Said(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Said = _Said()
    delta: _Said = _Said()
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


class Passing:
    """The application in front of `app` that answers for models of other servers; all else it hands on, unread or as it was read."""

    def __init__(self, app: Any, *, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, or hand it on."""
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        answer: Any = None
        try:
            body = await _body(receive)
            name = wire.model_of(body)
            if (upstream := self.state.upstream(name)) is not None:
                answer = await passed(self.state, name, upstream, body)
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


async def passed(state: State, alias: str, upstream: Upstream, body: bytes) -> Whole | Streamed:
    """The upstream's answer to a request. Raises APIError 502 when it cannot be reached."""
    entry = _Entry(state, alias, upstream.name, body, time.perf_counter(), time.time())
    tree = _object.decode(body)
    tree["model"] = msgspec.Raw(msgspec.json.encode(upstream.name))
    try:
        answer = await upstream.send(msgspec.json.encode(tree))
        entry.status = answer.status
        headers = [(name, answer.headers[name]) for name in _KEPT if name in answer.headers]
        if answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            return Streamed(answer, headers, entry)
        try:
            whole = await answer.read()
        finally:
            answer.close()
    except OSError as error:
        raise _unreachable(alias, error) from error
    await entry.write(whole)
    return Whole(answer.status, headers, whole)


def _unreachable(alias: str, error: OSError) -> APIError:
    return APIError(502, f"The server behind '{alias}' did not answer: {error}", code="upstream_unreachable")


@dataclass(slots=True)
class Whole:
    """An answer that came whole, as the response that it becomes."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        headers = [*self.headers, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(slots=True)
class Streamed:
    """An answer that comes in pieces, as the response that it becomes: only the mark of the end waits for the log."""

    answer: Incoming
    headers: list[tuple[bytes, bytes]]
    entry: _Entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces as they come. A client that leaves ends the upstream's work."""
        watch = asyncio.ensure_future(self._until_left(receive))
        seen, tail, rest = list[bytes](), b"", b""
        try:
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
            self.entry.status, self.entry.error = (GONE, "the client left") if watch.done() else (502, str(error))
            rest = b"data: " + msgspec.json.encode(_unreachable(self.entry.alias, error).body) + b"\n\n"
        finally:
            watch.cancel()
            self.answer.close()
        await self.entry.write(b"".join(seen))
        await send({"type": "http.response.body", "body": rest})

    async def _until_left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.answer.close()


@dataclass(slots=True)
class _Entry:
    """The log's row of one request."""

    state: State
    alias: str
    variant: str
    body: bytes
    started: float
    created: float
    status: int = 200
    first_s: float | None = None
    error: str = ""

    async def write(self, whole: bytes) -> None:
        """Count the request and write the row of its answer's bytes: one JSON object, or the events of a stream."""
        text, last = _read(whole)
        used, total_s = last.usage or _Usage(), time.perf_counter() - self.started
        first_s = self.first_s if self.first_s is not None else total_s
        finish = next((choice.finish_reason for choice in last.choices if choice.finish_reason), "error" if self.status >= 400 else "stop")
        if self.status < 400:
            self.state.metrics.answered(self.alias, finish, (used.prompt_tokens, used.completion_tokens), first_s, total_s)
        else:
            self.state.metrics.failed(self.status)
        if self.state.log is None:
            return
        row = Interaction(
            # Some servers count their answers, or draw from a few numbers: two of those must not become one row.
            id=last.id if len(last.id) >= _UNIQUE else f"{last.id or 'chatcmpl'}-{secrets.token_hex(16)}",
            created=self.created,
            alias=self.alias,
            variant=self.variant,
            messages=_messages(self.body),
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


def _read(whole: bytes) -> tuple[str, _Answer]:
    """(the first choice's words, the last object with choices and the usage); of what cannot be read, nothing."""
    words, last = list[str](), _Answer()
    try:
        if not whole.startswith(b"data:"):
            last = _answer.decode(whole)
            return (last.choices[0].message.content or "" if last.choices else ""), last
        for line in whole.split(b"\n"):
            if line.startswith(b"data:") and (event := line[5:].strip()).startswith(b"{"):
                chunk = _answer.decode(event)
                words += [choice.delta.content or "" for choice in chunk.choices[:1]]
                choices = chunk.choices if any(choice.finish_reason for choice in chunk.choices) else last.choices
                last = _Answer(id=chunk.id, choices=choices, usage=chunk.usage or last.usage)
    except msgspec.DecodeError:
        pass  # the upstream's bytes are the client's to judge
    return "".join(words), last
