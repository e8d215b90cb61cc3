"""What a variant brings to a request that passes: its prompt, its sampling, its model's name. Knows nothing about answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tunesmith.core import wire
from tunesmith.core.deployment import Variant
from tunesmith.deploy.router import Target

Tree = Mapping[str, msgspec.Raw]
_LIMITS = {"/v1/chat/completions": ("max_tokens", "max_completion_tokens"), "/v1/responses": ("max_output_tokens",)}
_encode = msgspec.json.Encoder().encode


def body_for(tree: Tree, target: Target, path: str, more: Mapping[str, Any] | None = None) -> bytes:
    """The body that the target's server is sent: its model in place of the alias, of a chat the variant's instruction in place of the
    request's and its shots, its sampling where the request leaves it open; and `more`."""
    sent: dict[str, Any] = {**tree, **(more or {}), "model": target.model.name}
    limits = _LIMITS.get(path)
    if limits is None:
        return _encode(sent)
    turns = msgspec.json.decode(tree["messages"]) if target.variant.prompted and "messages" in tree else None
    if isinstance(turns, list):
        sent["messages"] = _under(target.variant, turns)
    for name, value in target.defaults.items():
        names = limits if name == "max_tokens" else (name,)
        if not any(own in tree for own in names):
            sent[names[0]] = int(value) if name == "max_tokens" else value
    return _encode(sent)


def _under(variant: Variant, turns: list[Any]) -> list[Any]:
    """A request's turns as the variant has them asked; what is no turn of a chat stays, for the upstream to judge."""
    leading = [isinstance(turn, dict) and turn.get("role") in ("system", "developer") for turn in turns]
    shots = [wire.message_body(shot) for shot in variant.shots]
    if variant.instruction is None:
        cut = leading.index(False) if False in leading else len(turns)
        return [*turns[:cut], *shots, *turns[cut:]]
    rest = [turn for turn, first in zip(turns, leading, strict=True) if not first]
    return [{"role": "system", "content": variant.instruction}, *shots, *rest]
