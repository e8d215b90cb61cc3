"""OpenAI's shapes: JSON bodies as typed records, what is sent to endpoints and what they answer, completions, chunks and model objects;
knows nothing about HTTP. What a chat request may say is in `chat_request.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from tunesmith.core.errors import UsageError
from tunesmith.core.json_text import MAX_DEPTH, too_deep
from tunesmith.core.types import Answer, Message, Prompt, Sampling, ToolCall

# Documented by OpenAI, taken and without effect on the answer here.
HARMLESS = frozenset({"user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"})
# Documented by OpenAI, taken so that unchanged code runs, and without effect here: the answer's header `x-tunesmith-ignored` names them.
IGNORED = frozenset(
    [
        "audio",
        "frequency_penalty",
        "logit_bias",
        "moderation",
        "prediction",
        "presence_penalty",
        "reasoning_effort",
        "suffix",
        "verbosity",
        "web_search_options",
    ]
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {"frequency_penalty": (0, None), "presence_penalty": (0, None), "logit_bias": ({}, None)}
_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<key>[^`]+)`")
T = TypeVar("T")


class BadRequest(UsageError):
    """A request body that cannot be served; `param` is the key path, `code` OpenAI's word for the fault or None."""

    def __init__(self, what: str, *, param: str | None = None, code: str | None = None, allowed: str = "") -> None:
        self.param, self.code = param, code
        super().__init__(what, allowed=allowed)


def take_ignored(tree: dict[str, Any]) -> list[str]:
    """Take the keys without effect out of a request; returns those that would have had one."""
    own = sorted(IGNORED & tree.keys())
    return [key for key in own if tree.pop(key) not in _NEUTRAL.get(key, (None,))]


def ignored(body: bytes) -> list[str]:
    """The keys of a request that have no effect here."""
    return take_ignored(decode_object(body)) if any(key.encode() in body for key in IGNORED) else []


class RequestHead(msgspec.Struct, frozen=True):
    """What a request's body says of itself, whatever it asks for. `user` is the client's word for who asks, `conversation` for what it
    goes on with; each None where the body has none, or no text."""

    model: str = ""
    user: str | None = None
    conversation: str | None = None


class _Named(msgspec.Struct):
    model: Any = None
    user: Any = None
    safety_identifier: Any = None
    metadata: Any = None


_named = msgspec.json.Decoder(_Named)
_LONGEST_KEY = 512


def head_of(body: bytes) -> RequestHead:
    """A look ahead that refuses nothing: of a body that is no JSON object, an empty head. `safety_identifier` is OpenAI's later word for
    `user`; a conversation is named in `metadata`, as `conversation` or `conversation_id`."""
    try:
        named = _named.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return RequestHead()
    about = named.metadata if isinstance(named.metadata, dict) else {}
    return RequestHead(
        model=named.model if isinstance(named.model, str) else "",
        user=_text(named.safety_identifier) or _text(named.user),
        conversation=_text(about.get("conversation")) or _text(about.get("conversation_id")),
    )


