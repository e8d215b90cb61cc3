"""A request's messages as clients send them back → Tunesmith's turns; knows nothing about the rest of a request.

Clients send what a server gave them: nulls, places in lists, thinking, marks for caches, the older `function_call`. What says nothing to
a model is left aside by name, what it says in another shape is read, and any other key is refused by its place.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from tunesmith.core.types import Message, Record, Role, TextPart, ToolCall
from tunesmith.core.wire import BadRequest, convert

# What servers and libraries write beside a turn, a part or a call, and no model sees.
_BESIDE = frozenset(
    [
        "annotations",
        "cache_control",
        "citations",
        "created",
        "finish_reason",
        "id",
        "index",
        "logprobs",
        "object",
        "parsed",
        "provider_specific_fields",
        "reasoning_details",
        "sources",
        "stop_reason",
        "thinking_blocks",
        "timestamp",
        "token_ids",
        "type",
        "usage",
    ]
)
_BESIDE_PART = frozenset({"annotations", "cache_control", "citations", "id", "index", "logprobs"})
_BESIDE_CALL = frozenset({"cache_control", "index", "parsed_arguments", "provider_specific_fields"})
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Kinds of parts that no text model reads, by what they are called in the refusal.
NOT_READ = {"image_url": "images", "input_image": "images", "image": "images", "input_audio": "audio", "audio": "audio", "file": "files"}
NOT_READ |= {"input_file": "files", "video_url": "video", "video": "video"}
_WORDS = ("text", "input_text", "output_text")


class _Part(Record, frozen=True):
    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class _Turn(Record, frozen=True):
    role: Role
    content: str | tuple[_Part, ...] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None


def turns(raw: Any) -> tuple[Message, ...]:
    """The messages of a request. Raises BadRequest with the place of what they cannot be."""
    if not isinstance(raw, list):
        raise BadRequest(
            f"Invalid value for 'messages': a JSON {type(raw).__name__}", param="messages", code="invalid_type", allowed="a list"
        )
    if not raw:
        raise BadRequest("'messages' is empty", param="messages", code="empty_array", allowed="at least one message")
    called: dict[str, str] = {}  # an older function's name → the id that its latest call was given
    plain = [_plain(turn, f"messages[{i}]", called) for i, turn in enumerate(raw)]
    read = convert({"messages": plain}, _Turns).messages
    return tuple(_message(turn, f"messages[{i}]") for i, turn in enumerate(read))


class _Turns(Record, frozen=True):
    messages: tuple[_Turn, ...]


def _plain(raw: Any, where: str, called: dict[str, str]) -> Any:
    """One message without what no model sees, in the newer shape."""
    if not isinstance(raw, dict):
        return raw
    turn = {key: value for key, value in raw.items() if value is not None and key not in _BESIDE}
    if "audio" in turn:
        raise not_read("audio", f"{where}.audio")
    if turn.get("images") == []:
        del turn["images"]
    thought = next((turn[key] for key in _REASONING if isinstance(turn.get(key), str)), None)
    if turn.get("role") == "assistant" and thought is not None:
        turn = {key: value for key, value in turn.items() if key not in _REASONING} | {"reasoning_content": thought}
    if isinstance(turn.get("content"), list):
        turn["content"] = [_part(part, f"{where}.content[{i}]") for i, part in enumerate(turn["content"]) if not _thought(part, turn)]
    if isinstance(turn.get("tool_calls"), list):
        turn["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(turn["tool_calls"])]
    return _newer(turn, where, called)


def _thought(part: Any, turn: dict[str, Any]) -> bool:
    """Whether a part is what the model thought before its words: it is taken into the turn's reasoning."""
    if not isinstance(part, dict) or part.get("type") not in ("thinking", "reasoning") or turn.get("role") != "assistant":
        return False
    words = part.get("thinking", part.get("reasoning", part.get("text", "")))
    if isinstance(words, list):
        words = "".join(str(item.get("text", "")) for item in words if isinstance(item, dict))
    turn["reasoning_content"] = turn.get("reasoning_content", "") + str(words)
    return True


def _part(raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        return raw
    kind = raw.get("type")
    if kind in NOT_READ:
        raise not_read(NOT_READ[str(kind)], where)
    part = {key: value for key, value in raw.items() if value is not None and key not in _BESIDE_PART}
    return part | {"type": "text"} if kind in _WORDS else part


def not_read(what: str, where: str) -> BadRequest:
    """What is said of a part that no text model reads."""
    return BadRequest(
        f"'{where}' has {what}, which this server's models do not read", param=where, code="unsupported_value", allowed="text"
    )


def _call(raw: Any, where: str) -> Any:
    """A tool call with its type and id; arguments that came as an object are JSON text."""
    if not isinstance(raw, dict):
        return raw
    call = {key: value for key, value in raw.items() if value is not None and key not in _BESIDE_CALL}
    call.setdefault("id", f"call_{where.partition('[')[2].translate({ord(c): '_' for c in '[].'})}")
    if isinstance(call.get("function"), dict):
        call["function"] = _function(call["function"])
    return call


def _function(raw: dict[str, Any]) -> dict[str, Any]:
    function = {key: value for key, value in raw.items() if value is not None and key not in _BESIDE_CALL}
    arguments = function.get("arguments", "{}")
    return function | {"arguments": json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments}


def _newer(turn: dict[str, Any], where: str, called: dict[str, str]) -> dict[str, Any]:
    """The older `function_call` and role `function` as a tool call and its answer: each call has an id of its own place."""
    old = turn.pop("function_call", None)
    if isinstance(old, dict) and not turn.get("tool_calls"):
        identity = f"call_{where[len('messages[') : -1]}"
        called[str(old.get("name"))] = identity
        turn["tool_calls"] = [{"id": identity, "type": "function", "function": _function(old)}]
    elif old is not None and not isinstance(old, dict):
        raise BadRequest(f"Invalid value for '{where}.function_call'", param=f"{where}.function_call", code="invalid_type")
    if turn.get("role") == "function":
        turn = turn | {"role": "tool"}
        turn.setdefault("tool_call_id", called.get(str(turn.get("name")), "call_0"))
    return turn


def _message(turn: _Turn, where: str) -> Message:
    content = turn.content
    if content is None and not turn.tool_calls and turn.refusal is None:
        if turn.role not in ("assistant", "tool"):
            raise BadRequest(f"'{where}.content' is missing", param=f"{where}.content", allowed="a string, or text parts")
        content = ""  # servers give null for an answer without words, libraries for a tool that returned nothing
    if turn.role == "tool" and turn.tool_call_id is None:
        raise BadRequest(
            f"'{where}.tool_call_id' is missing", param=f"{where}.tool_call_id", allowed="the id of the call that this answers"
        )
    return Message(
        role=turn.role,
        content=tuple(TextPart(text=part.text or part.refusal or "") for part in content) if isinstance(content, tuple) else content,
        name=turn.name,
        refusal=turn.refusal,
        reasoning_content=turn.reasoning_content,
        tool_calls=turn.tool_calls or (),
        tool_call_id=turn.tool_call_id,
        weight=turn.weight,
    )
