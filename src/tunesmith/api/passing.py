"""A chat completion passed through to another server: its bytes are not touched, the request is logged. Knows nothing about models here.

Only the model's name is put in place of the alias. A row is on disk before the last bytes of the answer leave.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
from starlette.responses import Response, StreamingResponse

from tunesmith.api.errors import APIError
from tunesmith.api.state import State
from tunesmith.core.types import Interaction, Message, Role
from tunesmith.deploy.upstream import Upstream

_END = b"data: [DONE]"
_KEPT = ("content-type", "retry-after", "x-request-id")


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


async def passed(state: State, alias: str, upstream: Upstream, body: bytes) -> Response:
    """The upstream's answer to a request. Raises APIError 502 when it cannot be reached."""
    started, created = time.perf_counter(), time.time()
    tree = _object.decode(body)
    tree["model"] = msgspec.Raw(msgspec.json.encode(upstream.name))
    stack = AsyncExitStack()
    try:
        answer = await stack.enter_async_context(upstream.send(msgspec.json.encode(tree)))
        headers = {name: value for name in _KEPT if (value := answer.headers.get(name)) is not None}
        entry = _Entry(state, alias, upstream.name, body, started, created, answer.status)
        if headers.get("content-type", "").startswith("text/event-stream"):
            return StreamingResponse(_stream(stack, answer, entry), answer.status, headers)
        async with stack:
            whole = await answer.read()
        await entry.write(whole)
        return Response(whole, answer.status, headers)
    except (aiohttp.ClientError, TimeoutError) as error:
        await stack.aclose()
        raise APIError(502, f"The server behind '{alias}' did not answer: {error}", code="upstream_unreachable") from error


class _Entry:
    """The log's row of one request."""

    def __init__(self, state: State, alias: str, variant: str, body: bytes, started: float, created: float, status: int) -> None:
        self._state, self._alias, self._variant, self._body = state, alias, variant, body
        self.started, self._created, self._status = started, created, status
        self.first_s: float | None = None

    async def write(self, whole: bytes) -> None:
        """Write the row of an answer's bytes: one JSON object, or the events of a stream."""
        if self._state.log is None:
            return
        text, last = _read(whole)
        used = last.usage or _Usage()
        finish = next((choice.finish_reason for choice in last.choices if choice.finish_reason), "error" if self._status >= 400 else "stop")
        total_s = time.perf_counter() - self.started
        row = Interaction(
            id=last.id or f"chatcmpl-{secrets.token_hex(16)}",
            created=self._created,
            alias=self._alias,
            variant=self._variant,
            messages=_messages(self._body),
            answer=text,
            finish_reason=finish,
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            first_token_s=self.first_s if self.first_s is not None else total_s,
            total_s=total_s,
            status=self._status,
        )
        self._state.metrics.answered(self._alias, finish, (used.prompt_tokens, used.completion_tokens), row.first_token_s, total_s)
        await asyncio.wrap_future(self._state.log.write(row))


def _messages(body: bytes) -> tuple[Message, ...]:
    """The messages that were asked, as far as they are any: the upstream judges requests, not this log."""
    try:
        return tuple(Message(role=m.role, content=m.content if isinstance(m.content, str) else None) for m in _asked.decode(body).messages)
    except msgspec.DecodeError:
        return ()


def _read(whole: bytes) -> tuple[str, _Answer]:
    """(the first choice's words, the last object with choices and the usage)."""
    if not whole.startswith(b"data:"):
        try:
            answer = _answer.decode(whole)
        except msgspec.DecodeError:
            return "", _Answer()
        return (answer.choices[0].message.content or "" if answer.choices else ""), answer
    words, last = [], _Answer()
    for line in whole.split(b"\n"):
        if line.startswith(b"data: {"):
            chunk = _answer.decode(line[6:])
            words += [choice.delta.content or "" for choice in chunk.choices[:1]]
            choices = chunk.choices if any(choice.finish_reason for choice in chunk.choices) else last.choices
            last = _Answer(id=chunk.id, choices=choices, usage=chunk.usage or last.usage)
    return "".join(words), last


async def _stream(stack: AsyncExitStack, answer: aiohttp.ClientResponse, entry: _Entry) -> AsyncIterator[bytes]:
    """The pieces as they come; only the mark of the end waits for the log."""
    seen: list[bytes] = []
    async with stack:
        async for piece in answer.content.iter_any():
            entry.first_s = entry.first_s if entry.first_s is not None else time.perf_counter() - entry.started
            seen.append(piece)
            if end := piece.find(_END) + 1:
                yield piece[: end - 1]
                break
            yield piece
    whole = b"".join(seen)
    await entry.write(whole)
    if _END in whole:
        yield _END + b"\n\n"