def _text(value: Any) -> str | None:
    return value[:_LONGEST_KEY] if isinstance(value, str) and value else None


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body. Raises BadRequest when it is none."""
    try:
        tree = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the request body is not valid JSON: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequest("the request body is nested too deeply", code="invalid_json") from error
    if too_deep(tree, body):
        raise BadRequest(f"the request body is nested deeper than {MAX_DEPTH} levels", code="invalid_json")
    if not isinstance(tree, dict):
        raise BadRequest(f"the request body is a JSON {type(tree).__name__}", allowed="an object")
    return tree


def convert(tree: dict[str, Any], record: type[T]) -> T:
    """A plain tree as a typed record. Raises BadRequest with the key path and the fault."""
    try:
        return msgspec.convert(tree, record, strict=True)
    except msgspec.ValidationError as error:
        message = str(error)
        at = _AT.search(message)
        path, fault = (at["path"], message[: at.start()]) if at else ("", message)
        unknown = _UNKNOWN.search(fault)
        if unknown:
            key = f"{path}.{unknown['key']}".lstrip(".")
            raise BadRequest(f"Unrecognized request argument supplied: {key}", param=key, code="unknown_parameter") from error
        missing = re.search(r"missing required field `([^`]+)`", fault)
        if missing:
            key = f"{path}.{missing[1]}".lstrip(".")
            raise BadRequest(f"Missing required parameter: '{key}'", param=key, code="missing_required_parameter") from error
        raise BadRequest(f"Invalid value for '{path}': {fault}" if path else fault, param=path or None, code="invalid_type") from error


def message_body(message: Message) -> dict[str, Any]:
    """A message as it is sent to an endpoint."""
    body: dict[str, Any] = {"role": message.role, "content": message.text if message.content is not None else None}
    if message.tool_calls:
        body["tool_calls"] = msgspec.to_builtins(message.tool_calls)
        for call in body["tool_calls"]:
            call["type"] = "function"
    for key in ("name", "tool_call_id", "refusal", "reasoning_content"):
        if getattr(message, key) is not None:
            body[key] = getattr(message, key)
    return body


def request_body(model: str, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    """The body that asks an endpoint for one answer."""
    body: dict[str, Any] = {
        "model": model,
        # An earlier turn's thinking is not sent: some servers refuse it, and models are not asked to read it again.
        "messages": [message_body(msgspec.structs.replace(message, reasoning_content=None)) for message in prompt.messages],
        "max_completion_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    optional: Iterable[tuple[str, Any]] = (
        ("stop", list(sampling.stop)),
        ("seed", sampling.seed),
        ("tools", list(prompt.tools)),
        ("logprobs", True if sampling.top_logprobs is not None else None),
        ("top_logprobs", sampling.top_logprobs or None),
    )
    body |= {key: value for key, value in optional if value is not None and value != []}
    if prompt.response_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": prompt.response_schema, "strict": True},
        }
    return body


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The usage object."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}


def tool_calls(calls: Sequence[ToolCall], *, indexed: bool = False) -> list[dict[str, Any]]:
    """Tool calls as a message (or, `indexed`, a stream's delta) has them."""
    plain = [{"id": call.id, "type": "function", "function": _function(call)} for call in calls]
    return [{"index": i, **call} for i, call in enumerate(plain)] if indexed else plain


def _function(call: ToolCall) -> dict[str, str]:
    return {"name": call.function.name, "arguments": call.function.arguments}


def calls_delta(calls: Sequence[ToolCall], *, older: bool) -> dict[str, Any]:
    """What a stream's chunk says of calls; `older`: as the one `function_call` that was asked for."""
    return {"function_call": _function(calls[0])} if older else {"tool_calls": tool_calls(calls, indexed=True)}


def finish_of(answer: Answer, *, older: bool) -> str:
    """Why an answer ended, in the words of the way in which calls were asked for."""
    return "function_call" if older and answer.finish_reason == "tool_calls" else answer.finish_reason


def choice(index: int, answer: Answer, *, with_logprobs: bool, older: bool = False) -> dict[str, Any]:
    """One finished choice of a chat completion; `older`: a call is the message's `function_call`."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.tool_calls else ""), "refusal": None}
    if answer.reasoning_content:
        message["reasoning_content"] = answer.reasoning_content
    if answer.tool_calls:
        message |= {"function_call": _function(answer.tool_calls[0])} if older else {"tool_calls": tool_calls(answer.tool_calls)}
    message |= cited(answer)
    logprobs = {"content": list(answer.logprobs), "refusal": None} if with_logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_of(answer, older=older)}


_MARK = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")


def cited(answer: Answer) -> dict[str, Any]:
    """What a message (or a stream's last delta) says of what was looked up for an answer: `annotations`, OpenAI's citations, one for each
    number in brackets that stands for a passage, and `sources`, all passages that the model read. Empty where nothing was looked up."""
    if answer.sources is None:
        return {}
    passages = {passage.number: passage for passage in answer.sources.passages}
    citations = [
        {"start_index": mark.start(), "end_index": mark.end(), "url": passage.address, "title": passage.place}
        for mark in _MARK.finditer(answer.text)
        for number in mark[1].split(",")
        if (passage := passages.get(int(number))) is not None
    ]
    read = [{**msgspec.structs.asdict(passage), "title": passage.place, "url": passage.address} for passage in passages.values()]
    return {
        "annotations": [{"type": "url_citation", "url_citation": citation} for citation in citations],
        "sources": {"index": answer.sources.index, "passages": read, "dropped": answer.sources.dropped},
    }


def completion(identity: dict[str, Any], choices: Sequence[dict[str, Any]], used: dict[str, int]) -> dict[str, Any]:
    """A chat completion; `identity` has id, created, model and perhaps system_fingerprint."""
    return {**identity, "object": "chat.completion", "choices": list(choices), "usage": used}


def chunk(
    identity: dict[str, Any], index: int, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None
) -> dict[str, Any]:
    """One chunk of a stream."""
    return {
        **identity,
        "object": "chat.completion.chunk",
        "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}],
    }


def model_object(name: str, created: float, owner: str = "tunesmith") -> dict[str, Any]:
    """A model as GET /models lists it; `shutdown_date` null says that nothing ends it."""
    return {"id": name, "object": "model", "created": int(created), "owned_by": owner, "shutdown_date": None}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The error object, all four keys always."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
