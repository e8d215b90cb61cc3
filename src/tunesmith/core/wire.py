"""OpenAI's shapes, both ways: request bodies in and out, completions, chunks and model objects; knows nothing about HTTP.

A request's unknown key is refused by name; a documented key that this server does not serve is refused with that reason; only keys
that change no answer are taken and left aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import msgspec

from tunesmith.core.errors import UsageError
from tunesmith.core.json_text import MAX_DEPTH, too_deep
from tunesmith.core.types import Answer, Function, Message, Prompt, Record, Role, Sampling, TextPart, ToolCall

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
MAX_STOPS, MAX_CHOICES, MAX_TOP_LOGPROBS = 4, 128, 20


class BadRequest(UsageError):
    """A request body that cannot be served; `param` is the key path, `code` OpenAI's word for the fault or None."""

    def __init__(self, what: str, *, param: str | None = None, code: str | None = None, allowed: str = "") -> None:
        self.param, self.code = param, code
        super().__init__(what, allowed=allowed)


class _Part(Record, frozen=True):
    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class _Message(Record, frozen=True):
    role: Role
    content: str | tuple[_Part, ...] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    weight: Literal[0, 1] | None = None
    annotations: Any = None  # the SDK sends back what it was given; no meaning here
    audio: None = None
    function_call: None = None
    type: Literal["text", "message"] | None = None  # evaluation harnesses send it; no meaning here


