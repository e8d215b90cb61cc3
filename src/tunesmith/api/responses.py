"""POST /v1/responses, whole and streamed: OpenAI's newer form of a chat; knows nothing about how models answer, or what becomes of a
request that has ended.

The model is asked what a chat completion would ask it. Every request ends in the log before its response does, and a response that is kept
is on disk by then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api import errors
from tunesmith.api.errors import APIError
from tunesmith.api.exchange import Live, asks, attended, ended_by, target_of, with_calls
from tunesmith.api.http import away, reply
from tunesmith.api.in_turn import begun, in_turn
from tunesmith.api.response_events import ResponseEvents
from tunesmith.api.state import State, state_of
from tunesmith.core.chat_request import ChatRequest
from tunesmith.core.errors import ContextExceeded, StoreError
from tunesmith.core.response_items import Given, Item, ReferenceItem, check_pairs, given_items, kept_items, turns
from tunesmith.core.response_object import Ending, Shown, ending_of, holder_of, listed_items, output_items, response_object, usage
from tunesmith.core.responses_request import ResponsesRequest, responses_request
from tunesmith.core.types import Answer, Message, Prompt, Sampling
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.answered import Exchange, outcome_of
from tunesmith.deploy.engine import Stream
from tunesmith.deploy.router import Target
from tunesmith.flow.jobs.request import check_metadata
from tunesmith.models.base import Constraint, batching, constraint_of, grounding
from tunesmith.store.paging import Missing
from tunesmith.store.responses import Responses
from tunesmith.store.store import Store

_LARGE = 1 << 16  # bytes of a body that is read in a thread
_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


@dataclass(slots=True)
class _Answering:
    """One request on its way: `items` are its own, `chat` is what a chat completion would ask, `store` whether the response is kept."""

    state: State
    asked: ResponsesRequest
    chat: ChatRequest
    exchange: Exchange
    items: tuple[Item, ...]
    store: bool
    target: Target
    sampling: Sampling
    stream: Stream

    @property
    def shown(self) -> Shown:
        """What the client asked to see of the answer."""
        return Shown(self.asked.logprobs, self.asked.carries_thoughts)

    def response(self, ending: Ending = Ending("in_progress"), output: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
        """The response as it stands."""
        own = {"id": self.exchange.id, "created_at": int(self.exchange.created), "store": self.store}
        drawn = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p}
        return response_object(own | self.asked.echoed() | drawn, ending, output, **more)

    async def end(self, answer: Answer, output: Sequence[Any]) -> dict[str, Any]:
        """The answer is whole: into the log, and among the kept responses unless the client wants none. Returns the response."""
        used = usage(answer, await self._reasoning_tokens(answer))
        whole = self.response(ending_of(answer), output, used=used, completed=time.time())
        await self.exchange.end(outcome_of([answer]))
        await self.keep(whole)
        return whole

    async def keep(self, whole: dict[str, Any]) -> None:
        """Keep a response that has ended."""
        if self.store and self.state.store is not None:
            items, exchange = listed_items(self.items, self.exchange.id), self.exchange
            await away(Responses(self.state.store).put, whole, items, project=exchange.project, created=exchange.created)

    async def _reasoning_tokens(self, answer: Answer) -> int:
        """The tokens of the thoughts, without the marks around them; 0 of a model whose tokens cannot be counted here."""
        looking = grounding(self.target.model)
        engine = batching(self.target.model if looking is None else looking.model)
        if not answer.reasoning_content or engine is None:
            return 0
        return min(len(await self.state.answering.away(engine.encode, answer.reasoning_content)), answer.completion_tokens)


@asks("responses", "resp_")
async def create(request: Request, exchange: Exchange, body: bytes) -> Response:
    """The endpoint."""
    state = state_of(request)
    asked, given = await state.answering.away(_read, body) if len(body) > _LARGE else _read(body)
    if asked.store and state.store is None:
        raise BadRequest("'store' is true, and this server keeps no responses", param="store", code="unsupported_value", allowed="false")
    check_metadata(asked.metadata)
    items, messages = await _conversation(state, asked, given, exchange.project)
    exchange.ask(messages)
    target = await target_of(request, exchange, asked.model)
    chat = asked.chat()
    sampling, forced = chat.sampling(state.default_max_tokens, target.defaults), chat.must_call
    constraint = constraint_of(None if forced else chat.schema, forced, several=chat.several)
    prompt = Prompt(messages=messages, tools=chat.shown)

    async def ask(who: Target) -> tuple[Stream, list[Answer]]:
        under = msgspec.structs.replace(prompt, messages=who.instructed(messages))
        drawn = chat.sampling(state.default_max_tokens, who.defaults)
        taken = await _taken(state, who, under, drawn, constraint, truncated=asked.truncation == "auto")
        return taken, await begun([taken], whole=not asked.stream) if who.several else []

    stream, whole = await attended(request, in_turn(exchange, target, ask))
    if target.copies:
        state.shadows.copy(exchange, target, prompt, partial(chat.sampling, state.default_max_tokens), constraint)
    store = state.store is not None and asked.store is not False
    answering = _Answering(state, asked, chat, exchange, items, store, target, sampling, stream)
    ignored = {"x-tunesmith-ignored": ",".join(asked.ignored)} if asked.ignored else {}
    if asked.stream:
        answers: dict[int, Answer] = {}
        return Live(state, exchange, answers, stream.cancel).response(_events(answering, answers), ignored)
    try:
        answer = whole[0] if whole else await attended(request, stream.whole())
        answer = with_calls(answer, exchange.id, several=chat.several)
    finally:
        stream.cancel()
    return reply(await answering.end(answer, output_items(answer, exchange.id, answering.shown)), headers=ignored)


# --- what is asked -----------------------------------------------------------------------------------------------------------------------


def _read(body: bytes) -> tuple[ResponsesRequest, tuple[Given, ...]]:
    """The request and its items."""
    asked = responses_request(body)
    return asked, given_items(asked.input)


async def _conversation(
    state: State, asked: ResponsesRequest, given: Sequence[Given], project: str
) -> tuple[tuple[Item, ...], tuple[Message, ...]]:
    """(the items of the request, the messages that it comes to: its instructions, what led to it, the items)."""
    store = state.store
    needs_store = asked.previous_response_id is not None or any(isinstance(item, ReferenceItem) for item in given)
    if not needs_store:
        own = tuple(item for item in given if not isinstance(item, ReferenceItem))
        return own, _instructed(asked, own)
    if store is None:
        raise BadRequest(
            "this server keeps no responses", param="previous_response_id", code="unsupported_value", allowed="all items in 'input'"
        )
    before = await away(_before, store, asked.previous_response_id, project)
    own = tuple([await away(_referred, store, item, project) if isinstance(item, ReferenceItem) else item for item in given])
    return own, _instructed(asked, [*before, *own])


def _instructed(asked: ResponsesRequest, items: Sequence[Item]) -> tuple[Message, ...]:
    check_pairs(items)
    messages = turns(items)
    return messages if not asked.instructions else (Message(role="system", content=asked.instructions), *messages)


def _before(store: Store, previous: str | None, project: str) -> list[Item]:
    """What was asked and answered up to a response. Raises APIError in OpenAI's words for one that is not there."""
    if previous is None:
        return []
    try:
        chain = Responses(store).chain(previous, project)
    except Missing as error:
        raise previous_missing(error.name) from error
    return [item for row in chain for item in kept_items([*row["items"], *row["response"]["output"]])]


