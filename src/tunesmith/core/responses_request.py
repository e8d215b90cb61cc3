"""The body of POST /v1/responses: what is asked, of what and in which form, and the chat that it comes to; knows nothing about HTTP, models
or where earlier responses are kept.

A request's unknown key is refused by name; a documented key that this server does not serve is refused with that reason; keys that are
taken and change no answer are named (`ignored`).
"""

from __future__ import annotations

from typing import Any, Literal

from tunesmith.core import strict_schema
from tunesmith.core.chat_request import MAX_TOP_LOGPROBS, ChatRequest
from tunesmith.core.types import Record
from tunesmith.core.wire import BadRequest, convert, decode_object

# Documented by OpenAI and not served, with the reason.
_REFUSED = {
    "access_programs": "there are no access programs here",
    "background_options": "there are no background responses here",
    "context_management": "nothing compacts a context here; 'truncation': 'auto' leaves out what is oldest",
    "conversation": "there are no conversation objects here; 'previous_response_id' goes on from a stored response",
    "image": "images are not read here",
    "moderation": "no moderation model is served here",
    "prompt": "there are no prompt templates here; send 'instructions' and 'input'",
}
_INCLUDED = ("message.output_text.logprobs", "reasoning.encrypted_content")
# The rest of what OpenAI can include belongs to tools that it runs itself.
_NOT_INCLUDED = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)
_CHOICES = "auto, none, required, {'type': 'function', 'name': …}, {'type': 'allowed_tools', …}"


class FunctionTool(Record, frozen=True):
    """A function that the client runs."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: tuple[Literal["direct"], ...] | None = None
    cache_control: Any = None

    @property
    def held(self) -> bool:
        """`strict` as it is in force: asked for, or left open for parameters that are strict as they stand."""
        if self.strict is None:
            return bool(self.parameters) and not strict_schema.fault(self.parameters or {})
        return self.strict


class _Format(Record, frozen=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _Text(Record, frozen=True):
    format: _Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class _Reasoning(Record, frozen=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class _StreamOptions(Record, frozen=True):
    include_obfuscation: bool | None = None


class ResponsesRequest(Record, frozen=True):
    """The body, as far as it is served. `input` is as the client sent it; `core/response_items.py` reads it."""

    model: str
    input: Any
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: _Text = _Text()
    reasoning: _Reasoning = _Reasoning()
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: tuple[str, ...] = ()
    truncation: Literal["auto", "disabled"] = "disabled"
    store: bool | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    background: bool = False
    metadata: dict[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are shown."""
        return "message.output_text.logprobs" in self.include or self.top_logprobs is not None

    @property
    def carries_thoughts(self) -> bool:
        """Whether reasoning items have an `encrypted_content` for clients to send back."""
        return "reasoning.encrypted_content" in self.include

    @property
    def ignored(self) -> list[str]:
        """The keys that are taken and have no effect here."""
        reasoning, text = self.reasoning, self.text
        context = reasoning.context not in (None, "auto")
        named = {"reasoning.context": context, "reasoning.effort": reasoning.effort, "reasoning.summary": reasoning.summary}
        named |= {"reasoning.generate_summary": reasoning.generate_summary, "text.verbosity": text.verbosity not in (None, "medium")}
        return [name for name, value in sorted(named.items()) if value]

    def chat(self) -> ChatRequest:
        """The same as a chat completion asks it, without its messages."""
        functions = [{"name": t.name, "description": t.description, "parameters": t.parameters, "strict": t.strict} for t in self.tools]
        tree = {
            "model": self.model,
            "messages": None,
            "tools": [{"type": "function", "function": _without_nulls(function)} for function in functions],
            "tool_choice": _chat_choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": _chat_format(self.text.format or _Format()),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
        }
        return convert(_without_nulls(tree) | {"messages": None}, ChatRequest)

    def echoed(self) -> dict[str, Any]:
        """What a response repeats of its request."""
        form, reasoning = self.text.format or _Format(), self.reasoning
        tools = [
            {"type": "function", "name": t.name, "description": t.description, "parameters": t.parameters, "strict": t.held}
            for t in self.tools
        ]
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata,
            "model": self.model,
            "parallel_tool_calls": self.parallel_tool_calls,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "text": {"format": _shown_format(form), "verbosity": self.text.verbosity or "medium"},
            "tool_choice": self.tool_choice,
            "tools": tools,
            "top_logprobs": self.top_logprobs or 0,
            "truncation": self.truncation,
            "user": self.user,
        }


def _without_nulls(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}


def _chat_choice(choice: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(choice, str):
        return choice
    if choice["type"] == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    tools = [{"type": "function", "function": {"name": tool["name"]}} for tool in choice["tools"]]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}


def _chat_format(form: _Format) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    schema = {"name": form.name, "description": form.description, "schema": form.schema, "strict": form.strict}
    return {"type": "json_schema", "json_schema": _without_nulls(schema)}


