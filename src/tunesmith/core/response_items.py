"""The items of OpenAI's Responses API (messages, thoughts, calls, results of calls) → turns of a chat; knows nothing about a request's
other keys, or where items are kept.

Items are read as clients send them back, with what servers write beside them. What says nothing to a model is left aside by name; an item
or a part that no model here reads, and any other key, is refused by its place.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from tunesmith.core.history import NOT_READ, not_read
from tunesmith.core.types import Function, Message, Record, TextPart, ToolCall
from tunesmith.core.wire import BadRequest, convert

Status = Literal["in_progress", "completed", "incomplete"]
_CARRIED = "tunesmith.1."  # begins what this server put into `encrypted_content`


class InputText(Record, frozen=True, tag_field="type", tag="input_text"):
    """Words for the model."""

    text: str
    prompt_cache_breakpoint: Any = None


class PlainText(Record, frozen=True, tag_field="type", tag="text"):
    """The same, as chat completions write it."""

    text: str


class OutputText(Record, frozen=True, tag_field="type", tag="output_text"):
    """Words of a model."""

    text: str
    annotations: Any = None
    logprobs: Any = None
    parsed: Any = None


class Refusal(Record, frozen=True, tag_field="type", tag="refusal"):
    """A model's words when it refused."""

    refusal: str


class ThoughtText(Record, frozen=True, tag_field="type", tag="reasoning_text"):
    """What a model thought."""

    text: str


class SummaryText(Record, frozen=True, tag_field="type", tag="summary_text"):
    """What a model thought, in short."""

    text: str


class MessageItem(Record, frozen=True, tag_field="type", tag="message"):
    """A message, whoever wrote it. `phase` is a label of other servers, `sources` what an answer here read."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | tuple[InputText | PlainText | OutputText | Refusal, ...]
    id: str | None = None
    status: Status | None = None
    phase: str | None = None
    sources: Any = None


class ReasoningItem(Record, frozen=True, tag_field="type", tag="reasoning"):
    """What a model thought before the item that follows."""

    id: str | None = None
    summary: tuple[SummaryText, ...] = ()
    content: tuple[ThoughtText, ...] = ()
    encrypted_content: str | None = None
    status: Status | None = None


class CallItem(Record, frozen=True, tag_field="type", tag="function_call"):
    """A model's call of a function."""

    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    caller: Any = None
    created_by: Any = None
    parsed_arguments: Any = None


class ResultItem(Record, frozen=True, tag_field="type", tag="function_call_output"):
    """What a called function gave."""

    call_id: str
    output: str | tuple[InputText | PlainText | OutputText, ...]
    id: str | None = None
    status: Status | None = None
    caller: Any = None
    created_by: Any = None
    name: str | None = None


class ReferenceItem(Record, frozen=True, tag_field="type", tag="item_reference"):
    """An item that a stored response has."""

    id: str


Item = MessageItem | ReasoningItem | CallItem | ResultItem
Given = Item | ReferenceItem
KINDS = ("message", "reasoning", "function_call", "function_call_output", "item_reference")


class _Items(Record, frozen=True):
    input: tuple[Given, ...]


def given_items(raw: Any) -> tuple[Given, ...]:
    """The items of a request's `input`; a string is a user's message. Raises BadRequest with the place of what they cannot be."""
    if isinstance(raw, str):
        return (MessageItem(role="user", content=raw),)
    if not isinstance(raw, list):
        message = f"Invalid value for 'input': a JSON {type(raw).__name__}"
        raise BadRequest(message, param="input", code="invalid_type", allowed="a string, or a list of items")
    if not raw:
        raise BadRequest("'input' is empty", param="input", code="empty_array", allowed="a string, or at least one item")
    return convert({"input": [_plain(item, f"input[{i}]") for i, item in enumerate(raw)]}, _Items).input


def kept_items(raw: Sequence[Any]) -> tuple[Item, ...]:
    """The items of a stored response. Raises BadRequest for what another server made and no model here reads."""
    read = convert({"input": [_plain(item, f"input[{i}]") for i, item in enumerate(raw)]}, _Items).input
    return tuple(item for item in read if not isinstance(item, ReferenceItem))


def _plain(raw: Any, where: str) -> Any:
    """One item without nulls, with its kind; nothing that no model here reads."""
    if not isinstance(raw, dict):
        return raw
    item = {key: value for key, value in raw.items() if value is not None}
    kind = item.setdefault("type", "message" if "role" in item else "item_reference" if set(item) == {"id"} else None)
    if kind not in KINDS:
        what = f"is a '{str(kind)[:50]}' item" if kind is not None else "has no 'type'"
        raise BadRequest(f"'{where}' {what}", param=f"{where}.type", code="unsupported_value", allowed=", ".join(KINDS))
    key = {"message": "content", "function_call_output": "output", "reasoning": "content"}.get(str(kind), "")
    if isinstance(item.get(key), list):
        item[key] = [_part(part, f"{where}.{key}[{i}]") for i, part in enumerate(item[key])]
    return item


