"""Which matrices of a model an adapter reaches: the linear layers by name, peft's word for all of them, and what is left.

Knows nothing about plans, rows or losses.

A matrix that is no linear layer (experts that a model keeps in one tensor) is reached by `adapter.target_parameters`, as peft does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tunesmith.core.types import Record

# What peft refuses to adapt, because the kernels of these layers read the weights themselves.
_STATE_SPACE = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
_REFUSED = {"out_proj", "conv1d"}
_LAYER = re.compile(r"^.*?\.\d+\.")


class Reach(Record, frozen=True):
    """Of the weights in the matrices inside a model's blocks, the share that the adapter reaches, and what is left by name, one for all
    layers; `parameters` are those of them that `adapter.target_parameters` can name. `weights` counts all of them, `packed` is the share
    in 4 bits (None: the base is in ordinary weights)."""

    share: float = 1.0
    left: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    weights: int = 0
    packed: float | None = None

    def sentence(self) -> str:
        """What a person should know; nothing where the adapter reaches everything and 4 bits hold everything."""
        parts = [self._left()] if self.left else []
        if self.packed is not None and self.packed < 0.995:
            parts.append(f"{self.packed:.0%} of the weights in the model's matrices are in 4 bits: experts in one tensor stay as they are")
        return "; ".join(parts)

    def _left(self) -> str:
        named = f"; adapter.target_parameters: [{', '.join(self.parameters)}] adds those" if self.parameters else ""
        return f"the adapter reaches {self.share:.0%} of the weights in the model's matrices, not {', '.join(self.left)}{named}"


def inner_model(causal: Any) -> nn.Module:
    """The model under the output layer, whatever its class calls it: what gives the last states."""
    named = (getattr(causal, name, None) for name in (causal.base_model_prefix, "model", "transformer", "backbone"))
    inner = next((part for part in named if isinstance(part, nn.Module) and part is not causal), None)
    return text_part(causal) if inner is None else inner


def text_part(model: Any) -> nn.Module:
    """The part of a model that reads and writes text, without the output layer where the model can tell it apart."""
    part = model.get_decoder() if hasattr(model, "get_decoder") else None
    if isinstance(part, nn.Module) and any(True for _ in part.children()):
        return part
    base = getattr(model, getattr(model, "base_model_prefix", ""), None)  # what is called `decoder` is the output layer
    return base if isinstance(base, nn.Module) else model


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """The linear layers of the part that reads and writes text, but the output layer, by their full names."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    inside = {id(module) for module in text_part(model).modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head and id(module) in inside and _is_product(module)
    }


def _is_product(layer: nn.Module) -> bool:
    """Whether a linear layer gives x Wᵀ + bias and nothing else: some families derive routers from it that give several things, or layers
    that are many products."""
    if not isinstance(layer, nn.Linear) or type(layer).forward is nn.Linear.forward:
        return True
    x = torch.ones(1, 2, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    with torch.no_grad():
        try:
            y = layer(x)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
        return isinstance(y, torch.Tensor) and bool(torch.allclose(y, nn.functional.linear(x, layer.weight, layer.bias)))


def linear_names(model: Any) -> list[str]:
    """The last parts of their names: what `targets` may name."""
    return sorted({name.rsplit(".", 1)[-1] for name in linear_layers(model)})


def all_linear(model: Any) -> list[str] | str:
    """peft's word for all linear layers, where it means those of the text; else the layers by name."""
    layers, refused = linear_layers(model), _REFUSED if model.config.model_type in _STATE_SPACE else set()
    own = {id(module) for module in layers.values()}
    head = model.get_output_embeddings()
    others = [module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in own and module is not head]
    if not others and not refused & {name.rsplit(".", 1)[-1] for name in layers}:
        return "all-linear"
    wanted = [name for name in layers if name.rsplit(".", 1)[-1] not in refused]
    if others:
        return wanted
    return sorted({name.rsplit(".", 1)[-1] for name in wanted})


def short(name: str, module: nn.Module) -> str:
    """A tensor's name (a linear layer's own) without what comes before and within the number of its layer, and what peft lays between."""
    from transformers.pytorch_utils import Conv1D

    plain = re.sub(r"\.\d+\.", ".*.", _LAYER.sub("", name.replace(".base_layer", "")))
    return plain.removesuffix(".weight") if isinstance(module, (nn.Linear, Conv1D)) else plain


def _matrices(model: Any) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Every frozen matrix inside the blocks, fused experts among them: (full name, its module, the tensor)."""
    apart = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for path, module in text_part(model).named_modules():
        adapting = re.search(r"(^|\.)(lora_|token_adapter)", path)
        norm = "norm" in path.rsplit(".", 1)[-1]  # one scale a head and place, say
        if isinstance(module, apart) or module is head or adapting or norm or not _LAYER.match(f"{path}."):
            continue
        for name, p in module.named_parameters(recurse=False):
            if p.ndim in (2, 3) and min(p.shape) > 1:
                yield f"{path}.{name}", module, p


def parameters_to_name(model: Any) -> list[str]:
    """What `target_parameters` may name: matrices inside the blocks that are no linear layers."""
    from transformers.pytorch_utils import Conv1D

    return sorted({short(name, module) for name, module, _ in _matrices(model) if not isinstance(module, (nn.Linear, Conv1D))})


def reach(model: Any, causal: Any) -> Reach:
    """How much of the model `causal` the adapters in `model` reach; before the frozen weights go into 4 bits."""
    from transformers.pytorch_utils import Conv1D

    reached: set[int] = set()
    for module in model.modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
            tensor = getattr(module.get_base_layer(), getattr(module, "parameter_name", "weight"), None)
            reached.add(id(tensor))
    whole = adapted = 0
    left: dict[str, bool] = {}
    for name, module, p in _matrices(causal):
        whole += p.numel()
        if id(p) in reached:
            adapted += p.numel()
        else:
            left[short(name, module)] = not isinstance(module, (nn.Linear, Conv1D))
    names = tuple(sorted(left))
    return Reach(share=adapted / whole if whole else 1.0, left=names, parameters=tuple(name for name in names if left[name]), weights=whole)
