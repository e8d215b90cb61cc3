"""POST /v1/chat/completions, whole and streamed; knows nothing about how models answer, or what becomes of a request that has ended.

Every request ends in the log before its response does, so what a client has seen whole is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.exchange import Live, asks, attended, sse, target_of, with_calls
from tunesmith.api.http import away, reply
from tunesmith.api.in_turn import begun, in_turn
from tunesmith.api.state import State, state_of
from tunesmith.core import wire
from tunesmith.core.chat_request import ChatRequest, chat_request
from tunesmith.core.types import Answer, Prompt, Sampling
from tunesmith.deploy.answered import Exchange, outcome_of
from tunesmith.deploy.engine import Stream
from tunesmith.deploy.router import Target
from tunesmith.flow.jobs.request import check_metadata
from tunesmith.models.base import Constraint, Piece, constraint_of
from tunesmith.store.chats import Chats

_LARGE = 1 << 16  # bytes of a body that is read in a thread


@dataclass(slots=True)
class _Chat:
    """One request on its way."""

    state: State
    request: ChatRequest
    exchange: Exchange
    target: Target
    streams: list[Stream]

    @property
    def identity(self) -> dict[str, Any]:
        """What a completion and all chunks of a stream have in common."""
        return {
            "id": self.exchange.id,
            "created": int(self.exchange.created),
            "model": self.request.model,
            "system_fingerprint": f"fp_{self.target.fingerprint}",
        }

    def cancel(self) -> None:
        """Stop what is still being answered."""
        for stream in self.streams:
            stream.cancel()

    async def end(self, answers: list[Answer]) -> None:
        """The answer is whole: into the log, and among the stored completions when the client asked for it."""
        await self.exchange.end(outcome_of(answers))
        if not self.request.store or self.state.store is None:
            return
        await away(
            Chats(self.state.store).put,
            self.completion(answers),
            project=self.exchange.project,
            created=self.exchange.created,
            metadata=self.request.metadata,
            messages=[wire.message_body(message) for message in self.exchange.messages],
        )

    def completion(self, answers: list[Answer]) -> dict[str, Any]:
        """The response's body."""
        asked = self.request
        choices = [wire.choice(i, answer, with_logprobs=bool(asked.logprobs), older=asked.older) for i, answer in enumerate(answers)]
        return wire.completion(self.identity, choices, _usage(answers))


@asks("chat.completions", "chatcmpl-")
async def create(request: Request, exchange: Exchange, body: bytes) -> Response:
    """The endpoint."""
    state = state_of(request)
    asked, prompt, names = await state.answering.away(_read, body) if len(body) > _LARGE else _read(body)
    ignored = {"x-tunesmith-ignored": names} if names else {}
    if asked.store and state.store is None:
        raise wire.BadRequest(
            "'store' is true, and this server keeps no completions", param="store", code="unsupported_value", allowed="false"
        )
    check_metadata(asked.metadata)
    exchange.ask(prompt.messages)
    target = await target_of(request, exchange, asked.model)
    chat = _Chat(state, asked, exchange, target, [])
    whole = await attended(request, in_turn(exchange, target, partial(_ask, chat, prompt)))
    copy(state, exchange, target, asked, prompt)
    if asked.stream:
        answers: dict[int, Answer] = {}
        return Live(state, exchange, answers, chat.cancel).response(_events(chat, answers), ignored)
    try:
        whole = whole or await attended(request, asyncio.gather(*(stream.whole() for stream in chat.streams)))
    finally:
        chat.cancel()
    limited = [with_calls(answer, exchange.id, i, several=asked.several) for i, answer in enumerate(whole)]
    await chat.end(limited)
    return reply(chat.completion(limited), headers=ignored)


def _read(body: bytes) -> tuple[ChatRequest, Prompt, str]:
    """The request, its prompt, and the names of its keys that have no effect."""
    asked = chat_request(body)
    return asked, asked.prompt(), ",".join(wire.ignored(body))


