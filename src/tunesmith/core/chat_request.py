"""The body of POST /v1/chat/completions: what is asked, of what and in which form; knows nothing about HTTP or models.

A request's unknown key is refused by name; a documented key that this server does not serve is refused with that reason; only keys that
change no answer are taken and left aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from tunesmith.core import strict_schema
from tunesmith.core.history import turns
from tunesmith.core.types import Prompt, Record, Sampling
from tunesmith.core.wire import HARMLESS, BadRequest, convert, decode_object, take_ignored

MAX_STOPS, MAX_CHOICES, MAX_TOP_LOGPROBS = 4, 128, 20


class _Function(Record, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(Record, frozen=True):
    type: Literal["function"]
    function: _Function
    cache_control: Any = None  # some clients mark what may be cached; no meaning here


class _StreamOptions(Record, frozen=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Format(Record, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatRequest(Record, frozen=True):
    """The body of POST /chat/completions, as far as it is served. `messages` are as the client sent them; `prompt` reads them."""

    model: str
    messages: Any
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
    functions: tuple[_Function, ...] | None = None
    function_call: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    modalities: tuple[Literal["text", "audio", "image"], ...] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return 1 if self.n is None else self.n

    @property
    def older(self) -> bool:
        """Whether calls are asked for by the older `functions`: they are answered as `function_call`, one at most."""
        return bool(self.functions) and not self.tools

    @property
    def offered(self) -> tuple[_Tool, ...]:
        """The tools, whichever way they came; where there are tools already, older functions do not count."""
        if self.older:
            return tuple(_Tool(type="function", function=function) for function in self.functions or ())
        return tuple(msgspec.structs.replace(tool, cache_control=None) for tool in self.tools or ())

    @property
    def choice_of_tool(self) -> str | dict[str, Any] | None:
        """`tool_choice`, or the older `function_call` in its words."""
        if not self.older:
            return self.tool_choice
        call = self.function_call
        return {"type": "function", "function": call} if isinstance(call, dict) else call

    @property
    def several(self) -> bool:
        """Whether more than one call at a time may be answered. A function that is chosen by name is called once."""
        choice = self.tool_choice
        by_name = isinstance(choice, dict) and choice.get("type") != "allowed_tools"
        return self.parallel_tool_calls is not False and not self.older and not by_name

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema that the answer must satisfy, None for free text."""
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        own = (wanted.json_schema or {}).get("schema") if wanted.type == "json_schema" else None
        return {"type": "object"} if own is None else strict_schema.closed(own)

    @property
    def must_call(self) -> tuple[dict[str, Any], ...]:
        """The tools of which one must be called, none when the model is free."""
        choice = self.choice_of_tool
        if isinstance(choice, dict):
            choice = allowed["mode"] if (allowed := _allowed(choice)) is not None else "required"
        return tuple(_held(tool) for tool in self.allowed) if choice == "required" else ()

    @property
    def allowed(self) -> tuple[_Tool, ...]:
        """The tools that may be called, of those that are offered: all of them unless `tool_choice` names some."""
        choice = self.choice_of_tool
        if not isinstance(choice, dict):
            return () if choice == "none" else self.offered
        allowed = _allowed(choice)
        names = {_chosen(choice)} if allowed is None else {_chosen(tool) for tool in allowed["tools"]}
        return tuple(tool for tool in self.offered if tool.function.name in names)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def prompt(self) -> Prompt:
        """What the model is asked. Raises BadRequest for what messages cannot be."""
        return Prompt(messages=turns(self.messages), tools=self.shown)

    @property
    def shown(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model is told of: all that are offered, but where only some are allowed, those."""
        choice = self.choice_of_tool
        tools = self.offered if isinstance(choice, dict) and _allowed(choice) is None else self.allowed
        return tuple(msgspec.to_builtins(tool) for tool in tools)

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
            max_tokens=int(defaults.get("max_tokens", default_max_tokens)) if limit is None else limit,
            temperature=defaults.get("temperature", 1.0) if self.temperature is None else self.temperature,
            top_p=defaults.get("top_p", 1.0) if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


def _held(tool: _Tool) -> dict[str, Any]:
    """The tool's object, with the parameters that a call is held to."""
    parameters = tool.function.parameters
    function = tool.function if parameters is None else msgspec.structs.replace(tool.function, parameters=strict_schema.closed(parameters))
    plain: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(tool, function=function))
    return plain


