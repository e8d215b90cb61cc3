"""Many LoRA adapters on one base, chosen token by token in the same pass; knows nothing about rows, prompts or training.

Reads the folders that `peft` writes: LoRA (arXiv:2106.09685), rank-stabilised scaling (rsLoRA, arXiv:2312.03732), per-module ranks and
alphas, DoRA (arXiv:2402.09353), rows of the embeddings for tokens that were added (`trainable_token_indices`). Anything else that such a
folder may say is refused by name, never ignored.
"""

from __future__ import annotations

import json
import math
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from tunesmith.core.digests import files_digest
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.load import need
from tunesmith.core.seal import checked

# What may stand in adapter_config.json at any value that changes nothing at inference, and what must be off.
_MUST_BE_OFF = (
    "modules_to_save",
    "layer_replication",
    "target_parameters",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "eva_config",
    "corda_config",
    "use_bdlora",
)


_ROWS = "token_adapter.trainable_tokens_delta"
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector", _ROWS)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one adapter adds to one linear layer: `down` [r, in], `up` [out, r] with the scaling in it, DoRA's `gain` [out] or None."""

    down: Tensor
    up: Tensor
    gain: Tensor | None = None

    def applied(self, x: Tensor, out: Tensor) -> Tensor:
        """x [1, n, in] and the base's output for it [1, n, out] → the adapter's output."""
        added = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return out + added if self.gain is None else (out + added) * self.gain


Groups = list[tuple[str, Tensor | None]]


class AdapterGroups:
    """Which tokens of the current pass belong to which adapter: `groups` of (adapter, token indices or None for all).

    `logits` is the same for the places whose logits are computed.
    """

    def __init__(self) -> None:
        self.groups: Groups = []
        self.logits: Groups = []


@dataclass(frozen=True, slots=True)
class TokenRows:
    """What one adapter has in place of the embeddings of some tokens: their ids [n] and `values` [n, H]."""

    ids: Tensor
    values: Tensor


Change = TypeVar("Change", Delta, TokenRows)


class _Adapted(nn.Module, ABC, Generic[Change]):
    """A layer in the place of `base` with the changes of every loaded adapter; each token gets those of its own.

    `weight` is the base's, without any adapter. A kind of layer says only how one change is laid over the base's output.
    """

    def __init__(self, base: nn.Module, route: AdapterGroups) -> None:
        super().__init__()
        self.base, self.route = base, route
        self.changes: dict[str, Change] = {}

    @property
    def weight(self) -> Tensor:
        """The base's, without any adapter."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x [1, N, …] → [1, N, out]: the base's output, changed where a token has an adapter that changes this layer."""
        out: Tensor = self.base(x)
        for adapter, index in self.groups():
            change = self.changes.get(adapter)
            if change is not None:
                out = self.changed(x, out, change, index)
        return out

    def groups(self) -> Groups:
        """Whose tokens stand where in this layer's input."""
        return self.route.groups

    @abstractmethod
    def changed(self, x: Tensor, out: Tensor, change: Change, index: Tensor | None) -> Tensor:
        """`out` [1, N, out] with the change at the places `index` (None: all of them)."""


class AdaptedLinear(_Adapted[Delta]):
    """A linear layer under low-rank updates: x [1, N, in] → [1, N, out]."""

    base: nn.Linear

    def __init__(self, base: nn.Module, route: AdapterGroups, *, head: bool = False) -> None:
        super().__init__(base, route)
        self._head = head

    def groups(self) -> Groups:
        """The output layer's logits are computed for some places only."""
        return self.route.logits if self._head else self.route.groups

    def changed(self, x: Tensor, out: Tensor, change: Delta, index: Tensor | None) -> Tensor:
        """See `_Adapted.changed`."""
        if index is None:
            return change.applied(x, out)
        out[:, index] = change.applied(x[:, index], out[:, index])
        return out


class AdaptedEmbedding(_Adapted[TokenRows]):
    """The input embeddings with an adapter's own rows for some tokens: ids [1, N] → [1, N, H]."""

    def changed(self, x: Tensor, out: Tensor, change: TokenRows, index: Tensor | None) -> Tensor:
        """See `_Adapted.changed`."""
        at, which = ((x[0] if index is None else x[0, index])[:, None] == change.ids).nonzero(as_tuple=True)
        out[0, at if index is None else index[at]] = change.values[which]
        return out


class AdaptedHead(_Adapted[TokenRows]):
    """The output layer with an adapter's own rows for some tokens: x [1, M, H] at the kept places → [1, M, vocabulary]."""

    def groups(self) -> Groups:
        """Logits are computed for some places only."""
        return self.route.logits

    def changed(self, x: Tensor, out: Tensor, change: TokenRows, index: Tensor | None) -> Tensor:
        """See `_Adapted.changed`."""
        places = torch.arange(x.shape[1], device=x.device) if index is None else index
        out[0, places[:, None], change.ids] = nn.functional.linear(x[0, places], change.values)
        return out