class _Function(Record, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(Record, frozen=True):
    type: Literal["function"]
    function: _Function


class _StreamOptions(Record, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Format(Record, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatRequest(Record, frozen=True):
    """The body of POST /chat/completions, as far as it is served."""

    model: str
    messages: tuple[_Message, ...]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: tuple[_Tool, ...] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    modalities: tuple[Literal["text"], ...] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return 1 if self.n is None else self.n

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema that the answer must satisfy, None for free text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        own = (wanted.json_schema or {}).get("schema") if wanted.type == "json_schema" else None
        return {"type": "object"} if own is None else own

    @property
    def must_call(self) -> tuple[dict[str, Any], ...]:
        """The tools of which one must be called, none when the model is free."""
        tools, choice = tuple(msgspec.to_builtins(tool) for tool in self.tools or ()), self.tool_choice
        if isinstance(choice, dict):
            return tuple(tool for tool in tools if tool["function"]["name"] == _chosen(choice))
        return tools if choice == "required" else ()

    @property
    def silent(self) -> bool:
        """Whether no word of the answer is wanted (a limit of 0 tokens)."""
        return 0 in (self.max_completion_tokens, self.max_tokens if self.max_completion_tokens is None else None)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def prompt(self) -> Prompt:
        """What the model is asked. Raises BadRequest for what messages cannot be."""
        if not self.messages:
            raise BadRequest("'messages' is empty", param="messages", code="empty_array", allowed="at least one message")
        tools = () if self.tool_choice == "none" else self.tools or ()
        return Prompt(
            messages=tuple(_message(m, i) for i, m in enumerate(self.messages)), tools=tuple(msgspec.to_builtins(tool) for tool in tools)
        )

    def sampling(self, default_max_tokens: int, defaults: Mapping[str, float] = MappingProxyType({})) -> Sampling:
        """How it is drawn, each number within its limits. What the request leaves open is as in `defaults`, else as at OpenAI: a
        temperature and a top_p of 1."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        _within("n", self.choices, 1, MAX_CHOICES)
        _within("stop", len(stop), 0, MAX_STOPS, "strings")
        _within(
            "max_completion_tokens" if self.max_completion_tokens is not None else "max_tokens", 1 if limit is None else limit, 0, 1 << 24
        )
        _within("temperature", 1.0 if self.temperature is None else self.temperature, 0, 2)
        _within("top_p", 1.0 if self.top_p is None else self.top_p, 0, 1)
        _within("top_logprobs", self.top_logprobs or 0, 0, MAX_TOP_LOGPROBS)
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        return Sampling(
            max_tokens=int(defaults.get("max_tokens", default_max_tokens))
            if limit is None
            else max(limit, 1),  # 0: one is drawn, not shown
            temperature=defaults.get("temperature", 1.0) if self.temperature is None else self.temperature,
            top_p=defaults.get("top_p", 1.0) if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


def _within(param: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:
        count = f"{value} {unit}".strip()
        raise BadRequest(f"'{param}' is {count}", param=param, code="invalid_value", allowed=f"{low} to {high}")


def _message(message: _Message, index: int) -> Message:
    where = f"messages[{index}]"
    if message.content is None and not message.tool_calls and message.refusal is None:
        raise BadRequest(f"'{where}.content' is missing", param=f"{where}.content", allowed="a string, or text parts")
    if message.role == "tool" and message.tool_call_id is None:
        raise BadRequest(
            f"'{where}.tool_call_id' is missing", param=f"{where}.tool_call_id", allowed="the id of the call that this answers"
        )
    content = message.content
    if isinstance(content, tuple):
        words: str | tuple[TextPart, ...] | None = tuple(TextPart(text=part.text or part.refusal or "") for part in content)
    else:
        words = content
    return Message(
        role=message.role,
        content=words,
        name=message.name,
        refusal=message.refusal,
        tool_calls=message.tool_calls or (),
        tool_call_id=message.tool_call_id,
        weight=message.weight,
    )


def chat_request(body: bytes) -> ChatRequest:
    """A typed request of its JSON bytes. Raises BadRequest with the key and what was allowed."""
    tree = decode_object(body)
    for key in HARMLESS & tree.keys():
        del tree[key]
    take_ignored(tree)
    _functions(tree)
    request = convert(tree, ChatRequest)
    _form(request)
    return request


def _chosen(choice: dict[str, Any]) -> str | None:
    function = choice.get("function")
    return function.get("name") if choice.get("type") == "function" and isinstance(function, dict) else None


def _form(request: ChatRequest) -> None:
    """Refuse forms of answers that nothing can have. Raises BadRequest."""
    choice = request.tool_choice
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        raise BadRequest(f"'tool_choice' is {choice[:50]!r}", param="tool_choice", code="unsupported_value", allowed="auto, none, required")
    if (choice == "required" and not request.tools) or (isinstance(choice, dict) and not request.must_call):
        message = f"'tool_choice' is {str(choice)[:100]}, and no such tool is given"
        raise BadRequest(message, param="tool_choice", code="invalid_value", allowed="a tool of 'tools'")
    wanted = request.response_format
    if wanted is not None and wanted.type == "json_schema" and not isinstance((wanted.json_schema or {}).get("schema"), dict):
        param = "response_format.json_schema.schema"
        raise BadRequest(f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter")


def take_ignored(tree: dict[str, Any]) -> list[str]:
    """Take the keys without effect out of a request; returns those that would have had one."""
    own = sorted(IGNORED & tree.keys())
    return [key for key in own if tree.pop(key) not in _NEUTRAL.get(key, (None,))]


def ignored(body: bytes) -> list[str]:
    """The keys of a request that have no effect here."""
    return take_ignored(decode_object(body)) if any(key.encode() in body for key in IGNORED) else []


def _functions(tree: dict[str, Any]) -> None:
    """The older `functions` and `function_call` as tools; where there are tools already, they count."""
    functions, call = tree.pop("functions", None), tree.pop("function_call", None)
    if functions and isinstance(functions, list):
        tree.setdefault("tools", [{"type": "function", "function": function} for function in functions])
    if isinstance(call, str):
        tree.setdefault("tool_choice", call)
    elif isinstance(call, dict):
        tree.setdefault("tool_choice", {"type": "function", "function": call})


class Head(msgspec.Struct, frozen=True):
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


def head_of(body: bytes) -> Head:
    """A look ahead that refuses nothing: of a body that is no JSON object, an empty head. `safety_identifier` is OpenAI's later word for
    `user`; a conversation is named in `metadata`, as `conversation` or `conversation_id`."""
    try:
        named = _named.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Head()
    about = named.metadata if isinstance(named.metadata, dict) else {}
    return Head(
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
    for key in ("name", "tool_call_id", "refusal"):
        if getattr(message, key) is not None:
            body[key] = getattr(message, key)
    return body


def request_body(model: str, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
    """The body that asks an endpoint for one answer."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [message_body(message) for message in prompt.messages],
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


def answer_of(completion: dict[str, Any], *, first_token_s: float, total_s: float) -> Answer:
    """The first choice of a chat completion."""
    choice = completion["choices"][0]
    message, usage = choice["message"], completion.get("usage") or {}
    calls = tuple(
        ToolCall(id=call["id"], function=Function(name=call["function"]["name"], arguments=call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    )
    reason = choice["finish_reason"]
    return Answer(
        text=message.get("content") or message.get("refusal") or "",
        finish_reason=reason if reason in ("stop", "length", "tool_calls", "content_filter") else "stop",
        tool_calls=calls,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        completion_tokens=int(usage.get("completion_tokens") or 0),
        first_token_s=first_token_s,
        total_s=total_s,
        logprobs=tuple((choice.get("logprobs") or {}).get("content") or ()),
    )


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The usage object."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": prompt_tokens + completion_tokens}


def tool_calls(calls: Sequence[ToolCall], *, indexed: bool = False) -> list[dict[str, Any]]:
    """Tool calls as a message (or, `indexed`, a stream's delta) has them."""
    plain = [
        {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": call.function.arguments}}
        for call in calls
    ]
    return [{"index": i, **call} for i, call in enumerate(plain)] if indexed else plain


def choice(index: int, answer: Answer, *, with_logprobs: bool) -> dict[str, Any]:
    """One finished choice of a chat completion."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.tool_calls else ""), "refusal": None}
    if answer.tool_calls:
        message["tool_calls"] = tool_calls(answer.tool_calls)
    logprobs = {"content": list(answer.logprobs), "refusal": None} if with_logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}


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