def previous_missing(number: str) -> APIError:
    """What is said of a `previous_response_id` that is not there, that has expired or that is another project's."""
    message = f"Previous response with id '{number[:100]}' not found."
    return APIError(400, message, param="previous_response_id", code="previous_response_not_found")


def _referred(store: Store, reference: ReferenceItem, project: str) -> Item:
    """The item that a reference names. Raises APIError in OpenAI's words for one that is not there."""
    holder = holder_of(reference.id)
    with contextlib.suppress(Missing):
        row = Responses(store).find(holder or "", project)
        for item in (*row["items"], *row["response"]["output"]):
            if item["id"] == reference.id:
                return kept_items([item])[0]
    message = (
        f"Item with id '{reference.id[:100]}' not found. Items are not persisted when `store` is set to false. "
        "Try again with `store` set to true, or remove this item from your input."
    )
    raise APIError(404, message, param="input")


async def _taken(
    state: State, target: Target, prompt: Prompt, sampling: Sampling, constraint: Constraint | None, *, truncated: bool
) -> Stream:
    """The model's answer as a stream that it has taken. `truncated`: what is oldest of a chat that is too long is left out."""
    while True:
        try:
            return (await state.answering.ask(target.model, prompt, sampling, constraint=constraint))[0]
        except ContextExceeded as error:
            shorter = _shorter(prompt.messages, error) if truncated else prompt.messages
            if len(shorter) == len(prompt.messages):
                raise ContextExceeded(error.tokens, error.context, param="input") from error
            prompt = msgspec.structs.replace(prompt, messages=shorter)


def _shorter(messages: tuple[Message, ...], error: ContextExceeded) -> tuple[Message, ...]:
    """The messages without the oldest exchanges, as many as are too long by their share of the characters, and at least one; instructions
    and what the last user said stay. The same messages where no exchange is left to leave out."""
    first = next((i for i, message in enumerate(messages) if message.role not in ("system", "developer")), len(messages))
    begins = [i for i in range(first + 1, len(messages)) if messages[i].role == "user"]
    sizes = [1 + len(message.text) + sum(len(call.function.arguments) for call in message.tool_calls) for message in messages]
    share = 0.5 if error.tokens is None else (error.tokens - error.context + 1) / max(error.tokens, 1)
    for begin in begins:
        if sum(sizes[first:begin]) >= share * sum(sizes) or begin == begins[-1]:
            return messages[:first] + messages[begin:]
    return messages


# --- streamed ----------------------------------------------------------------------------------------------------------------------------


async def _events(answering: _Answering, answers: dict[int, Answer]) -> AsyncGenerator[bytes]:
    """The server-sent events of a stream; the request ends in the log, and the response is kept, before its last event."""
    exchange, events = answering.exchange, ResponseEvents(answering.exchange.id, answering.shown)
    yield events.begun(answering.response())
    try:
        async for piece in answering.stream:
            exchange.first_token()
            for event in events.grown(piece):
                yield event
            if piece.answer is None:
                continue
            answers[0] = answer = with_calls(piece.answer, exchange.id, several=answering.chat.several)
            output = output_items(answer, exchange.id, answering.shown, spoken=events.spoken)
            for event in events.ended(output):
                yield event
            whole = await answering.end(answer, output)
            yield events.event(f"response.{whole['status']}", response=whole)
    except Exception as error:  # noqa: BLE001 - the status line is sent already: an event is the only way left to tell
        yield events.event("response.failed", response=await _failed(answering, error))


async def _failed(answering: _Answering, error: Exception) -> dict[str, Any]:
    """The response to a request that came to nothing after its stream had begun: in the log, and kept as what it is."""
    problem = errors.noted(error)
    told = {"code": _CODES.get(problem.status, "server_error"), "message": problem.message}
    whole = answering.response(Ending("failed"), error=told)
    with contextlib.suppress(StoreError):  # the client hears of the first error, not that it could not be written down either
        await ended_by(answering.exchange, error, answering.state)
        await answering.keep(whole)
    return whole
