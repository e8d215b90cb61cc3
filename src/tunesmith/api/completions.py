"""POST /v1/completions, the older endpoint: a text is continued as it is, without a chat template; knows nothing about models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.exchange import Live, asks, attended, sse, target_of
from tunesmith.api.http import reply
from tunesmith.api.in_turn import begun, in_turn
from tunesmith.api.state import state_of
from tunesmith.core import wire
from tunesmith.core.completion_logprobs import LogprobLists, joined, spelled
from tunesmith.core.types import Answer, Message, Record, Sampling
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.answered import Exchange, Outcome, outcome_of
from tunesmith.deploy.engine import Answering, Stream
from tunesmith.deploy.router import Target
from tunesmith.models.base import Model, batching, scoring

_MOST_CHOICES, _MOST_PROMPTS = 128, 64


class _StreamOptions(Record, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Body(Record, frozen=True):
    model: str
    prompt: str | list[Any] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | tuple[str, ...] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None

    @property
    def choices(self) -> int:
        """How many answers to each prompt are shown."""
        return 1 if self.n is None else self.n

    @property
    def each(self) -> int:
        """How many are drawn, of which the best are shown."""
        return max(self.choices, self.best_of or 0)

    def sampling(self, defaults: Mapping[str, float]) -> Sampling:
        """How they are drawn. What the request leaves open is as in `defaults`, else as at OpenAI. Ranking needs log-probabilities."""
        limit = defaults.get("max_tokens", 16) if self.max_tokens is None else self.max_tokens
        return Sampling(
            max_tokens=int(limit),
            temperature=defaults.get("temperature", 1.0) if self.temperature is None else self.temperature,
            top_p=defaults.get("top_p", 1.0) if self.top_p is None else self.top_p,
            stop=_stops(self),
            seed=self.seed,
            top_logprobs=self.logprobs if self.logprobs is not None else 0 if self.each > self.choices else None,
        )


def _read(body: bytes) -> _Body:
    tree = wire.decode_object(body)
    wire.take_ignored(tree)
    asked = wire.convert(tree, _Body)
    choices, best_of = asked.choices, asked.best_of or asked.choices  # 0 is what None is
    for name, value, low, high in (
        ("n", choices, 1, _MOST_CHOICES),
        ("best_of", best_of, choices, _MOST_CHOICES),
        ("max_tokens", 16 if asked.max_tokens is None else asked.max_tokens, 0, 1 << 24),
        ("temperature", 1.0 if asked.temperature is None else asked.temperature, 0, 2),
        ("top_p", 1.0 if asked.top_p is None else asked.top_p, 0, 1),
        ("logprobs", asked.logprobs or 0, 0, 5),
        ("stop", len(_stops(asked)), 0, 4),
    ):
        if not low <= value <= high:
            raise BadRequest(f"'{name}' is {value}", param=name, code="invalid_value", allowed=f"{low} to {high}")
    if asked.stream and best_of > choices:
        raise BadRequest("'best_of' cannot be streamed", param="best_of", code="invalid_value", allowed="no more than n")
    return asked


def _stops(asked: _Body) -> tuple[str, ...]:
    return (asked.stop,) if isinstance(asked.stop, str) else asked.stop or ()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt: its text as it is shown, its tokens' log-probabilities where these are echoed, and the answers to it on their way."""

    text: str
    logprobs: list[dict[str, Any]]
    streams: list[Stream]


@dataclass(frozen=True, slots=True)
class _Completion:
    """One request on its way."""

    asked: _Body
    exchange: Exchange
    prompts: list[_Prompt]

    @property
    def identity(self) -> dict[str, Any]:
        """What a completion and all chunks of a stream have in common."""
        return {
            "id": self.exchange.id,
            "object": "text_completion",
            "created": int(self.exchange.created),
            "model": self.asked.model,
        }

    @property
    def streams(self) -> list[Stream]:
        """Every answer on its way."""
        return [stream for prompt in self.prompts for stream in prompt.streams]

    def cancel(self) -> None:
        """Stop what is still being answered."""
        for stream in self.streams:
            stream.cancel()


