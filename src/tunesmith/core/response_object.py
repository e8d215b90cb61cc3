"""A response of OpenAI's Responses API, and the items in it: what was asked as `input_items` list it, what a model answered. Knows nothing
about HTTP or where responses are kept.

Items are named by the response that has them and their place in it, so that a reference to one leads to where it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from tunesmith.core import wire
from tunesmith.core.response_items import CallItem, Item, MessageItem, ReasoningItem, ResultItem, carried
from tunesmith.core.types import Answer, ToolCall

PREFIX = "resp_"
Status = Literal["in_progress", "completed", "incomplete", "failed"]
_ITEM = re.compile(r"[a-z]+_(?P<response>[0-9a-f]{32,40})[io]\d+")
_KINDS = {MessageItem: "msg", ReasoningItem: "rs", CallItem: "fc", ResultItem: "fco"}


class Shown(NamedTuple):
    """What a client asked to see of an answer: log-probabilities, and thoughts as `encrypted_content`."""

    logprobs: bool = False
    carried: bool = False


def holder_of(item: str) -> str | None:
    """The id of the response that has the item of that id; None for an id that this server did not make."""
    match = _ITEM.fullmatch(item)
    return None if match is None else PREFIX + match["response"]


def item_id(kind: str, response: str, place: int, side: Literal["i", "o"] = "o") -> str:
    """The id of the item at a place of a response's input or output."""
    return f"{kind}_{response.removeprefix(PREFIX)}{side}{place:03d}"


# --- what was asked ----------------------------------------------------------------------------------------------------------------------


def listed_items(items: Sequence[Item], response: str) -> list[dict[str, Any]]:
    """The items of a request, each whole: with its id, its status, and its words in parts. They can be sent back as they are."""
    return [_listed(item, item.id or item_id(_KINDS[type(item)], response, i, "i")) for i, item in enumerate(items)]


def _listed(item: Item, name: str) -> dict[str, Any]:
    plain: dict[str, Any] = {**msgspec.to_builtins(item), "id": name}
    if isinstance(item, ReasoningItem):
        return plain | {"summary": plain.get("summary", [])}
    plain.setdefault("status", "completed")
    if isinstance(item, MessageItem):
        kind = "output_text" if item.role == "assistant" else "input_text"
        parts = [{"type": kind, "text": item.content}] if isinstance(item.content, str) else plain["content"]
        plain["content"] = [_part(part, kind) for part in parts]
    return plain


def _part(part: dict[str, Any], kind: str) -> dict[str, Any]:
    if part["type"] == "refusal":
        return part
    return {**part, "type": kind, **({"annotations": part.get("annotations") or []} if kind == "output_text" else {})}


# --- what was answered -------------------------------------------------------------------------------------------------------------------


def output_items(answer: Answer, response: str, shown: Shown = Shown(), *, spoken: bool = False) -> list[dict[str, Any]]:
    """The items of an answer: its thoughts, its words, its calls. One that says nothing at all is a message without words, and so is one
    whose words were begun (`spoken`) and came to nothing."""
    cut = answer.finish_reason in ("length", "content_filter")
    items = list[dict[str, Any]]()
    if answer.reasoning_content:
        items.append(reasoning_item(answer.reasoning_content, response, shown))
    if answer.text or spoken or not (answer.tool_calls or (answer.reasoning_content and cut)):
        items.append(message_item(answer, item_id("msg", response, len(items)), shown))
    items += [call_item(call, item_id("fc", response, len(items) + i)) for i, call in enumerate(answer.tool_calls)]
    if cut:
        items[-1]["status"] = "incomplete"
    return items


def reasoning_item(thoughts: str, response: str, shown: Shown = Shown()) -> dict[str, Any]:
    """Thoughts, which stand first in a response."""
    content = [{"type": "reasoning_text", "text": thoughts}]
    item = {"id": item_id("rs", response, 0), "type": "reasoning", "status": "completed", "summary": [], "content": content}
    return item | ({"encrypted_content": carried(thoughts)} if shown.carried else {})


def message_item(answer: Answer, name: str, shown: Shown = Shown()) -> dict[str, Any]:
    """An answer's words, with what they cite."""
    cited = wire.cited(answer)
    annotations = [{"type": "url_citation", **one["url_citation"]} for one in cited.get("annotations", ())]
    part = text_part(answer.text, annotations, answer.logprobs if shown.logprobs else ())
    item = {"id": name, "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return item | ({"sources": cited["sources"]} if cited else {})


def text_part(text: str, annotations: Sequence[Any] = (), logprobs: Sequence[Any] = ()) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": list(logprobs)}


def call_item(call: ToolCall, name: str) -> dict[str, Any]:
    """A call of a function."""
    own = {"call_id": call.id, "name": call.function.name, "arguments": call.function.arguments}
    return {"id": name, "type": "function_call", "status": "completed", **own}


class Ending(NamedTuple):
    """How a response ended."""

    status: Status
    incomplete: str | None = None


def ending_of(answer: Answer) -> Ending:
    """How an answer ended, in this API's words."""
    if answer.finish_reason == "length":
        return Ending("incomplete", "max_output_tokens")
    if answer.finish_reason == "content_filter":
        return Ending("incomplete", "content_filter")
    return Ending("completed")


def usage(answer: Answer, reasoning_tokens: int) -> dict[str, Any]:
    """The usage object. What was read from a cache is not counted apart here."""
    return {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def response_object(
    echoed: Mapping[str, Any],
    ending: Ending = Ending("in_progress"),
    output: Sequence[Any] = (),
    *,
    used: Mapping[str, Any] | None = None,
    completed: float | None = None,
    error: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The response: `echoed` is what it repeats of its request, with its id, `created_at` and `store`."""
    return {
        **echoed,
        "object": "response",
        "background": False,
        "status": ending.status,
        "completed_at": None if completed is None or ending.status != "completed" else int(completed),
        "error": error,
        "incomplete_details": None if ending.incomplete is None else {"reason": ending.incomplete},
        "output": list(output),
        "usage": used,
    }
