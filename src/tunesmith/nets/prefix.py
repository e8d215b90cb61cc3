"""A model cut, for a while, to its first layers: to as few as show every kind of layer that it has. What holds for one layer of a kind
holds for the next, so that a check of the whole mechanism costs a fraction of a pass. Knows nothing about what is checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tunesmith.nets.nf4 import Nf4

_SIMPLE = (bool, int, float, str, tuple, type(None))
# What tells layers apart without making them another kind.
_PLACES = frozenset({"layer_idx", "layer_id", "layer_number", "_module_prefix"})
_SMALL = 4096  # values of a buffer that are compared: frequencies, not masks of a whole context


def _kind(layer: nn.Module) -> str:
    """Classes, shapes, simple attributes and small buffers of a layer and what is in it; not its place."""
    parts: list[Any] = []
    for name, module in layer.named_modules():
        if isinstance(module, Nf4):  # its scales are weights, and differ as weights do
            parts.append((name, tuple(module.shape)))
            continue
        plain = {key: value for key, value in vars(module).items() if isinstance(value, _SIMPLE) and key not in _PLACES}
        tensors = [(key, tuple(p.shape), str(p.dtype), p.requires_grad) for key, p in module.named_parameters(recurse=False)]
        buffers = [(key, b.flatten().tolist()) for key, b in module.named_buffers(recurse=False) if b.numel() <= _SMALL]
        parts.append((name, type(module).__qualname__, sorted(plain.items(), key=str), tensors, buffers))
    return repr(parts)


def _stack(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The longest list of modules of a model, and whose attribute it is."""
    lists = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.ModuleList) and len(child) > 1
    ]
    return max(lists, key=lambda entry: len(entry[2]), default=None)


def needed(model: nn.Module) -> int:
    """How many of a model's first layers show every kind of layer that it has, two at least; 0 where that is all of them."""
    stack = _stack(model)
    if stack is None:
        return 0
    kinds = [_kind(layer) for layer in stack[2]]
    size = max(2, 1 + max(kinds.index(kind) for kind in kinds))
    return size if size < len(kinds) else 0


def cut(model: nn.Module, size: int) -> None:
    """Leave a model only its first layers."""
    stack = _stack(model)
    if stack is not None:
        setattr(stack[0], stack[1], stack[2][:size])


@contextmanager
def first_of_each_kind(model: nn.Module) -> Iterator[int]:
    """Within, the model has only the first layers, up to the first of its last new kind (two at least); gives their number, or 0.

    0: there is no list of layers, or all are needed. A prefix, since layers are also found by their number. Parameters keep their names.
    """
    stack, size = _stack(model), needed(model)
    if stack is None or not size:
        yield 0
        return
    owner, name, layers = stack
    _listen(owner)
    cut(model, size)
    try:
        yield size
    finally:
        setattr(owner, name, layers)


def _listen(owner: nn.Module) -> None:
    """Let transformers lay its listeners (for the routers' logits, say) on all layers: it does so once, at a model's first pass."""
    from transformers import PreTrainedModel
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY, maybe_install_capturing_hooks

    if isinstance(owner, PreTrainedModel) and _CAN_RECORD_REGISTRY.get(owner):
        maybe_install_capturing_hooks(owner)