@asks("completions", "cmpl-")
async def create(request: Request, exchange: Exchange, body: bytes) -> Response:
    """The endpoint. A variant's instruction has no place here: a text is continued as it is."""
    state = state_of(request)
    asked = await state.answering.away(_read, body)
    ignored = {"x-tunesmith-ignored": names} if (names := ",".join(wire.ignored(body))) else {}
    target = await target_of(request, exchange, asked.model)
    state.shadows.skip(exchange, target, "texts to continue are not copied, chats and responses are")
    prompts, answers = await attended(request, in_turn(exchange, target, partial(_ask, state.answering, exchange, asked)))
    completion = _Completion(asked, exchange, prompts)
    if asked.stream:
        live: dict[int, Answer] = {}
        return Live(state, exchange, live, completion.cancel).response(_events(completion, live), ignored)
    try:
        answers = answers or await attended(request, asyncio.gather(*(stream.whole() for stream in completion.streams)))
    finally:
        completion.cancel()
    best = [_best(answers[i * asked.each : (i + 1) * asked.each], asked.choices) for i in range(len(prompts))]
    used = _usage(answers, asked.each)
    await exchange.end(_outcome([answer for several in best for answer in several], used))
    pairs = [(prompt, answer) for prompt, several in zip(completion.prompts, best, strict=True) for answer in several]
    choices = [_choice(i, prompt, answer, asked) for i, (prompt, answer) in enumerate(pairs)]
    return reply({**completion.identity, "choices": choices, "usage": used}, headers=ignored)


async def _ask(answering: Answering, exchange: Exchange, asked: _Body, target: Target) -> tuple[list[_Prompt], list[Answer]]:
    """Every prompt asked; of one of several variants, which another may replace, with the whole answers, or once the streams have begun."""
    given = await answering.away(_prompts, asked.prompt, target.model)
    texts = await answering.away(lambda: [_text_of(target.model, prompt) for prompt in given])
    exchange.messages = (Message(role="user", content="\n".join(texts)),)
    sampling = asked.sampling(target.defaults)
    prompts = await _all_or_none([_asked(answering, target.model, asked, sampling, *pair) for pair in zip(given, texts, strict=True)])
    streams = [stream for prompt in prompts for stream in prompt.streams]
    return prompts, await begun(streams, whole=not asked.stream) if target.several else []


async def _asked(answering: Answering, model: Model, asked: _Body, sampling: Sampling, given: str | list[int], text: str) -> _Prompt:
    """Ask for the answers to one prompt, and for the log-probabilities of its tokens where it is echoed with them."""
    streams = await answering.complete(model, given, sampling, range(asked.each))
    if not asked.echo:
        return _Prompt("", [], streams)
    if asked.logprobs is None or not given:
        return _Prompt(text, [], streams)
    try:
        logprobs = await answering.computed(_scored, model, given, asked.logprobs)
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return _Prompt(text if isinstance(given, str) else spelled(logprobs), logprobs, streams)


def _scored(model: Model, given: str | list[int], top: int) -> list[dict[str, Any]]:
    engine, scores = batching(model), scoring(model)
    if engine is None or scores is None:
        raise BadRequest(f"'{model.name}' tells no log-probabilities of a prompt", param="echo", code="unsupported_value", allowed="false")
    return scores.prompt_logprobs(engine.encode(given) if isinstance(given, str) else given, top)


async def _all_or_none(made: Sequence[Coroutine[Any, Any, _Prompt]]) -> list[_Prompt]:
    """All prompts once they are asked; when one is refused, the others are stopped."""
    prompts = await asyncio.gather(*made, return_exceptions=True)
    refused = [prompt for prompt in prompts if isinstance(prompt, BaseException)]
    asked = [prompt for prompt in prompts if isinstance(prompt, _Prompt)]
    for stream in (stream for prompt in asked if refused for stream in prompt.streams):
        stream.cancel()
    if refused:
        raise refused[0]
    return asked


def _outcome(answers: Sequence[Answer], used: Mapping[str, int]) -> Outcome:
    outcome = outcome_of(answers, used["prompt_tokens"])
    return msgspec.structs.replace(outcome, completion_tokens=used["completion_tokens"])


def _usage(answers: Sequence[Answer], each: int) -> dict[str, int]:
    return wire.usage(sum(answer.prompt_tokens for answer in answers[::each]), sum(answer.completion_tokens for answer in answers))


