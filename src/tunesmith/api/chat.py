"""POST /v1/chat/completions, whole and streamed; knows nothing about how models answer.

Every request is written to the log before its response ends, so what a client has seen whole is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tunesmith.api.errors import as_api_error
from tunesmith.api.http import GONE, away, project_of
from tunesmith.api.state import State, state_of
from tunesmith.core import wire
from tunesmith.core.types import Answer, Interaction, Prompt
from tunesmith.deploy.constrain import constraint_of
from tunesmith.deploy.engine import Piece, Stream
from tunesmith.flow.jobs.request import check_metadata
from tunesmith.models.base import Model
from tunesmith.store.chats import Chats

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Chat:
    """One request on its way."""

    state: State
    request: wire.ChatRequest
    prompt: Prompt
    model: Model
    streams: list[Stream]
    started: float
    created: float
    id: str
    project: str

    @property
    def identity(self) -> dict[str, Any]:
        """What a completion and all chunks of a stream have in common."""
        return {
            "id": self.id,
            "created": int(self.created),
            "model": self.request.model,
            "system_fingerprint": f"fp_{self.model.digest[:12]}",
        }

    def cancel(self) -> None:
        """Stop what is still being answered."""
        for stream in self.streams:
            stream.cancel()

    async def keep(self, answers: list[Answer]) -> None:
        """Store the completion when the client asked for it."""
        if not self.request.store or self.state.store is None:
            return
        choices = [wire.choice(i, answer, with_logprobs=bool(self.request.logprobs)) for i, answer in enumerate(answers)]
        await away(
            Chats(self.state.store).put,
            wire.completion(self.identity, choices, _usage(answers)),
            project=self.project,
            created=self.created,
            metadata=self.request.metadata,
            messages=[wire.message_body(message) for message in self.prompt.messages],
        )

    async def log(self, answers: list[Answer], status: int = 200, error: str = "") -> None:
        """One row a request; of several choices the words of the first and the tokens of all."""
        first = answers[0] if answers else None
        total_s = time.perf_counter() - self.started
        first_token_s = min((a.first_token_s for a in answers if a.first_token_s is not None), default=total_s)
        tokens = (first.prompt_tokens if first else 0, sum(answer.completion_tokens for answer in answers))
        finish = first.finish_reason if first else "cancelled" if status == GONE else "error"
        if status < 400:
            self.state.metrics.answered(self.request.model, finish, tokens, first_token_s, total_s)
        else:
            self.state.metrics.failed(status)
        if self.state.log is None:
            return
        row = Interaction(
            id=self.id,
            created=self.created,
            alias=self.request.model,
            variant=self.model.name,
            messages=self.prompt.messages,
            answer=first.text if first else "",
            finish_reason=finish,
            prompt_tokens=tokens[0],
            completion_tokens=tokens[1],
            first_token_s=first_token_s,
            total_s=total_s,
            status=status,
            error=error,
            tool_calls=first.tool_calls if first else (),
        )
        await asyncio.shield(self.state.log.write(row))


async def create(request: Request) -> Response:
    """The endpoint."""
    state = state_of(request)
    body, project = await request.body(), project_of(request)
    asked, ignored = wire.chat_request(body), {"x-tunesmith-ignored": names} if (names := ",".join(wire.ignored(body))) else {}
    if asked.store and state.store is None:
        raise wire.BadRequest(
            "'store' is true, and this server keeps no completions", param="store", code="unsupported_value", allowed="false"
        )
    check_metadata(asked.metadata)
    model = await state.find(asked.model, project)
    prompt, sampling = asked.prompt(), asked.sampling(state.default_max_tokens)
    chat = _Chat(state, asked, prompt, model, [], time.perf_counter(), time.time(), f"chatcmpl-{secrets.token_hex(16)}", project)
    forced = asked.must_call
    constraint = constraint_of(None if forced else asked.schema, forced, several=asked.parallel_tool_calls is not False)
    try:
        for index in range(asked.choices):
            chat.streams.append(state.answering.ask(model, prompt, sampling, index, constraint=constraint))
    except BaseException:
        chat.cancel()
        raise
    if asked.stream:
        return StreamingResponse(
            _events(chat), media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no", **ignored}
        )
    answer = await _whole(request, chat)
    answer.headers.update(ignored)
    return answer


async def _whole(request: Request, chat: _Chat) -> Response:
    work: asyncio.Future[list[Answer]] = asyncio.gather(*(stream.whole() for stream in chat.streams))
    gone: asyncio.Future[None] = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait(_both(work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            chat.cancel()
            await chat.log([], GONE, "the client left")
            return Response(status_code=GONE)
        answers = [_limited(chat.request, answer) for answer in work.result()]
    except Exception as error:
        chat.cancel()
        told = as_api_error(error)
        await chat.log([], told.status, told.message)
        raise
    finally:
        gone.cancel()
    await chat.log(answers)
    await chat.keep(answers)
    choices = [wire.choice(i, answer, with_logprobs=bool(chat.request.logprobs)) for i, answer in enumerate(answers)]
    return Response(_encode(wire.completion(chat.identity, choices, _usage(answers))), media_type="application/json")


def _both(*futures: asyncio.Future[Any]) -> list[asyncio.Future[Any]]:
    return list(futures)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _limited(request: wire.ChatRequest, answer: Answer) -> Answer:
    """Nothing where nothing is wanted, one tool call where the client forbids several at a time."""
    if request.silent:
        return msgspec.structs.replace(answer, text="", tool_calls=(), finish_reason="length", logprobs=())
    if request.parallel_tool_calls is False and len(answer.tool_calls) > 1:
        return msgspec.structs.replace(answer, tool_calls=answer.tool_calls[:1])
    return answer


def _usage(answers: list[Answer]) -> dict[str, int]:
    return wire.usage(answers[0].prompt_tokens, sum(answer.completion_tokens for answer in answers))


async def _events(chat: _Chat) -> AsyncIterator[bytes]:
    """The server-sent events of a stream; the log is written before the last choice is finished."""
    answers: dict[int, Answer] = {}
    logged = False
    try:
        for index in range(len(chat.streams)):
            yield _event(_chunk(chat, index, {"role": "assistant", "content": "", "refusal": None}))
        async with contextlib.aclosing(_merged(chat.streams)) as pieces:
            async for index, piece in pieces:
                if not chat.request.silent and (piece.text or (piece.logprobs and chat.request.logprobs)):
                    yield _event(_chunk(chat, index, {"content": piece.text}, logprobs=piece.logprobs))
                if piece.answer is None:
                    continue
                answers[index] = answer = _limited(chat.request, piece.answer)
                if answer.tool_calls:
                    yield _event(_chunk(chat, index, {"tool_calls": wire.tool_calls(answer.tool_calls, indexed=True)}))
                if len(answers) == len(chat.streams):
                    logged = True
                    await chat.log([answers[i] for i in range(len(answers))])
                    await chat.keep([answers[i] for i in range(len(answers))])
                yield _event(_chunk(chat, index, {}, finish=answer.finish_reason))
        if chat.request.include_usage:
            yield _event({**_chunk(chat, 0, {}), "choices": [], "usage": _usage([answers[i] for i in range(len(answers))])})
        yield b"data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - the status line is sent already: an error event is the only way left to tell
        told = as_api_error(error)
        if not logged:
            logged = True
            await chat.log([], told.status, told.message)
        yield _event(told.body)
    finally:
        chat.cancel()
        if not logged:  # the client left: this task is being cancelled, so the log is written by one of its own
            chat.state.spawn(chat.log(list(answers.values()), GONE, "the client left"))


def _chunk(
    chat: _Chat, index: int, delta: dict[str, Any], *, finish: str | None = None, logprobs: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    shown = {"content": list(logprobs), "refusal": None} if logprobs and chat.request.logprobs else None
    chunk = wire.chunk(chat.identity, index, delta, finish=finish, logprobs=shown)
    return {**chunk, "usage": None} if chat.request.include_usage else chunk


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"


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