def _shown_format(form: _Format) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    own = {"name": form.name, "description": form.description, "schema": form.schema, "strict": bool(form.strict)}
    return {"type": "json_schema", **own}


def responses_request(body: bytes) -> ResponsesRequest:
    """A typed request of its JSON bytes. Raises BadRequest with the key and what was allowed."""
    tree = _without_nulls(decode_object(body))
    for key, why in _REFUSED.items():
        if key in tree:
            raise BadRequest(f"'{key}' is not served: {why}", param=key, code="unsupported_parameter")
    _tools(tree.get("tools"))
    request = convert(tree, ResponsesRequest)
    _limits(request)
    _form(request)
    _choice(request)
    return request


def _tools(raw: Any) -> None:
    """Refuse, by its kind, a tool that is no function of the client's."""
    for i, tool in enumerate(raw if isinstance(raw, list) else ()):
        if not isinstance(tool, dict):
            continue
        kind, where = tool.get("type"), f"tools[{i}]"
        if kind != "function":
            message = f"'{where}' is a tool of the type '{str(kind)[:50]}'; this server runs no tools itself"
            raise BadRequest(message, param=f"{where}.type", code="unsupported_value", allowed="function")
        for key in ("async", "defer_loading", "output_schema"):
            if tool.get(key):
                raise BadRequest(f"'{where}.{key}' is not served", param=f"{where}.{key}", code="unsupported_parameter")
            tool.pop(key, None)


def _limits(asked: ResponsesRequest) -> None:
    for name, value, low, high in (
        ("max_output_tokens", asked.max_output_tokens, 1, 1 << 24),
        ("max_tool_calls", asked.max_tool_calls, 0, 1 << 24),
        ("temperature", asked.temperature, 0, 2),
        ("top_p", asked.top_p, 0, 1),
        ("top_logprobs", asked.top_logprobs, 0, MAX_TOP_LOGPROBS),
    ):
        if value is not None and not low <= value <= high:
            raise BadRequest(f"'{name}' is {value}", param=name, code="invalid_value", allowed=f"{low} to {high}")
    if asked.background:
        raise BadRequest(
            "'background' is true, and this server answers while its client waits",
            param="background",
            code="unsupported_value",
            allowed="false",
        )
    for i, word in enumerate(asked.include):
        if word not in _INCLUDED:
            why = "belongs to tools that are not run here" if word in _NOT_INCLUDED else "is unknown"
            allowed = ", ".join(_INCLUDED)
            raise BadRequest(f"'{word[:100]}' {why}", param=f"include[{i}]", code="unsupported_value", allowed=allowed)


def _form(asked: ResponsesRequest) -> None:
    """Refuse a form without a schema, and strict ones that leave keys open, as OpenAI does."""
    form = asked.text.format or _Format()
    if form.type == "json_schema":
        for key in ("name", "schema"):
            if getattr(form, key) is None:
                param = f"text.format.{key}"
                raise BadRequest(f"Missing required parameter: '{param}'", param=param, code="missing_required_parameter")
        if form.strict and (fault := strict_schema.fault(form.schema or {})):
            message = f"Invalid schema for response_format '{(form.name or '')[:64]}': {fault}"
            raise BadRequest(message, param="text.format.schema", code="invalid_json_schema")
    for i, tool in enumerate(asked.tools):
        if tool.strict and tool.parameters and (fault := strict_schema.fault(tool.parameters)):
            message = f"Invalid schema for function '{tool.name[:64]}': {fault}"
            raise BadRequest(message, param=f"tools[{i}].parameters", code="invalid_function_parameters")


def _choice(asked: ResponsesRequest) -> None:
    choice, names = asked.tool_choice, {tool.name for tool in asked.tools}
    wanted: list[Any]
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise BadRequest(f"'tool_choice' is {choice[:50]!r}", param="tool_choice", code="unsupported_value", allowed=_CHOICES)
        wanted = [{"type": "function", "name": None}] if choice == "required" and not names else []
    elif choice.get("type") == "function" and choice.keys() <= {"type", "name"}:
        wanted = [choice]
    elif choice.get("type") == "allowed_tools" and choice.keys() == {"type", "mode", "tools"} and choice["mode"] in ("auto", "required"):
        wanted = choice["tools"] if isinstance(choice["tools"], list) and choice["tools"] else [None]
    else:
        raise BadRequest(f"'tool_choice' is {str(choice)[:100]}", param="tool_choice", code="unsupported_value", allowed=_CHOICES)
    for tool in wanted:
        if not isinstance(tool, dict) or tool.get("type") != "function" or tool.get("name") not in names:
            message = f"'tool_choice' is {str(choice)[:100]}, and no such tool is given"
            raise BadRequest(message, param="tool_choice", code="invalid_value", allowed="a function of 'tools'")