def _best(answers: Sequence[Answer], choices: int) -> list[Answer]:
    """The `choices` answers with the highest log-probability per token, as OpenAI's best_of chooses."""
    if len(answers) == choices:
        return list(answers)

    def mean(answer: Answer) -> float:
        values = [token["logprob"] for token in answer.logprobs]
        return sum(values) / len(values) if values else float("-inf")

    return sorted(answers, key=mean, reverse=True)[:choices]


def _prompts(given: Any, model: Model) -> list[str | list[int]]:
    """Texts, or token ids of a local model. Raises BadRequest."""
    if given is None:
        given = ""
    entries = [given] if isinstance(given, str) or (given and all(type(token) is int for token in given)) else given
    if not 1 <= len(entries) <= _MOST_PROMPTS:
        raise BadRequest(f"'prompt' has {len(entries)} entries", param="prompt", code="invalid_value", allowed=f"1 to {_MOST_PROMPTS}")
    size = engine.vocabulary if (engine := batching(model)) is not None else 0
    for entry in entries:
        ids = isinstance(entry, list) and entry and all(type(token) is int and 0 <= token < size for token in entry)
        if not isinstance(entry, str) and not ids:
            raise BadRequest(
                f"'prompt' has the entry {str(entry)[:60]!r}",
                param="prompt",
                code="invalid_value",
                allowed=f"texts, or token ids below {size}",
            )
    return list(entries)


def _text_of(model: Model, prompt: str | list[int]) -> str:
    engine = batching(model)
    return prompt if isinstance(prompt, str) else engine.decode(prompt) if engine is not None else ""


def _choice(index: int, prompt: _Prompt, answer: Answer, asked: _Body) -> dict[str, Any]:
    lists = LogprobLists(_start(prompt))
    logprobs = joined(lists.part(prompt.logprobs), lists.part(_drawn(answer))) if asked.logprobs is not None else None
    return {"text": prompt.text + answer.text, "index": index, "logprobs": logprobs, "finish_reason": _finish(answer)}


def _drawn(answer: Answer) -> list[dict[str, Any]]:
    """Every token that was drawn, the one that ended the answer too: clients count them."""
    return [*answer.logprobs, *([answer.end_logprob] if answer.end_logprob is not None else [])]


def _start(prompt: _Prompt) -> int:
    """Where the first token begins: before the text where the tokenizer puts a space of its own there, behind it where the prompt's tokens
    are not told."""
    return len(prompt.text) - len(spelled(prompt.logprobs))


def _finish(answer: Answer) -> str:
    return "length" if answer.finish_reason == "length" else "stop"


async def _events(completion: _Completion, answers: dict[int, Answer]) -> AsyncGenerator[bytes]:
    """One choice after the other; each was asked at once, so the later ones wait only here."""
    asked, exchange, identity = completion.asked, completion.exchange, completion.identity
    pairs = [(prompt, stream) for prompt in completion.prompts for stream in prompt.streams]
    for index, (prompt, stream) in enumerate(pairs):
        lists = LogprobLists(_start(prompt))
        if prompt.text or prompt.logprobs:
            shown = lists.part(prompt.logprobs) if prompt.logprobs else None
            yield _event(identity, {"text": prompt.text, "index": index, "logprobs": shown, "finish_reason": None})
        async for piece in stream:
            exchange.first_token()
            end = piece.answer.end_logprob if piece.answer is not None else None
            entries = [*piece.logprobs, *([end] if end is not None else [])]
            logprobs = lists.part(entries) if asked.logprobs is not None and entries else None
            if piece.text or logprobs:
                yield _event(identity, {"text": piece.text, "index": index, "logprobs": logprobs, "finish_reason": None})
            if piece.answer is not None:
                answers[index] = piece.answer
                used = _usage(list(answers.values()), asked.choices)
                if len(answers) == len(pairs):
                    await exchange.end(_outcome(list(answers.values()), used))
                yield _event(identity, {"text": "", "index": index, "logprobs": None, "finish_reason": _finish(piece.answer)})
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield sse({**identity, "choices": [], "usage": _usage(list(answers.values()), asked.choices)})
    yield b"data: [DONE]\n\n"


def _event(identity: dict[str, Any], choice: dict[str, Any]) -> bytes:
    return sse({**identity, "choices": [choice]})
