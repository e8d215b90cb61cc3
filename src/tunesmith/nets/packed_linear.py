"""Linear layers that hold their weights a second time, in the order in which the processor multiplies a few rows fastest.

Decoding reads every weight for a handful of rows; a product that was written for many rows spends most of its time laying the matrix out
anew. oneDNN multiplies a matrix that was laid out once. Which of the two is faster depends on the processor, the type and the shape, so it
is timed here. Knows nothing about models, adapters or where the answer is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST = 1 << 16  # weights; a smaller matrix stays in the processor's cache, and a call costs more than its product
_MOST_ROWS = 96  # with more rows the ordinary product is as fast
_TIMED_ROWS = (1, 4, 8, 32)
_COPIES = 8  # layers of a shape that are timed in turn, so that none is in the cache already
_CALLS, _ROUNDS = 4, 10
_WORTH = 0.95  # of the ordinary time; a smaller gain is not worth the memory

Least = Mapping[str, int]  # by shape (see `shape_of`): from how many rows on the packed product is faster


class _Packed:
    """The packed matrix, made when it is first needed. Copies of a tree of modules share it, as they share the weights."""

    __slots__ = ("_packed",)

    def __init__(self) -> None:
        self._packed: Tensor | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> _Packed:
        return self

    def of(self, weight: Tensor) -> Tensor:
        if self._packed is None:
            self._packed = _reordered(weight)
        return self._packed


class PackedLinear(nn.Linear):
    """The linear layer `layer` with the same parameters; `least` rows and more, up to a limit, are multiplied with the packed matrix.

    The weights must not change any more.
    """

    def __init__(self, layer: nn.Linear, least: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.least = layer.in_features, layer.out_features, least
        self.weight, self.bias = layer.weight, layer.bias
        self._packed = _Packed()

    def forward(self, input: Tensor) -> Tensor:
        """x [..., in] → [..., out]."""
        if not self.least <= input.numel() // self.in_features <= _MOST_ROWS:
            return F.linear(input, self.weight, self.bias)
        return _product(input, self._packed.of(self.weight), self.bias)


def _reordered(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 8)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


def _packable(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The layers that may be packed, each with its owner and its name there."""
    for owner in model.modules():
        for name, layer in owner.named_children():
            if type(layer) is nn.Linear and layer.weight.numel() >= _LEAST and not layer.weight.requires_grad:
                yield owner, name, layer


def can_pack(model: nn.Module) -> bool:
    """Whether this processor has a packed product for the model's weights."""
    weights = [layer.weight for _, _, layer in _packable(model)]
    return bool(weights) and torch.backends.mkldnn.is_available() and all(_takes(weight) for weight in weights)


def _takes(weight: Tensor) -> bool:
    if weight.device.type != "cpu":
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_bytes(model: nn.Module) -> int:
    """What the packed matrices of a model would take."""
    return sum(weight.nbytes for weight in {id(layer.weight): layer.weight for _, _, layer in _packable(model)}.values())


def shape_of(layer: nn.Linear) -> str:
    """What decides which product is faster: `float32 576x1536`, in and out."""
    return f"{str(layer.weight.dtype).removeprefix('torch.')} {layer.in_features}x{layer.out_features}"


def shapes(model: nn.Module) -> list[str]:
    """The shapes of the layers that may be packed."""
    return sorted({shape_of(layer) for _, _, layer in _packable(model)})


@torch.inference_mode()
def timed(model: nn.Module) -> dict[str, int]:
    """From how many rows on the packed product is faster, for each shape for which it is."""
    groups: dict[str, list[nn.Linear]] = {}
    for _, _, layer in _packable(model):
        groups.setdefault(shape_of(layer), []).append(layer)
    least = {shape: _least_rows(layers[:_COPIES]) for shape, layers in groups.items()}
    return {shape: rows for shape, rows in least.items() if rows is not None}


def _least_rows(layers: list[nn.Linear]) -> int | None:
    """The number of rows from which on packed is taken that makes all that was timed shortest; None where that gains too little."""
    packed = [_reordered(layer.weight) for layer in layers]
    ratios = []
    for rows in _TIMED_ROWS:
        x = torch.ones(rows, layers[0].in_features, dtype=layers[0].weight.dtype)
        ratios.append(_share(partial(_packed_product, x, packed), partial(_ordinary_product, x, layers), len(layers)))
    cuts = {rows: sum(ratios[i:]) + i for i, rows in enumerate(_TIMED_ROWS)}
    best = min(cuts, key=cuts.__getitem__)
    return best if cuts[best] <= _WORTH * len(ratios) else None


def _packed_product(x: Tensor, packed: Sequence[Tensor], layer: int) -> Tensor:
    return _product(x, packed[layer], None)


def _ordinary_product(x: Tensor, layers: Sequence[nn.Linear], layer: int) -> Tensor:
    return F.linear(x, layers[layer].weight)


def _share(way: Callable[[int], Tensor], other: Callable[[int], Tensor], count: int) -> float:
    """The time of a way as a share of another's: of each the shortest of some rounds, in turn, through `count` layers."""
    best = [float("inf")] * 2
    for number in range(_ROUNDS):
        for which, call in enumerate((way, other)):
            start = time.perf_counter()
            for i in range(_CALLS):
                call((number * _CALLS + i) % count)
            best[which] = min(best[which], time.perf_counter() - start)
    return best[0] / best[1]


def pack(model: nn.Module, least: Least) -> int:
    """Put packed layers where `least` has their shape; returns how many."""
    chosen: Iterable[tuple[nn.Module, str, nn.Linear]] = [entry for entry in _packable(model) if shape_of(entry[2]) in least]
    made = {id(layer): PackedLinear(layer, least[shape_of(layer)]) for _, _, layer in chosen}
    for owner, name, layer in chosen:
        setattr(owner, name, made[id(layer)])
    return len(made)
