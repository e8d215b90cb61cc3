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
from tunesmith.nets.decoder import Decoder, Engine, Token

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

    def matcher(self, constraint: Constraint) -> Any:
        """A fresh automaton. Raises UsageError when the schema cannot be followed, saying why."""
        made = self._library.LLMatcher(self._tokenizer, lark(constraint), log_level=0)
        if made.is_error():
            raise UsageError(f"the schema cannot be followed: {made.get_error()[:500]}", allowed="JSON Schema without remote references")
        return made


class HeldDecoder(Decoder):
    """A decoder some of whose rows are held to a grammar. It steps in where the logits of a step become tokens (`Decoder._sample`).

    `base` is the folder whose tokenizer its grammars are compiled for, `stop_ids` end an answer.
    """

    def __init__(self, engine: Engine, base: Path, stop_ids: frozenset[int], *, max_rows: int) -> None:
        super().__init__(engine, max_rows=max_rows)
        self._base, self._stop_ids = base, stop_ids
        self._grammars: Grammars | None = None
        self._matchers: dict[int, Any] = {}

    def hold(self, number: int, constraint: Constraint) -> None:
        """Hold a row that was just added. Raises UsageError for a schema that cannot be followed."""
        if self._grammars is None:
            size = self.engine.model.get_output_embeddings().weight.shape[0]
            self._grammars = Grammars(self._base, size, self._stop_ids)
        self._matchers[number] = self._grammars.matcher(constraint)

    def cancel(self, number: int) -> None:
        """Forget a row."""
        self._matchers.pop(number, None)
        super().cancel(number)

    def _sample(self, rows: list[Any], logits: Tensor) -> list[Token]:
        import torch

        held = [(i, self._matchers[row.number]) for i, row in enumerate(rows) if row.number in self._matchers]
        if held:
            logits = logits.clone()
        for i, matcher in held:
            allowed = _allowed(matcher, logits.shape[1], rows[i].request.stop_ids)
            logits[i, torch.from_numpy(~allowed).to(logits.device)] = float("-inf")
        tokens = super()._sample(rows, logits)
        for token in tokens:
            matcher = self._matchers.get(token.sequence)
            if matcher is not None and token.finish is None:
                matcher.consume_token(token.id)
            elif matcher is not None:
                del self._matchers[token.sequence]
        return tokens


def _allowed(matcher: Any, size: int, stop_ids: frozenset[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which ids may come next: bool [size]. Where the automaton gave up (a grammar beyond its limits) only the end: others go on."""
    allowed = np.zeros(size, dtype=bool)
    if not matcher.is_error():
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[:size]
        allowed[: len(bits)] = bits.astype(bool)
    if not allowed.any():
        allowed[sorted(stop_ids)] = True
    return allowed
