"""Answers as streams for an asyncio server, from models that live in threads; knows nothing about HTTP or names.

All local models on one base share one decoder thread, so their rows are answered in one batch. Any other model is asked in a pool of
threads and answers in one piece. Who stops listening cancels its row.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from tunesmith.core.errors import TunesmithError, UsageError
from tunesmith.core.types import Answer, Message, Prompt, Sampling
from tunesmith.deploy.constrain import Constraint, HeldDecoder
from tunesmith.models.base import Model
from tunesmith.models.local import LocalModel
from tunesmith.models.local_answer import Reply
from tunesmith.models.openai_api import OpenAIModel


class Overloaded(TunesmithError):
    """Too many requests are waiting; `retry_after_s` is when to ask again."""

    def __init__(self, waiting: int, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{waiting} requests are waiting already", remedy=f"ask again in {retry_after_s} s")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some words of an answer, the log-probabilities that came with them, and on the last piece the whole answer."""

    text: str
    logprobs: tuple[dict[str, Any], ...] = ()
    answer: Answer | None = None


class Stream:
    """The pieces of one answer. Iterate once; `cancel` when nobody listens any more."""

    def __init__(self, cancel: Callable[[Stream], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        self._cancel = cancel

    def put(self, piece: Piece | BaseException) -> None:
        """Called from the model's thread."""
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:
            self.cancel()  # the server's loop is closed: nobody listens

    def cancel(self) -> None:
        """Stop the answer; nothing happens when it has ended."""
        self._cancel(self)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            piece = await self._pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            if piece.answer is not None:
                return

    async def whole(self) -> Answer:
        """The answer when it is whole."""
        async for piece in self:
            if piece.answer is not None:
                return piece.answer
        raise RuntimeError("a stream ended without its last piece")


@dataclass(slots=True, eq=False)
class _Job:
    model: LocalModel
    prompt: Prompt
    sampling: Sampling
    choice: int
    ids: list[int]
    stream: Stream
    asked: float
    constraint: Constraint | None = None
    sent_logprobs: int = 0


class _Decoding:
    """The thread that owns the decoder of one base."""

    def __init__(self, model: LocalModel) -> None:
        self._decoder = HeldDecoder(model)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._rows: dict[int, tuple[_Job, Reply]] = {}
        self._new_decoder: Callable[[], HeldDecoder] = partial(HeldDecoder, model)
        self.load = (0, 0)
        self.cache_use = 0.0
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, job: _Job) -> None:
        """Queue a row."""
        self._inbox.put(lambda: self._add(job))

    def cancel(self, stream: Stream) -> None:
        """Forget the row of a stream."""
        self._inbox.put(lambda: self._drop(stream))

    def close(self) -> None:
        """End the thread after the current step; rows that are still open are dropped."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                command = self._inbox.get(block=not self._decoder.busy)
            except queue.Empty:
                self._step()
                continue
            if command is None:
                return
            command()
            self.load, self.cache_use = self._decoder.load, self._decoder.cache_use

    def _add(self, job: _Job) -> None:
        try:
            request = job.model.request(job.prompt, job.ids, job.sampling, share=job.model.head(job.prompt, job.ids), choice=job.choice)
            number = self._decoder.add(request)
        except TunesmithError as error:
            job.stream.put(error)
            return
        if job.constraint is not None:
            try:
                self._decoder.hold(number, job.constraint)
            except TunesmithError as error:
                self._decoder.cancel(number)
                job.stream.put(error)
                return
        reply = Reply(job.model.renderer, job.prompt, job.sampling, prompt_tokens=len(job.ids), started=job.asked)
        self._rows[number] = (job, reply)

    def _drop(self, stream: Stream) -> None:
        for number in [number for number, (job, _) in self._rows.items() if job.stream is stream]:
            self._decoder.cancel(number)
            del self._rows[number]

    def _step(self) -> None:
        try:
            tokens = self._decoder.step()
        except Exception as error:  # noqa: BLE001 - every waiting client must hear of it, and the thread must live
            for job, _ in self._rows.values():
                job.stream.put(error)
            self._rows.clear()
            self._decoder = self._new_decoder()
            return
        for token in tokens:
            if token.sequence not in self._rows:
                continue
            job, reply = self._rows[token.sequence]
            text = reply.take(token)
            if reply.stopped_early:
                self._decoder.cancel(token.sequence)
            answer = reply.answer() if reply.done else None
            if answer is not None:
                del self._rows[token.sequence]
            if job.prompt.tools:  # what may become a tool call is not shown as words
                text = answer.text if answer else ""
            logprobs, job.sent_logprobs = tuple(reply.logprobs[job.sent_logprobs :]), len(reply.logprobs)
            if text or logprobs or answer is not None:
                job.stream.put(Piece(text, logprobs, answer))
        self.load, self.cache_use = self._decoder.load, self._decoder.cache_use


class Answering:
    """Asks models for streams. `max_waiting` requests may wait at one base; more are refused with Overloaded."""

    def __init__(self, *, max_waiting: int = 512, threads: int = 16) -> None:
        self._decoding: dict[int, _Decoding] = {}
        self._max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="answer")
        self._lock = threading.Lock()

    def ask(self, model: Model, prompt: Prompt, sampling: Sampling, choice: int = 0, *, constraint: Constraint | None = None) -> Stream:
        """The answer of `model` as a stream; `choice` tells the n answers to one apart. Raises DataError, UsageError, Overloaded.

        A local model is held to `constraint`; another model is asked for its schema, and cannot be held to calling a tool.
        """
        if constraint is not None and not isinstance(model, LocalModel):
            if not isinstance(model, OpenAIModel) or constraint.schema is None:
                raise UsageError(f"'{model.name}' cannot be held to a form of answer", allowed="local models; schemas at endpoints")
            prompt = replace(prompt, response_schema=constraint.schema)
        if isinstance(model, LocalModel):
            return self._decode(model, prompt, sampling, choice, model.renderer.prompt(prompt), constraint)
        stream = Stream(lambda _: None)
        self._pool.submit(_whole, model, prompt, _seeded(sampling, choice), stream)
        return stream

    def complete(self, model: Model, given: str | Sequence[int], sampling: Sampling, choice: int = 0) -> Stream:
        """The continuation of a text (or of token ids) without a chat template; a model that only chats is told it. Raises as `ask`."""
        prompt = Prompt(messages=(Message(role="user", content=given if isinstance(given, str) else ""),))
        if isinstance(model, LocalModel):
            ids = model.renderer.encode(given) if isinstance(given, str) else list(given)
            return self._decode(model, prompt, sampling, choice, ids or [min(model.renderer.stop_ids)])
        return self.ask(model, prompt, sampling, choice)

    def _decode(
        self, model: LocalModel, prompt: Prompt, sampling: Sampling, choice: int, ids: list[int], constraint: Constraint | None = None
    ) -> Stream:
        decoding = self._decoding_of(model)
        if decoding.load[1] >= self._max_waiting:
            raise Overloaded(decoding.load[1])
        stream = Stream(decoding.cancel)
        decoding.submit(_Job(model, prompt, sampling, choice, ids, stream, time.perf_counter(), constraint))
        return stream

    def load(self) -> tuple[int, int, float]:
        """(rows being answered, rows waiting, largest share of a cache in use)."""
        loads = list(self._decoding.values())
        return sum(d.load[0] for d in loads), sum(d.load[1] for d in loads), max((d.cache_use for d in loads), default=0.0)

    def close(self) -> None:
        """End the threads."""
        for decoding in self._decoding.values():
            decoding.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decoding_of(self, model: LocalModel) -> _Decoding:
        with self._lock:
            key = id(model.engine)
            if key not in self._decoding:
                self._decoding[key] = _Decoding(model)
            return self._decoding[key]


def _seeded(sampling: Sampling, choice: int) -> Sampling:
    if sampling.seed is None or choice == 0:
        return sampling
    return replace(sampling, seed=sampling.seed + choice)


def _whole(model: Model, prompt: Prompt, sampling: Sampling, stream: Stream) -> None:
    try:
        answer = model.answer([prompt], sampling)[0]
    except Exception as error:  # noqa: BLE001 - the client that waits must hear of any failure
        stream.put(error)
        return
    stream.put(Piece(answer.text, answer.logprobs, answer))
