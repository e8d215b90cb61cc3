"""The words of a logged row, taken out, changed and put back: what clients and models wrote, not what was measured. Knows nothing about
what is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from tunesmith.core.types import Interaction, ShadowAnswer

Row = TypeVar("Row", Interaction, ShadowAnswer)
# Texts → the same texts, changed: one call for many, since one search over all costs far less than one each.
Reworded = Callable[[Sequence[str]], Sequence[str]]
_FIELDS = ("messages", "answer", "tool_calls", "error")
_FIXED = frozenset({"role", "type", "id", "tool_call_id"})  # keys whose values say what something is


def reworded(rows: Sequence[Row], change: Reworded) -> list[Row]:
    """The rows with every text of a message, an answer, a call's arguments or an error changed."""
    trees = [{name: msgspec.to_builtins(getattr(row, name)) for name in _FIELDS if hasattr(row, name)} for row in rows]
    texts = iter(change([text for tree in trees for text in _texts(tree)]))
    return [_with(row, _filled(tree, texts)) for row, tree in zip(rows, trees, strict=True)]


def _with(row: Row, tree: dict[str, Any]) -> Row:
    kinds = {field.name: field.type for field in msgspec.structs.fields(type(row))}
    return msgspec.structs.replace(row, **{name: msgspec.convert(value, kinds[name]) for name, value in tree.items()})


def _texts(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, str):
        if key not in _FIXED:
            yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, name)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _filled(value: Any, texts: Iterator[str], key: str = "") -> Any:
    if isinstance(value, str):
        return value if key in _FIXED else next(texts)
    if isinstance(value, dict):
        return {name: _filled(inner, texts, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(inner, texts) for inner in value]
    return value