def _part(raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        return raw
    if raw.get("type") in NOT_READ:
        raise not_read(NOT_READ[str(raw["type"])], where)
    return {key: value for key, value in raw.items() if value is not None}


# --- as turns ----------------------------------------------------------------------------------------------------------------------------


def turns(items: Sequence[Item]) -> tuple[Message, ...]:
    """The items as a chat's messages: thoughts, words and calls that follow each other are one turn of the assistant. Raises BadRequest for
    thoughts that another server encrypted."""
    made, open_turn = list[Message](), Message(role="assistant")
    for item in items:
        if isinstance(item, (MessageItem, ResultItem)) and not (isinstance(item, MessageItem) and item.role == "assistant"):
            made += [*_ended(open_turn), _message(item)]
            open_turn = Message(role="assistant")
            continue
        if _begins(item, open_turn):
            made += _ended(open_turn)
            open_turn = Message(role="assistant")
        open_turn = _with(open_turn, item)
    return (*made, *_ended(open_turn))


def _begins(item: Item, turn: Message) -> bool:
    """Whether a model's item is the first one of a further turn."""
    spoken = turn.content is not None or turn.refusal is not None or bool(turn.tool_calls)
    return spoken and not isinstance(item, CallItem)


def _ended(turn: Message) -> list[Message]:
    """The turn, unless nothing was put into it. One of thoughts alone has no words."""
    if turn == Message(role="assistant"):
        return []
    silent = turn.content is None and turn.refusal is None and not turn.tool_calls
    return [msgspec.structs.replace(turn, content="") if silent else turn]


def _with(turn: Message, item: Item) -> Message:
    if isinstance(item, ReasoningItem):
        return msgspec.structs.replace(turn, reasoning_content=((turn.reasoning_content or "") + thoughts_of(item)) or None)
    if isinstance(item, CallItem):
        call = ToolCall(id=item.call_id, function=Function(name=item.name, arguments=item.arguments))
        return msgspec.structs.replace(turn, tool_calls=(*turn.tool_calls, call))
    assert isinstance(item, MessageItem)
    return msgspec.structs.replace(_message(item), reasoning_content=turn.reasoning_content)


def _message(item: MessageItem | ResultItem) -> Message:
    if isinstance(item, ResultItem):
        return Message(role="tool", content=_content(item.output), tool_call_id=item.call_id)
    if isinstance(item.content, tuple) and item.content and all(isinstance(part, Refusal) for part in item.content):
        return Message(role=item.role, refusal=_words(item.content))
    return Message(role=item.role, content=_content(item.content))


def _content(given: str | tuple[Any, ...]) -> str | tuple[TextPart, ...]:
    """One part is a string: the same words as a message of a chat has them."""
    if isinstance(given, str) or len(given) < 2:
        return given if isinstance(given, str) else _words(given)
    return tuple(TextPart(text=_words([part])) for part in given)


def _words(parts: Sequence[Any]) -> str:
    return "".join(part.refusal if isinstance(part, Refusal) else part.text for part in parts)


def check_pairs(items: Sequence[Item]) -> None:
    """Refuse, in OpenAI's words, a result of no call and a call that nothing answers. Raises BadRequest."""
    called = dict[str, bool]()
    for item in items:
        if isinstance(item, CallItem):
            called[item.call_id] = False
        elif isinstance(item, ResultItem):
            if item.call_id not in called:
                raise BadRequest(f"No tool call found for function call output with call_id {item.call_id[:100]}.", param="input")
            called[item.call_id] = True
    open_calls = [call for call, answered in called.items() if not answered]
    if open_calls:
        raise BadRequest(f"No tool output found for function call {open_calls[0][:100]}.", param="input")


# --- thoughts that a client carries ------------------------------------------------------------------------------------------------------


def carried(thoughts: str) -> str:
    """Thoughts as `encrypted_content`, for clients that send nothing else back. They are not secret: `content` shows them beside it."""
    return _CARRIED + base64.b64encode(thoughts.encode()).decode()


def thoughts_of(item: ReasoningItem) -> str:
    """What was thought. Raises BadRequest for what another server encrypted."""
    if item.content:
        return "".join(part.text for part in item.content)
    sealed = item.encrypted_content
    if sealed is None:
        return "".join(part.text for part in item.summary)
    try:
        if not sealed.startswith(_CARRIED):
            raise ValueError("another server's")
        return base64.b64decode(sealed.removeprefix(_CARRIED), validate=True).decode()
    except (ValueError, binascii.Error, UnicodeDecodeError) as error:
        raise BadRequest(
            f"the 'encrypted_content' of the reasoning item '{(item.id or '')[:100]}' was not made by this server and cannot be read",
            param="input",
            code="invalid_encrypted_content",
            allowed="this server's reasoning items; leave out another's",
        ) from error
