"""A chat passed to one of several variants that other servers answer for, so that its client cannot see which one it was. Knows nothing
about which one is chosen.

Of an answer only what OpenAI's API names is handed on, as it comes and always in one form: the id, the time, the model and the fingerprint
are this server's own for every variant, headers and further keys of the other server stay here. Where the assigned variant fails before its
first words the next ones are asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from starlette.responses import Response

from tunesmith.api.chat import copy
from tunesmith.api.errors import APIError
from tunesmith.api.exchange import call_id, sse
from tunesmith.api.http import Receive, Scope, Send
from tunesmith.api.in_turn import in_turn, unnamed
from tunesmith.api.present import Gone, Present
from tunesmith.api.proxy_read import error as error_words
from tunesmith.api.proxy_variant import Tree, body_for
from tunesmith.api.state import State
from tunesmith.core.chat_request import chat_request
from tunesmith.core.errors import SourceUnavailable, TunesmithError, UsageError
from tunesmith.core.types import CLIENT_LEFT, Function, ToolCall
from tunesmith.deploy.answered import Exchange, Outcome
from tunesmith.deploy.router import Target
from tunesmith.models.base import Passing, passing
from tunesmith.models.connection import Incoming

PATH = "/v1/chat/completions"
_NOT_ITS_FAULT = frozenset({401, 403, 404, 408, 429})  # statuses by which a server refuses us, not what the client asks
_LONGEST_EVENT = 16 << 20
_DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class _Function(Struct):
    name: str | UnsetType | None = UNSET
    arguments: str | UnsetType | None = UNSET


class _Call(Struct):
    index: int | UnsetType = UNSET
    id: str | UnsetType | None = UNSET
    type: str | UnsetType | None = UNSET
    function: _Function | UnsetType = UNSET


class _Words(Struct):
    role: str | UnsetType | None = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType | None = UNSET
    tool_calls: list[_Call] | UnsetType | None = UNSET
    function_call: _Function | UnsetType | None = UNSET


class _Choice(Struct):
    index: int = 0
    message: _Words | UnsetType = UNSET
    delta: _Words | UnsetType = UNSET
    logprobs: Raw = Raw(b"null")
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Came(Struct):
    """What is taken of an answer, or of an event of a stream."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_came = msgspec.json.Decoder(_Came)


async def passed(state: State, exchange: Exchange, target: Target, tree: Tree, body: bytes, receive: Receive) -> Response | HiddenStream:
    """The answer of the target, or of who answers in its place. Raises APIError 499 when the client left before it, and what the last one
    fails with in words that every variant would have."""
    asked = HiddenChat(state, exchange, target, tree)
    try:
        with Present(receive):
            begun = await in_turn(exchange, target, asked.ask)
    except Gone as error:
        raise APIError(CLIENT_LEFT, str(error)) from error
    _copy(state, exchange, target, body)
    if isinstance(begun, _Events):
        return HiddenStream(asked, begun)
    asked.take(begun)
    await exchange.end(asked.outcome())
    return Response(asked.shown(begun, "chat.completion"), media_type="application/json")


def _copy(state: State, exchange: Exchange, target: Target, body: bytes) -> None:
    """Ask the target's shadows too, as far as the request can be read here."""
    if not target.copies:
        return
    try:
        asked = chat_request(body)
        copy(state, exchange, target, asked, asked.prompt())
    except TunesmithError as error:
        state.shadows.skip(exchange, target, f"the request is not read here: {error.what}")


