"""What can be read of bytes that pass: the prompt of a request, the words, tool calls and usage of an answer. Knows nothing about HTTP.

Nothing is refused here: the server behind judges requests, and its answers are the client's to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tunesmith.core.types import Function, Message, Role, TextPart, ToolCall
from tunesmith.deploy.answered import Outcome

_LONGEST_INPUTS = 1 << 16  # characters of texts to embed; what is more is left out of the log


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: _Function = _Function()


class _Words(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    message: _Words = _Words()
    delta: _Words = _Words()
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def credible(self) -> bool:
        """Whether these are numbers of tokens at all; no other fits into the log's columns."""
        return all(0 <= tokens < 1 << 31 for tokens in (self.prompt_tokens, self.completion_tokens))


class _Answer(msgspec.Struct, frozen=True):
    id: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None


class _Message(msgspec.Struct, frozen=True):
    role: Role
    content: Any = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Asked(msgspec.Struct, frozen=True):
    messages: list[_Message] = []


class _Problem(msgspec.Struct, frozen=True):
    message: str = ""


class _Failed(msgspec.Struct, frozen=True):
    error: _Problem = _Problem()


_answer, _asked, _failed = msgspec.json.Decoder(_Answer), msgspec.json.Decoder(_Asked), msgspec.json.Decoder(_Failed)
_nothing = _Answer()


def messages(body: bytes) -> tuple[Message, ...]:
    """The messages of a chat, as far as they are any."""
    try:
        return tuple(map(_message, _asked.decode(body).messages))
    except msgspec.DecodeError:
        return ()


def _message(raw: _Message) -> Message:
    content = raw.content
    if isinstance(content, list):
        content = tuple(TextPart(text=part["text"]) for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    content = content if isinstance(content, (str, tuple)) else None
    if not raw.tool_calls and raw.tool_call_id is None:
        return Message(role=raw.role, content=content)
    return Message(role=raw.role, content=content, tool_calls=_calls(raw.tool_calls or ()), tool_call_id=raw.tool_call_id)


def _calls(raw: Sequence[_Call]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(id=call.id or "", function=Function(name=call.function.name or "", arguments=call.function.arguments or ""))
        for call in raw
    )


def texts(given: Any) -> tuple[Message, ...]:
    """What a completion goes on from, as one message: a text, or texts one a line; nothing for token ids."""
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
        return ()
    return (Message(role="user", content="\n".join(entries)),)


def inputs(given: Any) -> tuple[Message, ...]:
    """What is embedded, a message a text; nothing for token ids, and for texts that are long together."""
    entries = [given] if isinstance(given, str) else given
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries) or sum(map(len, entries)) > _LONGEST_INPUTS:
        return ()
    return tuple(Message(role="user", content=entry) for entry in entries)


def answer(whole: bytes) -> tuple[str, Outcome]:
    """(the answer's own id, its outcome), of one JSON object or of the events of a stream; of what cannot be read, nothing.

    The words are the first choice's.
    """
    try:
        if whole.startswith(b"data:"):
            return _streamed(whole)
        last = _answer.decode(whole)
    except msgspec.DecodeError:
        return "", Outcome(counted=False)
    first = last.choices[0] if last.choices else None
    words = first.message if first is not None else _Words()
    text = words.content or words.refusal or (first.text if first is not None else "") or ""
    return last.id, _outcome(text, _calls(words.tool_calls or ()), last)


def _streamed(whole: bytes) -> tuple[str, Outcome]:
    words, calls, last = list[str](), dict[int, list[str]](), _nothing
    for line in whole.split(b"\n"):
        if not line.startswith(b"data:") or not (event := line[5:].strip()).startswith(b"{"):
            continue
        try:
            chunk = _answer.decode(event)
        except msgspec.DecodeError:
            continue
        for choice in chunk.choices:
            if choice.index == 0:
                words.append(choice.delta.content or choice.delta.refusal or choice.text or "")
                _gather(calls, choice.delta.tool_calls or ())
        finished = any(choice.finish_reason for choice in chunk.choices)
        last = _Answer(id=chunk.id, choices=chunk.choices if finished else last.choices, usage=chunk.usage or last.usage)
    made = tuple(ToolCall(id=number, function=Function(name=name, arguments=rest)) for number, name, rest in calls.values())
    return last.id, _outcome("".join(words), made, last)


def _gather(calls: dict[int, list[str]], pieces: Sequence[_Call]) -> None:
    """Put the pieces of tool calls together: the id and the name come once, the arguments bit by bit."""
    for piece in pieces:
        call = calls.setdefault(piece.index or 0, ["", "", ""])
        call[0] = call[0] or piece.id or ""
        call[1] += piece.function.name or ""
        call[2] += piece.function.arguments or ""


def _outcome(text: str, calls: tuple[ToolCall, ...], last: _Answer) -> Outcome:
    used = last.usage if last.usage is not None and last.usage.credible else None
    return Outcome(
        text=text,
        finish_reason=next((choice.finish_reason for choice in last.choices if choice.finish_reason), "stop"),
        tool_calls=calls,
        prompt_tokens=used.prompt_tokens if used is not None else 0,
        completion_tokens=used.completion_tokens if used is not None else 0,
        counted=used is not None,
    )


def error(whole: bytes) -> str:
    """What an answer says went wrong, empty where it says nothing."""
    try:
        return _failed.decode(whole).error.message
    except msgspec.DecodeError:
        return ""
