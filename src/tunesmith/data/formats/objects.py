"""One line of JSON → an object, or the reason why it is none; knows nothing about rows."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec

from tunesmith.core.json_text import MAX_DEPTH, too_deep
from tunesmith.data.formats.turns import shown

TOO_DEEP = ("too_deep", f"nested deeper than {MAX_DEPTH} levels: no row")
_any = msgspec.json.Decoder()


def load_object(data: bytes) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """A JSON object from one line, or the fault (code, message) that keeps it from being one."""
    try:
        value = _any.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {}, _explain(data, error)
    if too_deep(value, data):
        return {}, TOO_DEEP
    if not isinstance(value, dict):
        return {}, ("not_an_object", f"expected a JSON object {{…}}, got {shown(value)}")
    if data.count(b'":') != _count_keys(value) and (twice := _first_duplicate(data)):
        return {}, ("duplicate_key", f"the key '{twice}' comes twice in one object; only one of its values could be kept")
    return value, None


def _explain(data: bytes, error: Exception) -> tuple[str, str]:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, UnicodeDecodeError):
        return "invalid_utf8", f"byte {error.start} ({error.object[error.start]:#04x}) is not UTF-8: convert the file to UTF-8"
    try:
        text = data.decode()
    except UnicodeDecodeError as wrong:
        return "invalid_utf8", f"byte {wrong.start} ({data[wrong.start]:#04x}) is not UTF-8: convert the file to UTF-8"
    constants: list[str] = []
    try:
        json.loads(text, parse_constant=lambda name: constants.append(name))
    except json.JSONDecodeError as wrong:
        near = text[max(0, wrong.pos - 20) : wrong.pos + 20]
        return "invalid_json", f"not valid JSON: {wrong.msg} at character {wrong.pos + 1}, near {shown(near)}"
    except (RecursionError, ValueError) as wrong:
        return "invalid_json", f"not usable JSON: {wrong}"
    if constants:
        return "not_a_number", f"{constants[0]} is not JSON: write null or a number"
    if "\\ud" in text.lower():
        return "lone_surrogate", "half of a surrogate pair (\\ud800–\\udfff alone) is no character: remove it or write the whole character"
    return "invalid_json", f"not usable JSON: {error}"


def _count_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(item) for item in value.values() if type(item) in (dict, list))
    return sum(_count_keys(item) for item in value if type(item) in (dict, list))


def _first_duplicate(data: bytes) -> str:
    duplicates: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = Counter(key for key, _ in items)
        duplicates.extend(key for key, times in keys.items() if times > 1)
        return dict(items)

    json.loads(data, object_pairs_hook=pairs)
    return duplicates[0] if duplicates else ""
