"""What each route (`choice.py`) lays over a model of transformers, and takes off again. Knows nothing about losses, plans or which models
there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch import nn

from tunesmith.nets.blocks import fuse_blocks, unfuse_blocks
from tunesmith.nets.linear import FusedLoraLinear, SharedLinear
from tunesmith.nets.norm import Replaced, fuse_norms, restore
from tunesmith.nets.tree_attention import register_attention
from tunesmith.train.choice import PLAIN, Route


@dataclass(slots=True)
class Laid:
    """What lies over a model, so that it can be taken off."""

    route: Route = PLAIN
    norms: list[Replaced] = field(default_factory=list)
    blocks: list[tuple[nn.Module, type[nn.Module]]] = field(default_factory=list)


def lay(model: Any, causal: Any, route: Route, attention: str) -> Laid:
    """Prepare the model for a route; `attention` is the name of transformers' own. Raises whatever the model raises."""
    laid = Laid(route)
    adapted = [module for module in model.modules() if isinstance(module, FusedLoraLinear | SharedLinear)]
    for module in adapted:
        module.plain = route.plain
    try:
        causal.set_attn_implementation(register_attention() if route.tree else attention)
        if not route.plain:
            laid.norms = [] if _liger(causal) else fuse_norms(model)
            laid.blocks = fuse_blocks(model, attention=route.tree) if adapted else []  # they are for frozen weights
    except BaseException:
        take_off(causal, laid, attention)
        raise
    return laid


def take_off(causal: Any, laid: Laid, attention: str) -> None:
    """Give the model its own layers and its own attention back."""
    unfuse_blocks(laid.blocks)
    restore(laid.norms)
    causal.set_attn_implementation(attention)


def _liger(causal: Any) -> bool:
    """Whether Liger's kernels stand in for ours: on a GPU where they are installed."""
    if causal.device.type != "cuda" or find_spec("liger_kernel") is None:
        return False
    from transformers.integrations import apply_liger_kernel

    ours = {"cross_entropy": False, "fused_linear_cross_entropy": False}  # the loss needs no logits of the model
    apply_liger_kernel(causal, {"rope": True, "rms_norm": True, "swiglu": True, **ours})
    return True
