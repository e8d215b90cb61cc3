"""Training that goes on from an adapter: the plan's adapter with the other's settings, which it must have to hold its weights. Knows
nothing about where adapters come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.model_ref import adapter_settings
from tunesmith.train.facts import start_of
from tunesmith.train.plan import Adapter


def going_on(adapter: Adapter, folder: Path, base: Path) -> Adapter:
    """The plan's adapter as one that starts with the weights of the adapter in `folder`, which stands on `base`: the same layers, kind,
    rank, alpha and trained tokens. What the plan leaves open is taken over.

    Raises ConfigError for a plan that wants another adapter, or none; NotFound for a folder without one.
    """
    if adapter.kind == "none":
        raise ConfigError(
            "kind is none, and the base is an adapter: its low-rank matrices cannot be trained as whole weights",
            where="train.adapter.kind",
            allowed="lora",
            remedy="kind: lora, or the whole weights that it stands on as the base",
        )
    settings = adapter_settings(folder)
    started = msgspec.structs.replace(
        adapter,
        start_from=str(folder),
        targets=_targets(adapter, settings, folder),
        rslora=adapter.rslora or bool(settings.get("use_rslora")),
        dora=adapter.dora or bool(settings.get("use_dora")),
        trainable_tokens=adapter.trainable_tokens or _tokens(settings, base),
    )
    start_of(started)  # raises for another rank, alpha or kind
    return started


def _targets(adapter: Adapter, settings: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """The layers of the adapter in `folder`: it has matrices for no others."""
    there = settings.get("target_modules")
    names = tuple(sorted({str(name).rpartition(".")[2] for name in there})) if isinstance(there, list) else ()
    if adapter.targets != "all-linear" and set(adapter.targets) != set(names):
        raise ConfigError(
            f"targets are {', '.join(adapter.targets)}, and {', '.join(names) or there} in the adapter to start from",
            where="train.adapter.targets",
            remedy="leave targets out",
        )
    if not names:
        raise ConfigError(f"the adapter to start from has the target_modules {there!r}", where=str(folder), allowed="a list of layers")
    return names


def _tokens(settings: dict[str, Any], base: Path) -> tuple[str, ...]:
    """The tokens whose rows the adapter has, by the base's tokenizer."""
    given = settings.get("trainable_token_indices") or []
    numbers = {number for ids in given.values() for number in ids} if isinstance(given, dict) else set(given)
    if not numbers:
        return ()
    tree = json.loads((base / "tokenizer.json").read_text("utf-8"))
    names = {number: token for token, number in tree["model"]["vocab"].items()}
    names |= {added["id"]: added["content"] for added in tree.get("added_tokens", ())}
    return tuple(names[number] for number in sorted(numbers))