async def _ask(chat: _Chat, prompt: Prompt, target: Target) -> list[Answer]:
    """Ask for every choice at once; returns when the model has taken them, so that what it refuses is told before a stream begins. Of one
    of several variants, which another may replace, the whole answers are returned, or nothing once a stream has begun."""
    asked = chat.request
    sampling: Sampling = asked.sampling(chat.state.default_max_tokens, target.defaults)
    under = msgspec.structs.replace(prompt, messages=target.instructed(prompt.messages))
    chat.streams = await chat.state.answering.ask(target.model, under, sampling, asked.choices, constraint=_constraint(asked))
    return await begun(chat.streams, whole=not asked.stream) if target.several else []


def copy(state: State, exchange: Exchange, target: Target, asked: ChatRequest, prompt: Prompt) -> None:
    """Ask the target's shadows too."""
    if target.copies:
        state.shadows.copy(exchange, target, prompt, partial(asked.sampling, state.default_max_tokens), _constraint(asked))


def _constraint(asked: ChatRequest) -> Constraint | None:
    forced = asked.must_call
    return constraint_of(None if forced else asked.schema, forced, several=asked.several)


def _usage(answers: list[Answer]) -> dict[str, int]:
    return wire.usage(answers[0].prompt_tokens, sum(answer.completion_tokens for answer in answers))


async def _events(chat: _Chat, answers: dict[int, Answer]) -> AsyncGenerator[bytes]:
    """The server-sent events of a stream; the request ends in the log before its last choice is finished."""
    for index in range(len(chat.streams)):
        yield sse(_chunk(chat, index, {"role": "assistant", "content": "", "refusal": None}))
    async with contextlib.aclosing(_merged(chat.streams)) as pieces:
        async for index, piece in pieces:
            chat.exchange.first_token()
            if piece.thoughts:
                yield sse(_chunk(chat, index, {"reasoning_content": piece.thoughts}))
            if piece.text or (piece.logprobs and chat.request.logprobs):
                yield sse(_chunk(chat, index, {"content": piece.text}, logprobs=piece.logprobs))
            if piece.answer is None:
                continue
            answers[index] = answer = with_calls(piece.answer, chat.exchange.id, index, several=chat.request.several)
            if answer.tool_calls:
                yield sse(_chunk(chat, index, wire.calls_delta(answer.tool_calls, older=chat.request.older)))
            if len(answers) == len(chat.streams):
                await chat.end([answers[i] for i in range(len(answers))])
            if answer.sources is not None:
                yield sse(_chunk(chat, index, wire.cited(answer)))
            yield sse(_chunk(chat, index, {}, finish=wire.finish_of(answer, older=chat.request.older)))
    if chat.request.include_usage:
        yield sse({**_chunk(chat, 0, {}), "choices": [], "usage": _usage([answers[i] for i in range(len(answers))])})
    yield b"data: [DONE]\n\n"


def _chunk(
    chat: _Chat, index: int, delta: dict[str, Any], *, finish: str | None = None, logprobs: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    shown = {"content": list(logprobs), "refusal": None} if logprobs and chat.request.logprobs else None
    chunk = wire.chunk(chat.identity, index, delta, finish=finish, logprobs=shown)
    return {**chunk, "usage": None} if chat.request.include_usage else chunk


async def _merged(streams: list[Stream]) -> AsyncGenerator[tuple[int, Piece]]:
    """The pieces of several streams as they come."""
    if len(streams) == 1:
        async for piece in streams[0]:
            yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

    async def read(index: int, stream: Stream) -> None:
        try:
            async for piece in stream:
                queue.put_nowait((index, piece))
        except Exception as error:  # noqa: BLE001 - handed on to the reader, who raises it
            queue.put_nowait((index, error))
        queue.put_nowait((index, None))

    tasks = [asyncio.ensure_future(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        open_streams = len(tasks)
        while open_streams:
            index, came = await queue.get()
            if came is None:
                open_streams -= 1
            elif isinstance(came, Piece):
                yield index, came
            else:
                raise came
    finally:
        for task in tasks:
            task.cancel()
