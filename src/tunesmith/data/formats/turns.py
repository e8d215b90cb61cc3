"""One foreign message, tool or tool call → Tunesmith's record, with every fault and every mend noted; knows nothing about files.

This is the slow, explaining path: what it accepts without a mend equals what the typed decoder of `registry` accepts.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from tunesmith.core.errors import nearest
from tunesmith.core.types import Function, Message, TextPart, ToolCall, canonical

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGE_CHARS = 500_000
_MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "weight", "function_call", "audio", "annotations"}
_TRAINED = ("loss", "train", "trainable", "training")  # what other tools call a weight of 0 or 1
# what servers and stores write beside a turn and no model ever sees
_ASIDE = {
    "id",
    "index",
    "timestamp",
    "created",
    "created_at",
    "date",
    "time",
    "cache_control",
    "logprobs",
    "usage",
    "model",
    "finish_reason",
}
_REASONING = ("reasoning_content", "reasoning", "thinking", "thoughts")


class Notes:
    """What was found while one row was read: `faults` (path, code, message) make it unusable, `mends` name what was put right."""

    __slots__ = ("faults", "ignored", "mends")

    def __init__(self, ignored: Collection[str] = ()) -> None:
        self.faults: list[tuple[str, str, str]] = []
        self.mends: list[str] = []
        self.ignored = ignored  # keys of turns that may be left out

    def fault(self, path: str, code: str, message: str) -> None:
        """Note one thing that makes the row unusable."""
        self.faults.append((path, code, message))

    def mend(self, rule: str) -> None:
        """Note one thing that was put right; each rule once."""
        if rule not in self.mends:
            self.mends.append(rule)


def shown(value: Any, limit: int = 60) -> str:
    """A value as it is shown in a message: short, on one line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def messages(raw: Any, path: str, notes: Notes) -> tuple[Message, ...]:
    """A list of chat messages; an empty tuple with faults noted when it is none."""
    if not isinstance(raw, list):
        notes.fault(path, "not_a_list", f"expected a list of messages, got {shown(raw)}")
        return ()
    if not raw:
        notes.fault(path, "no_messages", "the list of messages is empty")
    turns = [message(item, f"{path}[{i}]", notes) for i, item in enumerate(raw)]
    good = tuple(item for item in turns if item is not None)
    if len(good) == len(turns):
        _check_tool_turns(good, path, notes)
    return good


def message(raw: Any, path: str, notes: Notes) -> Message | None:
    """One chat message, or None with faults noted. Nulls that stand for 'absent' are mended away."""
    if not isinstance(raw, dict):
        notes.fault(path, "not_an_object", f"expected a message with role and content, got {shown(raw)}")
        return None
    before = len(notes.faults)
    role = _role(raw.get("role"), path, notes)
    raw = _with_weight(raw, role, path, notes)
    _check_keys(raw, path, notes)
    content = _content(raw.get("content"), f"{path}.content", notes)
    calls = _tool_calls(raw, path, notes)
    fields = {key: _text(raw.get(key), f"{path}.{key}", notes) for key in ("name", "refusal", "tool_call_id")}
    fields["reasoning_content"] = _reasoning(raw, role, path, notes)
    weight = _weight(raw.get("weight"), role, path, notes)
    if raw.get("audio") is not None:
        notes.fault(f"{path}.audio", "unsupported_content", "audio cannot be trained on; only text can")
    if content is None and not calls and fields["refusal"] is None and len(notes.faults) == before:
        notes.fault(
            f"{path}.content",
            "null_content",
            f"the {role} message has no content (null or missing); only one with tool_calls or a refusal may",
        )
    if calls and role != "assistant":
        notes.fault(f"{path}.tool_calls", "tool_calls_not_assistant", f"only an assistant message can call tools, not '{role}'")
    if len(notes.faults) > before:
        return None
    return Message(role=role, content=content, tool_calls=calls, weight=weight, **fields)  # type: ignore[arg-type]


def _reasoning(raw: dict[str, Any], role: str, path: str, notes: Notes) -> str | None:
    """What the assistant thought before its words, by whichever name it came; two that differ are a fault."""
    given = {key: raw[key] for key in _REASONING if raw.get(key) not in (None, "") and key not in notes.ignored}
    if role != "assistant" or not given:
        return None
    first, value = next(iter(given.items()))
    if any(other != value for other in given.values()):
        notes.fault(f"{path}.{first}", "reasoning", f"{' and '.join(given)} differ: keep one of them, or leave one out: ignore: [KEY]")
    if first != "reasoning_content":
        notes.mend(f"reasoning_from:{first}")
    return _text(value, f"{path}.{first}", notes)


