"""Answers as streams for an asyncio server, from models that live in threads; knows nothing about HTTP or names.

Models that answer in batches (`models.base.Batching`) share one thread for each batch, adapters on one base for one. Any other model is
asked in a pool of threads and answers in one piece. Who stops listening cancels its row.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from tunesmith.core.errors import TunesmithError, UsageError
from tunesmith.core.types import Answer, Message, Prompt, Sampling
from tunesmith.models.base import Asked, Batching, Constraint, Model, Piece, abilities, batching


class Overloaded(TunesmithError):
    """Too many requests are waiting; `retry_after_s` is when to ask again."""

    def __init__(self, waiting: int, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{waiting} requests are waiting already", remedy=f"ask again in {retry_after_s} s")


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


class _Decoding:
    """The thread that owns one batch."""

    def __init__(self, model: Batching) -> None:
        self._fresh = model.batch
        self._batch = model.batch()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[int, Stream] = {}
        self.load = (0, 0)
        self.cache_use = 0.0
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, asked: Asked, stream: Stream) -> None:
        """Queue a row, whose pieces go to `stream`."""
        self._inbox.put(lambda: self._add(asked, stream))

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
                command = self._inbox.get(block=not self._batch.busy)
            except queue.Empty:
                self._step()
                continue
            if command is None:
                return
            command()
            self.load, self.cache_use = self._batch.load, self._batch.cache_use

    def _add(self, asked: Asked, stream: Stream) -> None:
        try:
            self._streams[self._batch.add(asked)] = stream
        except Exception as error:  # noqa: BLE001 - whatever an engine raises of one row: its client must hear of it, and the thread must live
            stream.put(error)

    def _drop(self, stream: Stream) -> None:
        for number in [number for number, other in self._streams.items() if other is stream]:
            self._batch.cancel(number)
            del self._streams[number]

    def _step(self) -> None:
        try:
            pieces = self._batch.step()
        except Exception as error:  # noqa: BLE001 - every waiting client must hear of it, and the thread must live
            for stream in self._streams.values():
                stream.put(error)
            self._streams.clear()
            self._batch = self._fresh()
            return
        for number, piece in pieces:
            self._streams[number].put(piece)
            if piece.answer is not None:
                del self._streams[number]
        self.load, self.cache_use = self._batch.load, self._batch.cache_use


class Answering:
    """Asks models for streams. `max_waiting` requests may wait at one base; more are refused with Overloaded."""

    def __init__(self, *, max_waiting: int = 512, threads: int = 16) -> None:
        self._decoding: dict[Hashable, _Decoding] = {}
        self._max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="answer")
        self._lock = threading.Lock()

    def ask(self, model: Model, prompt: Prompt, sampling: Sampling, choice: int = 0, *, constraint: Constraint | None = None) -> Stream:
        """The answer of `model` as a stream; `choice` tells the n answers to one apart. Raises DataError, UsageError, Overloaded.

        A model that can be held to a grammar is held to `constraint`; one that takes a schema is asked for it, and others are refused.
        """
        able = abilities(model)
        if constraint is not None and not able.grammar:
            if not able.schema or constraint.schema is None:
                raise UsageError(f"'{model.name}' cannot be held to a form of answer", allowed="local models; schemas at endpoints")
            prompt, constraint = replace(prompt, response_schema=constraint.schema), None
        if (engine := batching(model)) is not None:
            return self._decode(Asked(engine, prompt, engine.encode(prompt), sampling, choice, time.perf_counter(), constraint))
        stream = Stream(lambda _: None)
        self._pool.submit(_whole, model, prompt, _seeded(sampling, choice), stream)
        return stream

    def complete(self, model: Model, given: str | Sequence[int], sampling: Sampling, choice: int = 0) -> Stream:
        """The continuation of a text (or of token ids) without a chat template; a model that only chats is told it. Raises as `ask`."""
        prompt = Prompt(messages=(Message(role="user", content=given if isinstance(given, str) else ""),))
        if (engine := batching(model)) is not None:
            ids = engine.encode(given) if isinstance(given, str) else list(given)
            return self._decode(Asked(engine, prompt, ids, sampling, choice, time.perf_counter()))
        return self.ask(model, prompt, sampling, choice)

    def _decode(self, asked: Asked) -> Stream:
        decoding = self._decoding_of(asked.model)
        if decoding.load[1] >= self._max_waiting:
            raise Overloaded(decoding.load[1])
        stream = Stream(decoding.cancel)
        decoding.submit(asked, stream)
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

    def _decoding_of(self, model: Batching) -> _Decoding:
        with self._lock:
            key = model.batch_key
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
