"""POST /v1/completions, the older endpoint: a text is continued as it is, without a chat template; knows nothing about models."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tunesmith.api.errors import as_api_error
from tunesmith.api.http import project_of, reply
from tunesmith.api.state import state_of
from tunesmith.core import wire
from tunesmith.core.types import Answer, Record, Sampling
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.engine import Stream
from tunesmith.models.base import Model
from tunesmith.models.local import LocalModel

_MOST_CHOICES, _MOST_PROMPTS = 128, 64
_SSE = {"cache-control": "no-cache", "x-accel-buffering": "no"}


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


def _read(body: bytes) -> _Body:
    tree = wire.decode_object(body)
    wire.take_ignored(tree)
    asked = wire.convert(tree, _Body)
    choices = 1 if asked.n is None else asked.n
    best_of = asked.best_of or choices  # 0 is what None is
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


async def create(request: Request) -> Response:
    """The endpoint."""
    state, body = state_of(request), await request.body()
    asked, ignored = _read(body), {"x-tunesmith-ignored": names} if (names := ",".join(wire.ignored(body))) else {}
    model = await state.find(asked.model, project_of(request))
    prompts = _prompts(asked.prompt, model)
    choices = 1 if asked.n is None else asked.n
    each = max(choices, asked.best_of or 0)
    rank = each > choices
    sampling = Sampling(
        max_tokens=max(1, 16 if asked.max_tokens is None else asked.max_tokens),
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        stop=_stops(asked),
        seed=asked.seed,
        top_logprobs=asked.logprobs if asked.logprobs is not None else 0 if rank else None,
    )
    streams = [state.answering.complete(model, prompt, sampling, i) for prompt in prompts for i in range(each)]
    shown = [text for text in map(_text_of(model), prompts) for _ in range(choices)]
    identity = {"id": f"cmpl-{secrets.token_hex(16)}", "object": "text_completion", "created": int(time.time()), "model": asked.model}
    if asked.stream:
        return StreamingResponse(_events(asked, identity, streams, shown), media_type="text/event-stream", headers=_SSE | ignored)
    try:
        answers = await asyncio.gather(*(stream.whole() for stream in streams))
    finally:
        for stream in streams:
            stream.cancel()
    used = _usage(answers, each)
    kept = [answer for i in range(len(prompts)) for answer in _best(answers[i * each : (i + 1) * each], choices)]
    shown_choices = [_choice(i, answer, asked, before) for i, (answer, before) in enumerate(zip(kept, shown, strict=True))]
    answer = reply({**identity, "choices": shown_choices, "usage": used})
    answer.headers.update(ignored)
    return answer


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
    entries = [given] if isinstance(given, str) or (given and all(type(one) is int for one in given)) else given
    if not 1 <= len(entries) <= _MOST_PROMPTS:
        raise BadRequest(f"'prompt' has {len(entries)} entries", param="prompt", code="invalid_value", allowed=f"1 to {_MOST_PROMPTS}")
    size = model.renderer.vocabulary if isinstance(model, LocalModel) else 0
    for entry in entries:
        ids = isinstance(entry, list) and entry and all(type(one) is int and 0 <= one < size for one in entry)
        if not isinstance(entry, str) and not ids:
            raise BadRequest(
                f"'prompt' has the entry {str(entry)[:60]!r}",
                param="prompt",
                code="invalid_value",
                allowed=f"texts, or token ids below {size}",
            )
    return list(entries)


def _text_of(model: Model) -> Any:
    return lambda prompt: prompt if isinstance(prompt, str) else model.renderer.decode(prompt) if isinstance(model, LocalModel) else ""


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


async def _events(asked: _Body, identity: dict[str, Any], streams: list[Stream], shown: list[str]) -> AsyncIterator[bytes]:
    """One choice after the other; each was asked at once, so the later ones wait only here."""
    answers: list[Answer] = []
    try:
        for index, (stream, before) in enumerate(zip(streams, shown, strict=True)):
            if asked.echo and before:
                yield _event(identity, {"text": before, "index": index, "logprobs": None, "finish_reason": None})
            async for piece in stream:
                logprobs = _logprobs(piece.logprobs, 0) if asked.logprobs is not None and piece.logprobs else None
                if piece.text or logprobs:
                    yield _event(identity, {"text": piece.text, "index": index, "logprobs": logprobs, "finish_reason": None})
                if piece.answer is not None:
                    answers.append(piece.answer)
                    finish = "length" if piece.answer.finish_reason == "length" else "stop"
                    yield _event(identity, {"text": "", "index": index, "logprobs": None, "finish_reason": finish})
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield b"data: " + msgspec.json.encode({**identity, "choices": [], "usage": _usage(answers, max(1, asked.n or 1))}) + b"\n\n"
        yield b"data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - the status line is sent already: an error event is the only way left to tell
        yield b"data: " + msgspec.json.encode(as_api_error(error).body) + b"\n\n"
    finally:
        for stream in streams:
            stream.cancel()


def _event(identity: dict[str, Any], choice: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode({**identity, "choices": [choice]}) + b"\n\n"