def _check_keys(raw: dict[str, Any], path: str, notes: Notes) -> None:
    """An unknown key is a fault: what it says would be lost, and a lost `weight: 0` would be trained on. What stores and servers write
    beside a turn is left out, and said; `ignore` of the source names more of it."""
    for key, value in raw.items():
        if value is None and key not in ("content", "refusal", "function_call", "audio"):
            notes.mend("nulls")
        elif key in _ASIDE or key in notes.ignored or (key not in _MESSAGE_KEYS and value in ("", [], {})):
            notes.mend(f"message_key:{key}")
        elif key in _REASONING:
            if raw.get("role") != "assistant":
                notes.fault(f"{path}.{key}", "reasoning", f"only an assistant message can have '{key}'; leave it out: ignore: [{key}]")
        elif key not in _MESSAGE_KEYS:
            close = get_close_matches(key, [*_MESSAGE_KEYS, *_TRAINED], n=1, cutoff=0.75)
            hint = f"did you mean '{close[0]}'?" if close else f"if nothing is lost without it: ignore: [{key}]"
            notes.fault(f"{path}.{key}", "unknown_key", f"a message has no key '{key}'; {hint}")


def _with_weight(raw: dict[str, Any], role: str, path: str, notes: Notes) -> dict[str, Any]:
    """The turn with `weight` where another tool's word says whether it is trained; a turn that is no answer is never trained."""
    weights = {key: value for key in _TRAINED if (value := raw.get(key)) is not None}
    if not weights:
        return raw
    raw = {key: value for key, value in raw.items() if key not in _TRAINED}
    for key, value in weights.items():
        if not isinstance(value, bool | int) or value not in (0, 1):
            notes.fault(f"{path}.{key}", "wrong_weight", f"{key} is {shown(value)}; allowed: true or false")
        elif role != "assistant" and value:
            notes.fault(f"{path}.{key}", "weight_not_assistant", f"only an assistant message can be trained, not '{role}'")
        elif role == "assistant":
            if raw.get("weight", int(value)) != int(value):
                notes.fault(f"{path}.{key}", "wrong_weight", f"{key} is {shown(value)} and weight {shown(raw['weight'])}: which holds?")
            raw["weight"] = int(value)
        notes.mend(f"weight_from:{key}")
    return raw


def _role(raw: Any, path: str, notes: Notes) -> str:
    if raw == "function":
        notes.mend("function_role")
        return "tool"
    if raw not in ROLES:
        hint = {
            "human": "did you mean 'user'?",
            "gpt": "did you mean 'assistant'?",
            "model": "did you mean 'assistant'?",
            "bot": "did you mean 'assistant'?",
        }
        advice = hint.get(raw, "") if isinstance(raw, str) else ""
        notes.fault(
            f"{path}.role", "wrong_role", f"role is {shown(raw)}; allowed: {', '.join(ROLES)} {advice or nearest(str(raw), ROLES)}".rstrip()
        )
    return raw if isinstance(raw, str) else ""


def _content(raw: Any, path: str, notes: Notes) -> str | tuple[TextPart, ...] | None:
    if raw is None:
        return None
    if isinstance(raw, str):
        _check_length(raw, path, notes)
        return raw
    if isinstance(raw, list) and raw:
        parts = [_part(part, f"{path}[{i}]", notes) for i, part in enumerate(raw)]
        return tuple(part for part in parts if part is not None)
    notes.fault(path, "wrong_type", f"content must be text or a list of text parts, got {shown(raw)}")
    return None


def _part(raw: Any, path: str, notes: Notes) -> TextPart | None:
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind == "text" and isinstance(raw.get("text"), str):
        _check_length(raw["text"], path, notes)
        return TextPart(text=raw["text"])
    if kind in ("image_url", "input_audio", "file", "image"):
        notes.fault(path, "unsupported_content", f"a part of type '{kind}' cannot be trained on; only text can")
    else:
        notes.fault(path, "wrong_type", f"expected a part such as {{'type': 'text', 'text': '…'}}, got {shown(raw)}")
    return None


def _check_length(text: str, path: str, notes: Notes) -> None:
    if len(text) > MAX_MESSAGE_CHARS:
        notes.fault(
            path,
            "message_too_long",
            f"the message has {len(text):,} characters; at most {MAX_MESSAGE_CHARS:,} can be one turn: split the document",
        )


def _text(raw: Any, path: str, notes: Notes) -> str | None:
    if raw is None or isinstance(raw, str):
        return raw
    notes.fault(path, "wrong_type", f"expected text, got {shown(raw)}")
    return None