@dataclass(slots=True)
class HiddenChat:
    """One request on its way: what was asked, and what of its answer came so far."""

    state: State
    exchange: Exchange
    target: Target
    tree: Tree
    words: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)
    finish: str = ""
    usage: _Usage | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer comes in pieces."""
        return bytes(self.tree.get("stream", Raw(b""))) == b"true"

    def counts(self) -> bool:
        """Whether the client asked for the tokens of a stream."""
        try:
            given = msgspec.json.decode(self.tree["stream_options"]) if "stream_options" in self.tree else None
        except msgspec.DecodeError:
            return False
        return isinstance(given, dict) and given.get("include_usage") is True

    async def ask(self, who: Target) -> _Came | _Events:
        """The whole answer of a variant, or its stream once the first words are there. Raises SourceUnavailable where it does not answer,
        UsageError where it refuses the request, Overloaded where too many wait for it."""
        upstream = passing(who.model)
        if upstream is None:
            raise SourceUnavailable(f"'{who.variant.name}' is no other server")
        place = self.state.answering.wait_at(upstream)
        try:
            return await self._asked(who, upstream)
        finally:
            place.leave()

    async def _asked(self, who: Target, upstream: Passing) -> _Came | _Events:
        more = {"stream_options": {"include_usage": True}} if self.streams else {}
        answer = await upstream.send(PATH.removeprefix("/v1"), body_for(self.tree, who, PATH, more))
        try:
            if answer.status != 200:
                raise _refusal(who, answer.status, await answer.read())
            if answer.headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                events = _Events(answer)
                await events.begin()
                return events
            whole = await answer.read()
        except BaseException:
            answer.close()
            raise
        answer.close()
        came = _read(whole)
        if not came.choices:
            raise SourceUnavailable(f"'{who.variant.name}' answered without a choice")
        return came

    def take(self, came: _Came) -> None:
        """Note the words, calls and tokens of an answer or event, and give its calls ids of this server."""
        for choice in came.choices:
            said = choice.delta if isinstance(choice.delta, _Words) else choice.message
            if not isinstance(said, _Words):
                continue
            for i, call in enumerate(said.tool_calls or ()):
                self._name(call, choice.index, i)
            if choice.index == 0:
                self.words.append(said.content or said.refusal or "")
                self.finish = choice.finish_reason or self.finish
        self.usage = came.usage or self.usage

    def _name(self, call: _Call, choice: int, at: int) -> None:
        index = call.index if isinstance(call.index, int) else at
        if call.id:
            call.id = call_id(self.exchange.id, choice, index)
        if choice == 0 and isinstance(call.function, _Function):
            gathered = self.calls.setdefault(index, ["", "", ""])
            gathered[0] = gathered[0] or call.id or ""
            gathered[1] += call.function.name or ""
            gathered[2] += call.function.arguments or ""

    def shown(self, came: _Came, kind: str, *, usage: bool = True) -> bytes:
        """An answer or event as the client gets it."""
        made: dict[str, Any] = {
            "id": self.exchange.id, "object": kind, "created": int(self.exchange.created), "model": self.exchange.alias,
            "system_fingerprint": f"fp_{self.target.fingerprint}", "choices": came.choices,
        }  # fmt: skip
        if usage:
            made["usage"] = came.usage
        return _encode(made)

    def outcome(self, status: int = 200, error: str = "") -> Outcome:
        """How the request ended."""
        used = self.usage if self.usage is not None and 0 <= self.usage.prompt_tokens + self.usage.completion_tokens < 1 << 31 else None
        finish = self.finish or "stop" if status == 200 else "cancelled" if status == CLIENT_LEFT else "error"
        return Outcome(
            text="".join(self.words),
            finish_reason=finish,
            tool_calls=tuple(ToolCall(id=own, function=Function(name=name, arguments=given)) for own, name, given in self.calls.values()),
            prompt_tokens=used.prompt_tokens if used is not None else 0,
            completion_tokens=used.completion_tokens if used is not None else 0,
            counted=used is not None,
            status=status,
            error=error,
        )


def _refusal(who: Target, status: int, whole: bytes) -> TunesmithError:
    words = f"'{who.variant.name}' answered {status}: {error_words(whole) or whole[:200].decode(errors='replace')}"
    return SourceUnavailable(words) if status >= 500 or status in _NOT_ITS_FAULT or status < 400 else UsageError(words)


def _read(data: bytes) -> _Came:
    try:
        return _came.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceUnavailable(f"what came is no chat completion: {error}") from error


def _speaks(came: _Came) -> bool:
    """Whether an event has words, calls or an end: until then another variant may still answer."""
    said = [choice.delta for choice in came.choices if isinstance(choice.delta, _Words)]
    return any(each.content or each.refusal or each.reasoning_content or each.tool_calls or each.function_call for each in said) or any(
        choice.finish_reason for choice in came.choices
    )


class _Events:
    """The events of a stream, each read; those that came together, together."""

    __slots__ = ("_answer", "_left", "_pieces", "ended", "first")

    def __init__(self, answer: Incoming) -> None:
        self._answer, self._pieces, self._left = answer, answer.pieces(), b""
        self.first: list[_Came] = []
        self.ended = False

    async def begin(self) -> None:
        """Wait for the first words. Raises SourceUnavailable where there are none, or it tells of an error."""
        while not self.ended and not any(map(_speaks, self.first)):
            try:
                self.first += self._cut(await anext(self._pieces))
            except StopAsyncIteration:
                raise SourceUnavailable("the stream ended before it began") from None

    async def __aiter__(self) -> AsyncIterator[list[_Came]]:
        if self.first:
            yield self.first
        while not self.ended:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                return
            if events := self._cut(piece):
                yield events

    def _cut(self, piece: bytes) -> list[_Came]:
        data = self._left + piece if self._left else piece
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *whole, self._left = data.split(b"\n\n")
        if len(self._left) > _LONGEST_EVENT:
            raise SourceUnavailable("an event of the stream has no end")
        return [came for event in whole if (came := self._event(event)) is not None]

    def _event(self, event: bytes) -> _Came | None:
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if data == b"[DONE]":
            self.ended = True
        if not data or self.ended:
            return None
        came = _read(data)
        if came.error:
            raise SourceUnavailable(f"the stream broke off: {error_words(data) or data[:200].decode(errors='replace')}")
        return came

    def close(self) -> None:
        """Give up what has not come."""
        self._answer.close()


@dataclass(slots=True)
class HiddenStream:
    """A stream as the response that it becomes: its words as they come, only the mark of its end waits for the log."""

    asked: HiddenChat
    events: _Events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. A client that leaves ends the work of who answers."""
        asked, last = self.asked, _DONE
        exchange = asked.exchange
        event = partial(asked.shown, kind="chat.completion.chunk", usage=asked.counts())
        status, error = 200, ""
        try:
            with Present(receive):
                headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                async for came in self.events:
                    exchange.first_token()
                    for each in came:
                        asked.take(each)
                    wanted = [each for each in came if each.choices or asked.counts()]
                    if data := b"".join(b"data: %b\n\n" % event(each) for each in wanted):
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            if not self.events.ended and not asked.finish:
                raise SourceUnavailable("the stream ended before the answer was whole")
        except asyncio.CancelledError:
            asked.state.spawn(exchange.end(asked.outcome(CLIENT_LEFT, "the client left")))
            raise
        except Gone as left:
            status, error = CLIENT_LEFT, str(left)
        except (OSError, TunesmithError) as problem:
            told = unnamed(problem, exchange.alias)
            status, error = 502, str(problem)
            last = sse(told.body) if isinstance(told, APIError) else b""
        finally:
            self.events.close()
        await exchange.end(asked.outcome(status, error))
        await send({"type": "http.response.body", "body": last})
