"""Answers held to a grammar: at each token only those that the grammar allows can be drawn. Knows nothing about who asks.

The grammars run in llguidance (MIT), which turns JSON Schemas and Lark grammars into masks over the vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.core.errors import UsageError
from tunesmith.core.load import need
from tunesmith.core.strict_schema import moved
from tunesmith.models.base import Constraint

if TYPE_CHECKING:
    from torch import Tensor


def lark(constraint: Constraint) -> str:
    """The constraint as a Lark grammar."""
    if constraint.schema is not None:
        return f"start: value\nvalue: %json {_json(constraint.schema)}"
    functions = [tool["function"] for tool in constraint.tools]
    own = {f"p{i}": moved(function.get("parameters") or {"type": "object"}, f"#/$defs/p{i}") for i, function in enumerate(functions)}
    calls = [_call(function["name"], f"#/$defs/p{i}") for i, function in enumerate(functions)]
    call = f"call: %json {_json({'anyOf': calls, '$defs': own})}"
    more = "+" if constraint.several else ""
    return f'start: one{more}\none: "<tool_call>" call "</tool_call>"\n{call}'


def _json(schema: dict[str, Any]) -> str:
    """The schema without free white space: a model that likes spaces would never come to the end of its answer."""
    return json.dumps({**schema, "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}})


def _call(name: str, parameters: str) -> dict[str, Any]:
    """The schema of one call of a function, as models write it; `parameters` points at the schema of its own."""
    properties = {"name": {"const": name}, "arguments": {"$ref": parameters}}
    return {"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": False}


class Grammars:
    """Constraints compiled for the vocabulary of one base, whose folder has its `tokenizer.json`."""

    def __init__(self, base: Path, size: int, stop_ids: frozenset[int]) -> None:
        self._library = need("llguidance", extra="serve")
        self._tokenizer = self._library.LLTokenizer(str(base / "tokenizer.json"), n_vocab=size, eos_token=sorted(stop_ids))

    def grammar(self, constraint: Constraint) -> Grammar:
        """A fresh automaton for one answer. Raises UsageError when the schema cannot be followed, saying why."""
        made = self._library.LLMatcher(self._tokenizer, lark(constraint), log_level=0)
        if made.is_error():
            raise UsageError(f"the schema cannot be followed: {made.get_error()[:500]}", allowed="JSON Schema without remote references")
        return Grammar(made)


class Grammar:
    """Holds one answer to a grammar (see `Held`): an automaton that moves on with each token."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def masked(self, logits: Tensor, stop_ids: frozenset[int]) -> Tensor:
        """See `Held.masked`."""
        import torch

        allowed = _allowed(self._matcher, len(logits), stop_ids)
        return logits.masked_fill(torch.from_numpy(~allowed).to(logits.device), float("-inf"))

    def take(self, token: int) -> None:
        """See `Held.take`."""
        self._matcher.consume_token(token)


def _allowed(matcher: Any, size: int, stop_ids: frozenset[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which ids may come next: bool [size]. Where the automaton gave up (a grammar beyond its limits) only the end: others go on."""
    allowed = np.zeros(size, dtype=bool)
    if not matcher.is_error():
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[:size]
        allowed[: len(bits)] = bits.astype(bool)
    if not allowed.any():
        allowed[sorted(stop_ids)] = True
    return allowed