def _within(param: str, value: float, low: float, high: float, unit: str = "") -> None:
    if not low <= value <= high:
        count = f"{value} {unit}".strip()
        raise BadRequest(f"'{param}' is {count}", param=param, code="invalid_value", allowed=f"{low} to {high}")


def chat_request(body: bytes) -> ChatRequest:
    """A typed request of its JSON bytes. Raises BadRequest with the key and what was allowed."""
    tree = decode_object(body)
    for key in HARMLESS & tree.keys():
        del tree[key]
    take_ignored(tree)
    request = convert(tree, ChatRequest)
    _form(request)
    return request


def _chosen(choice: dict[str, Any]) -> str | None:
    function = choice.get("function")
    return function.get("name") if choice.get("type") == "function" and isinstance(function, dict) else None


def _allowed(choice: dict[str, Any]) -> dict[str, Any] | None:
    """What `{"type": "allowed_tools", …}` allows, as its `mode` and `tools`; None for another choice."""
    return choice.get("allowed_tools") if choice.get("type") == "allowed_tools" else None


def _check_allowed(request: ChatRequest, choice: dict[str, Any]) -> None:
    """Refuse an `allowed_tools` that is none. Raises BadRequest."""
    allowed, param, shape = choice.get("allowed_tools"), "tool_choice.allowed_tools", '{"mode": "auto" or "required", "tools": [...]}'
    if not isinstance(allowed, dict) or allowed.keys() != {"mode", "tools"} or allowed["mode"] not in ("auto", "required"):
        raise BadRequest(f"'{param}' is {str(allowed)[:100]}", param=param, code="invalid_value", allowed=shape)
    tools, known = allowed["tools"], {tool.function.name for tool in request.offered}
    for i, tool in enumerate(tools if isinstance(tools, list) and tools else [None]):
        if not isinstance(tool, dict) or _chosen(tool) not in known:
            where = f"{param}.tools[{i}]"
            raise BadRequest(
                f"'{where}' is {str(tool)[:100]}, and no such tool is given", param=where, code="invalid_value", allowed="a tool of 'tools'"
            )


def _form(request: ChatRequest) -> None:
    """Refuse forms of answers that nothing can have. Raises BadRequest."""
    for what in request.modalities or ():
        if what != "text":
            raise BadRequest(f"this server answers with no {what}", param="modalities", code="unsupported_value", allowed="text")
    choice, param = request.choice_of_tool, "function_call" if request.older else "tool_choice"
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        raise BadRequest(f"'{param}' is {choice[:50]!r}", param=param, code="unsupported_value", allowed="auto, none, required")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        _check_allowed(request, choice)
    elif (choice == "required" and not request.offered) or (isinstance(choice, dict) and not request.must_call):
        message = f"'{param}' is {str(choice)[:100]}, and no such tool is given"
        raise BadRequest(message, param=param, code="invalid_value", allowed="a tool of 'tools'")
    wanted = request.response_format
    if wanted is not None and wanted.type == "json_schema":
        _check_format(wanted.json_schema or {})
    for i, tool in enumerate(request.offered):
        _check_function(tool.function, f"functions[{i}].parameters" if request.older else f"tools[{i}].function.parameters")


def _check_format(form: dict[str, Any]) -> None:
    """Refuse a form without a schema, and a strict one that leaves keys open, as OpenAI does."""
    if not isinstance(form.get("schema"), dict):
        param = "response_format.json_schema.schema"
        raise BadRequest(f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter")
    if form.get("strict") and (fault := strict_schema.fault(form["schema"])):
        raise BadRequest(f"Invalid schema for response_format '{str(form.get('name'))[:64]}': {fault}", param="response_format")


def _check_function(function: _Function, param: str) -> None:
    if function.strict and function.parameters and (fault := strict_schema.fault(function.parameters)):
        raise BadRequest(f"Invalid schema for function '{function.name[:64]}': {fault}", param=param, code="invalid_function_parameters")
