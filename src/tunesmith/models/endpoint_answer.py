"""What an endpoint answered to a chat completion, read whatever shape it has; knows nothing about how it was asked.

Servers differ: errors come with status 200, choices are missing, content is a list of parts, arguments are objects.
"""

from __future__ import annotations

import json
from typing import Any, cast

import msgspec

from tunesmith.core.errors import SourceUnavailable
from tunesmith.core.types import Answer, Function, ToolCall

_AGAIN = frozenset({408, 409, 429})
_SHOWN = 200  # characters of what came that an error shows
_REASONS = frozenset(["stop", "length", "tool_calls", "content_filter"])


class NoAnswer(SourceUnavailable):
    """An endpoint said that all is well and gave no answer; `passing` says whether asking again may help."""

    def __init__(self, what: str, *, where: str, passing: bool = False) -> None:
        self.passing = passing
        super().__init__(what, where=where, allowed="a chat completion with choices")


def answer_of(body: bytes, *, seconds: float, where: str) -> Answer:
    """The first choice of a chat completion, which took so long. Raises NoAnswer."""
    completion = _object(body, where)
    error, choices = completion.get("error"), completion.get("choices")
    if error and not choices:
        raise NoAnswer(f"the endpoint answered with an error: {_words(error)}", where=where, passing=_passes(error))
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise NoAnswer(f"the endpoint answered without choices: {body[:_SHOWN].decode('utf-8', 'replace')}", where=where)
    choice, usage = choices[0], completion.get("usage") or {}
    message = choice.get("message") or {}
    calls = tuple(_calls(message))
    reason = "tool_calls" if calls and choice.get("finish_reason") in ("function_call", None) else choice.get("finish_reason")
    return Answer(
        text=_text(message.get("content")) or _text(message.get("refusal")),
        reasoning_content=_text(message.get("reasoning_content")) or _text(message.get("reasoning")),
        finish_reason=cast(Any, reason if reason in _REASONS else "stop"),
        tool_calls=calls,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        first_token_s=seconds,
        total_s=seconds,
        logprobs=tuple((choice.get("logprobs") or {}).get("content") or ()),
    )


def _object(body: bytes, where: str) -> dict[str, Any]:
    try:
        completion = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NoAnswer(f"the endpoint answered with no JSON: {body[:_SHOWN].decode('utf-8', 'replace')}", where=where) from error
    if not isinstance(completion, dict):
        raise NoAnswer(f"the endpoint answered with a JSON {type(completion).__name__}", where=where)
    return completion


def _words(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:_SHOWN]


def _passes(error: Any) -> bool:
    code = str(error.get("code", error.get("status"))) if isinstance(error, dict) else ""
    return code.isdigit() and (int(code) in _AGAIN or int(code) >= 500)


def _text(content: Any) -> str:
    """Text, or the texts of a list of parts; what was thought before is no part of the answer."""
    if isinstance(content, list):
        words = [part.get("text", part.get("refusal")) if isinstance(part, dict) else part for part in content]
        return "".join(word for word in words if isinstance(word, str))
    return content if isinstance(content, str) else ""


def _calls(message: dict[str, Any]) -> list[ToolCall]:
    older = message.get("function_call")
    raw = message.get("tool_calls") or ([{"function": older}] if isinstance(older, dict) else [])
    made = []
    for i, call in enumerate(raw):
        function = call.get("function") or {} if isinstance(call, dict) else {}
        arguments = function.get("arguments")
        words = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        made.append(ToolCall(id=str(call.get("id") or f"call_{i}"), function=Function(name=str(function.get("name", "")), arguments=words)))
    return made