class Adapters:
    """The adapters on one model. `load` wraps the linear layers that an adapter names; `use` routes the next pass. `lock` is held by who
    changes the model, and by who computes with it."""

    def __init__(self, model: nn.Module, lock: threading.Lock | None = None) -> None:
        self.model, self._lock = model, lock or threading.Lock()
        self.route = AdapterGroups()
        self.loaded: dict[str, str] = {}  # name → digest

    def load(self, name: str, folder: Path) -> str:
        """Add the adapter of a `peft` folder under `name`; returns the digest of its file. A name that is taken must be the same adapter.
        Others compute while its files are read.

        Raises NotFound for a folder without an adapter, UsageError for a kind of adapter that cannot be mixed in a batch.
        """
        config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        for file in (config_file, weights_file):
            if not file.is_file():
                raise NotFound(f"no {file.name}", where=str(folder), allowed="a folder that peft's save_pretrained wrote")
        config = json.loads(checked(config_file).read_text("utf-8"))
        digest = files_digest([config_file, weights_file])
        if self.loaded.get(name, digest) != digest:
            raise UsageError(
                f"another adapter is loaded as '{name}'", where=str(folder), remedy="load it under another name, or unload the first"
            )
        if name not in self.loaded:
            _refuse_unknown(config, folder)
            changes = list(self._read(name, config, weights_file))
            with self._lock:
                try:
                    for module, change in changes:
                        self._put(name, module, change)
                except BaseException:
                    self.unload(name)  # what was put before the fault would stay in memory and belong to nobody
                    raise
            self.loaded[name] = digest
        return digest

    def _read(self, name: str, config: dict[str, Any], weights: Path) -> Iterator[tuple[str, Delta | TokenRows]]:
        """The name of each layer that an adapter's file changes, and how."""
        library = need("safetensors", extra="local")
        try:
            tensors = need("safetensors.torch", extra="local").load_file(str(checked(weights)))
        except (OSError, library.SafetensorError) as error:
            raise UsageError(f"the adapter cannot be read: {error}", where=str(weights), remedy="save it again, or train again") from error
        for module, parts in _by_module(tensors, weights.parent).items():
            if "rows" in parts:
                yield module, self._rows(name, module, parts["rows"], _token_ids(config, module, len(parts["rows"]), weights.parent))
            else:
                yield module, self._delta(name, module, parts, _scaling(config, module, parts["lora_A"].shape[0]))

    def unload(self, name: str) -> None:
        """Forget an adapter; nothing happens when there is none of that name."""
        self.loaded.pop(name, None)
        for module in self.model.modules():
            if isinstance(module, _Adapted):
                module.changes.pop(name, None)

    def use(self, adapters: Sequence[str | None], keep: Sequence[int], device: torch.device) -> None:
        """AdapterGroups a pass: the adapter of each of its tokens (None: the base alone), and the places whose logits are computed."""
        self.route.groups, self.route.logits = _groups(adapters, device), _groups([adapters[i] for i in keep], device)

    def _put(self, name: str, module: str, change: Delta | TokenRows) -> None:
        if isinstance(change, Delta):
            self._linear(name, module).changes[name] = change
            return
        tied = self.model.config.get_text_config().tie_word_embeddings  # type: ignore[union-attr, operator]
        for layer in self._embeddings() if tied else [self._module(name, module)]:
            self._adapted(layer).changes[name] = change

    def _embeddings(self) -> list[nn.Module]:
        """The layers that may have rows of tokens."""
        return [self.model.get_input_embeddings(), self.model.get_output_embeddings()]  # type: ignore[operator]

    def _rows(self, name: str, module: str, values: Tensor, tokens: list[int]) -> TokenRows:
        """The rows of some tokens in the embeddings and, where the base ties them, in the output layer."""
        layer = self._module(name, module)
        if layer not in self._embeddings():
            raise UsageError(f"adapter '{name}' has rows of '{module}'", allowed="the embeddings and the output layer", remedy="merge it")
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if values.shape[1] != weight.shape[1] or max(tokens) >= len(weight):
            raise UsageError(
                f"adapter '{name}' has rows of {values.shape[1]} numbers up to token {max(tokens)} for '{module}'",
                allowed=f"{weight.shape[1]} numbers, {len(weight)} tokens, the base's",
            )
        return TokenRows(torch.tensor(tokens, device=weight.device), values.to(weight.device, weight.dtype))

    def _adapted(self, layer: nn.Module) -> AdaptedEmbedding | AdaptedHead:
        """The layer as one that takes rows, put into the model where it is not yet one."""
        if isinstance(layer, AdaptedEmbedding | AdaptedHead):
            return layer
        if isinstance(layer, AdaptedLinear):
            raise UsageError(
                "the output layer cannot take an adapter's rows of tokens where one is loaded that changes it by LoRA",
                remedy="merge the adapter into the base",
            )
        if getattr(layer, "bias", None) is not None or hasattr(layer, "embed_scale"):
            raise UsageError(f"{type(layer).__name__} scales its rows or has a bias", remedy="merge the adapter into the base")
        made = AdaptedHead(layer, self.route) if isinstance(layer, nn.Linear) else AdaptedEmbedding(layer, self.route)
        path = next(path for path, module in self.model.named_modules() if module is layer)
        parent, _, leaf = path.rpartition(".")
        setattr(self.model.get_submodule(parent), leaf, made)
        return made

    def _module(self, name: str, module: str) -> nn.Module:
        try:
            return self.model.get_submodule(module)
        except AttributeError as error:
            raise UsageError(
                f"adapter '{name}' changes '{module}', which this base does not have", remedy="use the base it was trained on"
            ) from error

    def _linear(self, name: str, module: str) -> AdaptedLinear:
        """The layer as one that takes low-rank updates, put into the model where it is not yet one."""
        layer = self._module(name, module)
        if isinstance(layer, AdaptedLinear):
            return layer
        _refuse_other(layer, name, module)
        parent, _, leaf = module.rpartition(".")
        made = AdaptedLinear(layer, self.route, head=layer is self.model.get_output_embeddings())  # type: ignore[operator]
        setattr(self.model.get_submodule(parent), leaf, made)
        return made

    def _delta(self, name: str, module: str, parts: dict[str, Tensor], scaling: float) -> Delta:
        layer = self._module(name, module)
        base = layer.base if isinstance(layer, AdaptedLinear) else layer
        _refuse_other(base, name, module)
        weight: Tensor = base.weight.T if _is_conv1d(base) else base.weight  # type: ignore[assignment]
        down, up = parts["lora_A"].float(), parts["lora_B"].float() * scaling
        if down.shape[1] != weight.shape[1] or up.shape[0] != weight.shape[0]:
            raise UsageError(
                f"adapter '{name}' has shape {up.shape[0]}×{down.shape[1]} for '{module}'",
                allowed=f"{weight.shape[0]}×{weight.shape[1]}, the base's",
            )
        gain = None
        if "lora_magnitude_vector" in parts:
            length = (weight.float() + up.to(weight.device) @ down.to(weight.device)).norm(dim=1)
            gain = (parts["lora_magnitude_vector"].float().to(weight.device) / length).to(weight.dtype)
            if base.bias is not None:
                raise UsageError(f"adapter '{name}' is DoRA on '{module}', which has a bias", remedy="merge it into the base")
        return Delta(down.to(weight.device, weight.dtype), up.to(weight.device, weight.dtype), gain)


