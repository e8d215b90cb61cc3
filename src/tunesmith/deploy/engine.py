"""Answers as streams for an asyncio server, from models that live in threads; knows nothing about HTTP or names.

Models that answer in batches (`models.base.Batching`) share one thread for each batch, adapters on one base for one. Any other model is
asked in a pool of threads and answers in one piece. Who stops listening cancels its row.
"""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from msgspec.structs import replace

from tunesmith.core.errors import ContextExceeded, TunesmithError, UsageError
from tunesmith.core.types import Answer, Message, Prompt, Sampling
from tunesmith.models.base import Asked, Batching, Constraint, Model, Passing, Piece, abilities, batching, grounding, loaded

P = ParamSpec("P")
T = TypeVar("T")
_READERS = 4  # threads that render and tokenize prompts


class Unloaded(TunesmithError):
    """A model that is deployed, and could not be loaded."""


class Overloaded(TunesmithError):
    """Too many requests are waiting; `retry_after_s` is when to ask again."""

    def __init__(self, waiting: int, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{waiting} requests are waiting already", remedy=f"ask again in {retry_after_s} s")


class Stream:
    """The pieces of one answer. Iterate once; `cancel` when nobody listens any more. `grounded` is what a model that looked something up
    has to say of the whole answer."""

    def __init__(self, cancel: Callable[[Stream], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        self._taken: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._cancel = cancel
        self._first: Piece | BaseException | None = None
        self.grounded: Callable[[Answer], Answer] | None = None

    def put(self, piece: Piece | BaseException) -> None:
        """Called from the model's thread."""
        self._tell(self._pieces.put_nowait, piece)

    def taken(self, refusal: BaseException | None = None) -> None:
        """Called from the model's thread: the row waits for its turn now, or is refused."""
        self._tell(self._settle, refusal)
        if refusal is not None:
            self.put(refusal)

    def _settle(self, refusal: BaseException | None) -> None:
        if not self._taken.done():
            self._taken.set_result(refusal)

    def _tell(self, on_loop: Callable[[Any], None], what: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(on_loop, what)
        except RuntimeError:
            self.cancel()  # the server's loop is closed: nobody listens

    async def accepted(self) -> None:
        """Wait until the model has taken the row. Raises what it refuses it with."""
        refusal = await asyncio.shield(self._taken)
        if refusal is not None:
            raise refusal

    def cancel(self) -> None:
        """Stop the answer; nothing happens when it has ended."""
        self._cancel(self)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while True:
            piece, self._first = self._first if self._first is not None else await self._pieces.get(), None
            if isinstance(piece, BaseException):
                raise piece
            if piece.answer is not None and self.grounded is not None:
                piece = dataclasses.replace(piece, answer=self.grounded(piece.answer))
            yield piece
            if piece.answer is not None:
                return

    async def begun(self) -> None:
        """Wait for the first piece, which stays in the stream. Raises what the answer fails with before it."""
        if self._first is None:
            self._first = await self._pieces.get()
        if isinstance(self._first, BaseException):
            raise self._first

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
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that wait: in the batch, and for the end of the step that it is in."""
        return self.load[1] + self._inbox.qsize()

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

    def leave(self) -> None:
        """End the thread once every row is answered; no further row may be submitted."""
        self._inbox.put(self._leave)

    def _leave(self) -> None:
        self._leaving = True

    def _run(self) -> None:
        while not (self._leaving and self._inbox.empty() and not self._batch.busy):
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
            stream.taken()
        except Exception as error:  # noqa: BLE001 - whatever an engine raises of one row: its client must hear of it, and the thread must live
            stream.taken(error)

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


class WaitingPlace:
    """A request's place among those that wait at another server. `leave` it once the answer has begun, and when none comes."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        """Make room; nothing happens the second time."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class Answering:
    """Asks models for streams. `max_waiting` requests may wait at one base, as many for a thread that asks a model of whole answers, and as
    many at each other server that requests are passed to; more are refused with Overloaded."""

    def __init__(self, *, max_waiting: int = 512, threads: int = 16) -> None:
        self._decoding: dict[Hashable, _Decoding] = {}
        self._max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="answer")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._lock = threading.Lock()
        self._queued = 0  # answers in one piece for which no thread is free yet
        self._elsewhere: Counter[Hashable] = Counter()  # requests whose answer has not begun, by the server that they were passed to

    async def ask(
        self, model: Model, prompt: Prompt, sampling: Sampling, choices: int = 1, *, constraint: Constraint | None = None
    ) -> list[Stream]:
        """The answers of `model` as streams that it has taken, one for each of `choices`. Raises DataError, UsageError, Overloaded.

        A model that can be held to a grammar is held to `constraint`; one that takes a schema is asked for it, and others are refused. One
        that looks something up does so first, and the model behind it answers.

        The prompt is rendered and tokenized in a thread of its own: the loop goes on, however long it is.
        """
        if (looking := grounding(model)) is not None:
            started = time.perf_counter()
            (made,) = await self.computed(looking.ground, [prompt], sampling)
            complete = partial(made.complete, took_s=time.perf_counter() - started)
            streams = await self.ask(looking.model, made.prompt, sampling, choices, constraint=constraint)
            for stream in streams:
                stream.grounded = complete
            return streams
        able = abilities(model)
        if constraint is not None and not able.grammar:
            if not able.schema or constraint.schema is None:
                raise UsageError(f"'{model.name}' cannot be held to a form of answer", allowed="local models; schemas at endpoints")
            prompt, constraint = replace(prompt, response_schema=constraint.schema), None
        engine, since = batching(model), time.perf_counter()
        if engine is None:
            return self._all_piecewise(model, prompt, [_seeded(sampling, choice) for choice in range(choices)])
        present, ids = await self.away(_present, engine, prompt)
        return await self._decode(engine, [Asked(present, prompt, ids, sampling, choice, since, constraint) for choice in range(choices)])

    async def complete(self, model: Model, given: str | Sequence[int], sampling: Sampling, choices: Sequence[int] = (0,)) -> list[Stream]:
        """The continuations of a text (or of token ids) without a chat template, as streams that the model has taken; a model that only
        chats is told it. `choices` number the draws. Raises as `ask`."""
        if grounding(model) is not None:
            raise UsageError(f"'{model.name}' looks passages up for a question, and a text asks none", allowed="/v1/chat/completions")
        prompt = Prompt(messages=(Message(role="user", content=given if isinstance(given, str) else ""),))
        engine, since = batching(model), time.perf_counter()
        if engine is None:
            return self._all_piecewise(model, prompt, [_seeded(sampling, choice) for choice in choices])
        try:
            present, ids = await self.away(_present, engine, given)
            return await self._decode(engine, [Asked(present, prompt, ids, sampling, choice, since, plain=True) for choice in choices])
        except ContextExceeded as error:
            raise ContextExceeded(error.tokens, error.context, param="prompt") from error

    async def away(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what reads a prompt in a thread, so that other requests go on."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, partial(work, *args, **kwargs))

    async def computed(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what computes in a thread, where it takes none from those that read prompts."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))

    def _all_piecewise(self, model: Model, prompt: Prompt, samplings: Sequence[Sampling]) -> list[Stream]:
        """An answer for each sampling; where one is refused, the others are cancelled."""
        streams: list[Stream] = []
        try:
            for sampling in samplings:
                streams.append(self._piecewise(model, prompt, sampling))
        except Overloaded:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _piecewise(self, model: Model, prompt: Prompt, sampling: Sampling) -> Stream:
        """The answer of a model that answers whole prompts only, in one piece; nobody is asked for a stream that was cancelled before.
        Raises Overloaded."""
        with self._lock:
            if self._queued >= self._max_waiting:
                raise Overloaded(self._queued)
            self._queued += 1
        stream = Stream(lambda _: self._dequeued() if not work.cancelled() and work.cancel() else None)
        work = self._pool.submit(self._whole, model, prompt, sampling, stream)
        return stream

    def _whole(self, model: Model, prompt: Prompt, sampling: Sampling, stream: Stream) -> None:
        self._dequeued()
        _whole(model, prompt, sampling, stream)

    def _dequeued(self) -> None:
        with self._lock:
            self._queued -= 1

    async def _decode(self, engine: Batching, rows: Sequence[Asked]) -> list[Stream]:
        """Queue rows in the batch of `engine`; returns when it has taken them all. One that is refused ends the others. The batch outlives
        them, and they alone hold an adapter that was loaded on demand."""
        decoding, first = self._decoding_of(engine), rows[0]
        context = getattr(first.model, "context", None)
        if context is not None and len(first.ids) >= context:
            raise ContextExceeded(len(first.ids), context)
        if decoding.waiting >= self._max_waiting:
            raise Overloaded(decoding.waiting)
        streams = [Stream(decoding.cancel) for _ in rows]
        if first.sampling.max_tokens == 0:
            for stream in streams:
                stream.put(Piece("", (), Answer(text="", finish_reason="length", prompt_tokens=len(first.ids))))
            return streams
        try:
            for asked, stream in zip(rows, streams, strict=True):
                decoding.submit(asked, stream)
            for stream in streams:
                await stream.accepted()
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def wait_at(self, upstream: Passing) -> WaitingPlace:
        """A place for a request that is passed to another server. Raises Overloaded where as many as may wait there do."""
        place = upstream.waits_at
        with self._lock:
            if self._elsewhere[place] >= self._max_waiting:
                raise Overloaded(self._elsewhere[place])
            self._elsewhere[place] += 1
        return WaitingPlace(partial(self._begun_at, place))

    def _begun_at(self, place: Hashable) -> None:
        with self._lock:
            self._elsewhere[place] -= 1
            if not self._elsewhere[place]:
                del self._elsewhere[place]

    def load(self) -> tuple[int, int, float]:
        """(rows being answered, rows waiting, largest share of a cache in use)."""
        loads = list(self._decoding.values())
        waiting = sum(d.load[1] for d in loads) + self._queued + self._elsewhere.total()
        return sum(d.load[0] for d in loads), waiting, max((d.cache_use for d in loads), default=0.0)

    def keep(self, models: Iterable[Model]) -> None:
        """Let go of the batches of all other models, each when its last answer is whole. Call it from the loop that asks."""
        engines = (batching(looking.model if (looking := grounding(model)) is not None else model) for model in models)
        keys = {engine.batch_key for engine in engines if engine is not None}
        with self._lock:
            for key in self._decoding.keys() - keys:
                self._decoding.pop(key).leave()

    def close(self) -> None:
        """End the threads."""
        for decoding in self._decoding.values():
            decoding.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _decoding_of(self, model: Batching) -> _Decoding:
        with self._lock:
            key = model.batch_key
            if key not in self._decoding:
                self._decoding[key] = _Decoding(model)
            return self._decoding[key]


def _present(engine: Batching, asked: Prompt | str | Sequence[int]) -> tuple[Batching, list[int]]:
    """The model in memory, loaded where it is one that is on demand, and the ids of what it is asked. Raises Unloaded where it cannot be
    loaded; else as `encode`."""
    ids = engine.encode(asked) if isinstance(asked, Prompt | str) else list(asked)
    try:
        return cast(Batching, loaded(engine)), ids
    except TunesmithError as error:
        raise Unloaded(f"The model '{engine.name}' could not be loaded: {error.what}", where=error.where, remedy=error.remedy) from error
    except Exception as error:  # whatever a library raises of damaged files
        raise Unloaded(f"The model '{engine.name}' could not be loaded: {type(error).__name__}: {error}") from error


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