def _weight(raw: Any, role: str, path: str, notes: Notes) -> int | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or raw not in (0, 1):
        notes.fault(f"{path}.weight", "wrong_weight", f"weight is {shown(raw)}; allowed: 0 or 1")
        return None
    if role != "assistant":
        notes.fault(f"{path}.weight", "weight_not_assistant", f"only an assistant message can have a weight, not '{role}'")
        return None
    if not isinstance(raw, int):
        notes.mend("weight_number")
    return int(raw)


def _tool_calls(raw: dict[str, Any], path: str, notes: Notes) -> tuple[ToolCall, ...]:
    old = raw.get("function_call")
    if isinstance(old, dict):
        notes.mend("function_call")
        return tuple(call for call in [_tool_call({"id": "call_0", "function": old}, f"{path}.function_call", notes)] if call)
    calls = raw.get("tool_calls")
    if calls is None:
        return ()
    if not isinstance(calls, list):
        notes.fault(f"{path}.tool_calls", "not_a_list", f"expected a list of tool calls, got {shown(calls)}")
        return ()
    read = [_tool_call(call, f"{path}.tool_calls[{i}]", notes) for i, call in enumerate(calls)]
    return tuple(call for call in read if call is not None)


def _tool_call(raw: Any, path: str, notes: Notes) -> ToolCall | None:
    function = raw.get("function") if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        notes.fault(
            path, "wrong_tool_call", f"expected {{'id', 'type': 'function', 'function': {{'name', 'arguments'}}}}, got {shown(raw)}"
        )
        return None
    if raw.get("type", "function") != "function":
        notes.fault(f"{path}.type", "wrong_tool_call", f"type is {shown(raw['type'])}; allowed: 'function'")
        return None
    identity, arguments = raw.get("id"), function.get("arguments")
    if identity is None:
        identity = f"call_{path.rsplit('[', 1)[-1].rstrip(']')}" if path.endswith("]") else "call_0"
        notes.mend("tool_call_id")
    if isinstance(arguments, dict | list) or arguments is None:
        notes.mend("tool_arguments")
        arguments = canonical(arguments or {}).decode()
    if not isinstance(arguments, str) or not isinstance(identity, str):
        notes.fault(path, "wrong_tool_call", f"id and arguments must be text, got {shown(identity)} and {shown(arguments)}")
        return None
    return ToolCall(id=identity, function=Function(name=function["name"], arguments=arguments))


def _check_tool_turns(turns: tuple[Message, ...], path: str, notes: Notes) -> None:
    asked: set[str] = set()
    for i, turn in enumerate(turns):
        asked.update(call.id for call in turn.tool_calls)
        if turn.role == "tool" and turn.tool_call_id is not None and turn.tool_call_id not in asked:
            notes.fault(
                f"{path}[{i}].tool_call_id", "unasked_tool_result", f"answers '{turn.tool_call_id}', which no earlier message called"
            )
        if turn.role == "tool" and turn.tool_call_id is None and "function_role" not in notes.mends:
            notes.fault(f"{path}[{i}].tool_call_id", "missing_tool_call_id", "a tool message must say which call it answers")


def tools(row: dict[str, Any], path: str, notes: Notes) -> tuple[dict[str, Any], ...]:
    """The tools of a row (`tools`, or the older `functions`), taken out of `row`. Nulls planted into schemas are mended away."""
    raw, functions = row.pop("tools", None), row.pop("functions", None)
    if isinstance(raw, str):  # Hugging Face data sets keep tools as JSON text
        raw = _json_list(raw) if raw.strip() else None
        notes.mend("tools_text")
    if raw is None and isinstance(functions, list):
        notes.mend("functions")
        raw = [{"type": "function", "function": function} for function in functions]
    if raw is None:
        return ()
    good = []
    for i, tool in enumerate(raw if isinstance(raw, list) else [raw]):
        if isinstance(tool, dict) and "function" not in tool and isinstance(tool.get("name"), str):  # as the Responses API has them
            tool = {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
            notes.mend("flat_tools")
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            notes.fault(
                f"{path}.tools[{i}]", "wrong_tool", f"expected {{'type': 'function', 'function': {{'name', …}}}}, got {shown(tool)}"
            )
            continue
        clean = without_nulls(tool)
        if clean != tool:
            notes.mend("nulls")
        good.append(clean)
    return tuple(good)


def _json_list(text: str) -> Any:
    import msgspec

    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def without_nulls(value: Any) -> Any:
    """A JSON Schema without the null members that Arrow plants: in a schema a null is allowed only in `default`, `const`, `enum`."""
    if isinstance(value, dict):
        return {
            key: item if key in ("default", "const", "enum") else without_nulls(item)
            for key, item in value.items()
            if item is not None or key in ("default", "const")
        }
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
