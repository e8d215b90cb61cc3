"""POST /v1/completions, the older endpoint: a text is continued as it is, without a chat template; knows nothing about models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.exchange import Live, asks, attended, sse, target_of
from tunesmith.api.http import reply
from tunesmith.api.state import state_of
from tunesmith.core import wire
from tunesmith.core.types import Answer, Message, Record, Sampling
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.answered import Exchange, Outcome, outcome_of
from tunesmith.deploy.engine import Stream
from tunesmith.models.base import Model, batching

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
            max_tokens=max(1, int(limit)),
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


@asks("completions", "cmpl")
async def create(request: Request, exchange: Exchange, body: bytes) -> Response:
    """The endpoint. A variant's instruction has no place here: a text is continued as it is."""
    state, asked = state_of(request), _read(body)
    ignored = {"x-tunesmith-ignored": names} if (names := ",".join(wire.ignored(body))) else {}
    target = await target_of(request, exchange, asked.model)
    prompts = _prompts(asked.prompt, target.model)
    texts = [_text_of(target.model, prompt) for prompt in prompts]
    exchange.messages = (Message(role="user", content="\n".join(texts)),)
    sampling = asked.sampling(target.defaults)
    streams = [state.answering.complete(target.model, prompt, sampling, i) for prompt in prompts for i in range(asked.each)]
    shown = [text for text in texts for _ in range(asked.choices)]
    identity = {"id": exchange.id, "object": "text_completion", "created": int(exchange.created), "model": asked.model}

    def cancel() -> None:
        for stream in streams:
            stream.cancel()

    if asked.stream:
        live: dict[int, Answer] = {}
        return Live(state, exchange, live, cancel).response(_events(asked, exchange, identity, streams, shown, live), ignored)
    try:
        answers = await attended(request, asyncio.gather(*(stream.whole() for stream in streams)))
    finally:
        cancel()
    best = [answer for i in range(len(prompts)) for answer in _best(answers[i * asked.each : (i + 1) * asked.each], asked.choices)]
    used = _usage(answers, asked.each)
    await exchange.end(_outcome(best, used))
    choices = [_choice(i, answer, asked, before) for i, (answer, before) in enumerate(zip(best, shown, strict=True))]
    return reply({**identity, "choices": choices, "usage": used}, headers=ignored)


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


def _choice(index: int, answer: Answer, asked: _Body, before: str) -> dict[str, Any]:
    text = "" if asked.max_tokens == 0 else answer.text
    finish = "length" if asked.max_tokens == 0 or answer.finish_reason == "length" else "stop"
    logprobs = _logprobs(answer.logprobs, len(before) if asked.echo else 0) if asked.logprobs is not None else None
    return {"text": before + text if asked.echo else text, "index": index, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokens: Sequence[dict[str, Any]], offset: int) -> dict[str, Any]:
    """The older shape: parallel lists."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens],
        "text_offset": offsets,
    }


async def _events(
    asked: _Body, exchange: Exchange, identity: dict[str, Any], streams: list[Stream], shown: list[str], answers: dict[int, Answer]
) -> AsyncGenerator[bytes]:
    """One choice after the other; each was asked at once, so the later ones wait only here."""
    for index, (stream, before) in enumerate(zip(streams, shown, strict=True)):
        if asked.echo and before:
            yield _event(identity, {"text": before, "index": index, "logprobs": None, "finish_reason": None})
        async for piece in stream:
            exchange.first_token()
            logprobs = _logprobs(piece.logprobs, 0) if asked.logprobs is not None and piece.logprobs else None
            if piece.text or logprobs:
                yield _event(identity, {"text": piece.text, "index": index, "logprobs": logprobs, "finish_reason": None})
            if piece.answer is not None:
                answers[index] = piece.answer
                used = _usage(list(answers.values()), asked.choices)
                if len(answers) == len(streams):
                    await exchange.end(_outcome(list(answers.values()), used))
                finish = "length" if piece.answer.finish_reason == "length" else "stop"
                yield _event(identity, {"text": "", "index": index, "logprobs": None, "finish_reason": finish})
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield sse({**identity, "choices": [], "usage": _usage(list(answers.values()), asked.choices)})
    yield b"data: [DONE]\n\n"


def _event(identity: dict[str, Any], choice: dict[str, Any]) -> bytes:
    return sse({**identity, "choices": [choice]})