def _refuse_other(layer: nn.Module, name: str, module: str) -> None:
    """Raises UsageError for a layer that takes no low-rank update."""
    if not isinstance(layer, nn.Linear) and not _is_conv1d(layer):
        raise UsageError(
            f"adapter '{name}' changes '{module}', a {type(layer).__name__}", allowed="linear layers", remedy="merge it into the base"
        )


def _is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer is GPT-2's: linear, with its weight stored as [in, out]."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _groups(adapters: Sequence[str | None], device: torch.device) -> Groups:
    names = {name for name in adapters if name is not None}
    if len(names) == 1 and None not in adapters:
        return [(names.pop(), None)]
    return [(name, torch.tensor([i for i, other in enumerate(adapters) if other == name], device=device)) for name in sorted(names)]


def _refuse_unknown(config: dict[str, Any], folder: Path) -> None:
    where = str(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise UsageError(f"peft_type is {config.get('peft_type')!r}", where=where, allowed="LORA", remedy="merge the adapter into its base")
    if config.get("bias", "none") != "none":
        raise UsageError(f"bias is {config['bias']!r}", where=where, allowed="none", remedy="merge the adapter into its base")
    for key in _MUST_BE_OFF:
        if config.get(key):
            raise UsageError(f"{key} is {config[key]!r}", where=where, allowed="off", remedy="merge the adapter into its base")


def _by_module(tensors: dict[str, Tensor], folder: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors by module name and part (`lora_A`, `lora_B`, `lora_magnitude_vector`, or `rows` of embeddings)."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(?:base_model\.model\.)?(.+)\.({'|'.join(_PARTS)})(?:\.weight)?", key)
        if match is None:
            raise UsageError(f"unknown tensor '{key}'", where=str(folder / "adapter_model.safetensors"), allowed=", ".join(_PARTS))
        modules.setdefault(match[1], {})["rows" if match[2] == _ROWS else match[2]] = tensor
    for module, parts in modules.items():
        if "rows" not in parts and not {"lora_A", "lora_B"} <= parts.keys():
            raise UsageError(f"'{module}' has only {', '.join(sorted(parts))}", where=str(folder), remedy="save the adapter again")
    return modules


def _token_ids(config: dict[str, Any], module: str, count: int, folder: Path) -> list[int]:
    """The ids whose rows an adapter has for that module: a list for the embeddings, or a list for each module by the end of its name."""
    given = config.get("trainable_token_indices") or []
    ids = next((own for name, own in given.items() if f".{module}".endswith(f".{name}")), []) if isinstance(given, dict) else given
    if len(ids) != count:
        what = f"trainable_token_indices names {len(ids)} tokens of '{module}', and there are rows for {count}"
        raise UsageError(what, where=str(folder / "adapter_config.json"), remedy="save the adapter again")
    return list(ids)


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """lora_alpha / r, or lora_alpha / √r when rank-stabilised, with the per-module alpha when the configuration has one."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
