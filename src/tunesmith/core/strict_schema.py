"""JSON Schemas as data: what `strict: true` asks of one, and one put inside another so that its references still hold. Knows nothing
about requests or grammars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# Keywords whose values are schemas: one, a list of them, or one under each name.
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "additionalItems")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
# What lets one schema speak of the properties of another.
_COMBINING = ("if", "not", "dependentSchemas", "unevaluatedProperties", "$dynamicRef")


def fault(schema: dict[str, Any]) -> str:
    """Why a schema is not strict, in OpenAI's words; empty when it is: every object says `additionalProperties: false` and requires each
    of its properties."""
    for path, part in _all(schema, ()):
        kind = part.get("type")
        if not ("properties" in part or kind == "object" or (isinstance(kind, list) and "object" in kind)):
            continue
        context = f"In context={path!r}"
        if part.get("additionalProperties") is not False:
            return f"{context}, 'additionalProperties' is required to be supplied and to be false."
        properties, required = part.get("properties") or {}, part.get("required")
        missing = [key for key in properties if not isinstance(required, list) or key not in required]
        if missing:
            words = "'required' is required to be supplied and to be an array including every key in properties."
            return f"{context}, {words} Missing '{missing[0]}'."
    return ""


def _all(schema: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The schema and every schema within it, each with the way to it."""
    waiting = [(path, schema)]
    while waiting:
        at, schema = waiting.pop()
        yield at, schema
        waiting += [((*at, *way), part) for way, part in _parts(schema)]


def _parts(schema: dict[str, Any]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    parts: list[tuple[tuple[str, ...], Any]] = [((key,), schema.get(key)) for key in _ONE]
    for key in _LISTS:
        several = schema.get(key)
        parts += [((key, str(i)), part) for i, part in enumerate(several)] if isinstance(several, list) else []
    for key in _NAMED:
        named = schema.get(key)
        parts += [((key, name), part) for name, part in named.items()] if isinstance(named, dict) else []
    return [(way, part) for way, part in parts if isinstance(part, dict)]


def moved(schema: dict[str, Any], root: str) -> dict[str, Any]:
    """The schema as it stands at the pointer `root` (`#/$defs/…`) of another one: its own references, `#` and `#/…`, begin there."""

    def there(part: dict[str, Any]) -> dict[str, Any]:
        made = {key: value for key, value in part.items() if key not in ("$id", "$schema", "id")}
        reference = part.get("$ref")
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            made["$ref"] = root + reference[1:]
        return made

    return _mapped(schema, there)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema whose objects that list their properties and say nothing of others have no others: whatever satisfies it satisfies the one
    given. A model that may add keys of its own goes on adding them. A schema that combines others stays as it is: two closed ones
    would forbid each other's properties."""
    for _, part in _all(schema, ()):
        beside = "properties" in part and any(key in part for key in ("anyOf", "oneOf", "$ref"))
        if beside or len(part.get("allOf", ())) > 1 or any(key in part for key in _COMBINING):
            return schema

    def shut(part: dict[str, Any]) -> dict[str, Any]:
        return {"additionalProperties": False, **part} if part.get("properties") and "patternProperties" not in part else part

    return _mapped(schema, shut)


def _mapped(schema: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """The schema with every schema within it, and itself, changed."""

    def converted(part: Any) -> Any:
        return _mapped(part, change) if isinstance(part, dict) else part

    made = dict(schema)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            made[key] = {name: converted(part) for name, part in value.items()}
        elif key in _LISTS and isinstance(value, list):
            made[key] = [converted(part) for part in value]
        elif key in _ONE:
            made[key] = converted(value)
    return change(made)
