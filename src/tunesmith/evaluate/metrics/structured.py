"""Metrics of structured answers: JSON and its schema, fields, tool calls; knows nothing about what the values mean."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.core.errors import ConfigError
from tunesmith.core.load import need
from tunesmith.core.types import Answer, Example, ToolCall
from tunesmith.evaluate.metrics.base import Measured, Metric, f1_pool, register


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def parsed(text: str, fence: bool = False) -> Any:
    """The JSON value that is the whole text (inside one Markdown fence, where `fence` allows it).

    Raises ValueError; NaN is refused (RFC 8259).
    """
    inside = _unfenced(text) if fence else None
    try:
        return json.loads(text if inside is None else inside, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unfenced(text: str) -> str | None:
    """What stands inside the one Markdown fence that is the whole text, else None. No pattern: those backtrack on blank lines."""
    whole = text.strip()
    if len(whole) < 6 or not whole.startswith("```") or not whole.endswith("```"):
        return None
    kind, line_end, body = whole[3:-3].partition("\n")
    return body if line_end and kind.strip().lower() in ("", "json") else None


@register("json_valid")
def json_valid(fence: bool = False) -> Metric:
    """1 when the whole answer is one JSON value; `fence` forgives a Markdown fence around it. Range 0 to 1, higher is better, mean."""

    def rate(_: Example, answer: Answer) -> Measured:
        try:
            parsed(answer.text, fence)
        except (ValueError, RecursionError) as error:
            return Measured(0.0, detail=str(error))
        return Measured(1.0)

    return Metric(name="json_valid", rate=rate)


@register("json_schema")
def json_schema(schema: dict[str, Any] | None = None, fence: bool = False) -> Metric:
    """1 when the answer is JSON that satisfies the schema (2020-12), or the row's own `meta["schema"]`.

    Range 0 to 1, higher is better, mean. Raises ConfigError when the schema itself is none; a row without any schema is missing.
    """
    library = need("jsonschema", extra="eval")

    def check(wanted: dict[str, Any]) -> Any:
        kind = library.validators.validator_for(wanted, default=library.Draft202012Validator)
        try:
            kind.check_schema(wanted)
        except library.SchemaError as error:
            raise ConfigError(f"no JSON Schema: {error.message}", where="metric 'json_schema'", allowed="JSON Schema 2020-12") from error
        return kind(wanted)

    fixed = check(schema) if schema is not None else None

    def rate(example: Example, answer: Answer) -> Measured:
        validator = fixed or (check(example.meta["schema"]) if "schema" in example.meta else None)
        if validator is None:
            return Measured(None, detail='no schema: give one, or meta["schema"]')
        try:
            value = parsed(answer.text, fence)
        except (ValueError, RecursionError) as error:
            return Measured(0.0, detail=f"no JSON: {error}")
        fault = next(iter(validator.iter_errors(value)), None)
        return Measured(float(fault is None), detail=f"{fault.json_path}: {fault.message}" if fault else "")

    return Metric(name="json_schema", rate=rate)


def leaves(value: Any, path: str = "$") -> dict[str, Any]:
    """Every scalar (and empty container) of a JSON value under its path."""
    if isinstance(value, dict) and value:
        return {p: v for key, inner in value.items() for p, v in leaves(inner, f"{path}.{key}").items()}
    if isinstance(value, list) and value:
        return {p: v for i, inner in enumerate(value) for p, v in leaves(inner, f"{path}[{i}]").items()}
    return {path: value}


@register("json_fields")
def json_fields(fence: bool = False, tolerance: float = 0.0) -> Metric:
    """Micro F1 over (path, value) pairs of answer and reference, both JSON. Range 0 to 1, higher is better, pooled.

    A wrong value is a false positive and a false negative; numbers may differ by `tolerance`, relative. An answer that is no JSON finds
    nothing; a reference that is none is missing.
    """

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, bool) or isinstance(b, bool) or not (isinstance(a, int | float) and isinstance(b, int | float)):
            return type(a) is type(b) and bool(a == b)
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=0)

    def rate(example: Example, answer: Answer) -> Measured:
        try:
            wanted = leaves(parsed(example.answer))
        except ValueError as error:
            return Measured(None, detail=f"the reference is no JSON: {error}")
        try:
            answered = leaves(parsed(answer.text, fence))
        except (ValueError, RecursionError) as error:
            return Measured(0.0, (0.0, 0.0, float(len(wanted))), f"no JSON: {error}")
        wrong = [path for path in wanted if path not in answered or not same(answered[path], wanted[path])]
        right = len(wanted) - len(wrong)
        counts = (float(right), float(len(answered) - right), float(len(wrong)))
        return Measured(2 * right / (len(answered) + len(wanted)), counts, f"wrong: {', '.join(wrong[:5])}" if wrong else "")

    return Metric(name="json_fields", rate=rate, kind="pooled", pool=f1_pool)


def _calls(calls: Sequence[ToolCall], arguments: bool) -> Counter[tuple[str, str]]:
    """Calls as a multiset; arguments by meaning, so white space and the order of keys do not count."""

    def meaning(text: str) -> str:
        try:
            return json.dumps(parsed(text or "{}"), sort_keys=True)
        except (ValueError, RecursionError):
            return text

    return Counter((call.function.name, meaning(call.function.arguments) if arguments else "") for call in calls)


@register("tool_call")
def tool_call(arguments: bool = True) -> Metric:
    """Micro F1 over the multiset of tool calls, by name and arguments (or name alone), against the row's final assistant message.

    Range 0 to 1, higher is better, pooled; a row's value is 1 when neither side calls anything.
    """

    def rate(example: Example, answer: Answer) -> Measured:
        last = example.messages[-1] if example.messages else None
        wanted = _calls(last.tool_calls if last is not None and last.role == "assistant" else (), arguments)
        answered = _calls(answer.tool_calls, arguments)
        right = (wanted & answered).total()
        value = 2 * right / (wanted.total() + answered.total()) if wanted or answered else 1.0
        return Measured(value, (float(right), float(answered.total() - right), float(wanted.total() - right)))

    return Metric(name="tool_call", rate=rate, kind="pooled", pool=f1_pool)
