"""Linear layers with LoRA adapters in one autograd function; knows nothing about losses, rows or which model it runs in: peft finds
the layer by its dispatch of custom modules."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tunesmith.nets.dropout import SeededDropout
from tunesmith.nets.nf4 import Nf4, Nf4Linear


class LowRank(NamedTuple):
    """What an adapter adds to the `rows` of x that are its own: scale · dropout(x) Aᵀ Bᵀ. `keep` [rows, in] are the factors of dropout,
    which `generator` draws (None: the thread's own)."""

    a: Tensor
    b: Tensor
    scale: float
    dropout: SeededDropout | None = None
    rows: slice = slice(None)
    generator: torch.Generator | None = None
    keep: Tensor | None = None

    def dropping(self, x: Tensor) -> LowRank:
        """The same with the factors of dropout for these inputs."""
        return self if self.dropout is None else self._replace(keep=self.dropout.mask(x[self.rows], self.generator))


class Part(NamedTuple):
    """What a linear layer computes: y = x Wᵀ + bias, with W frozen, and what each of its adapters adds to its own rows."""

    weight: Tensor | Nf4
    bias: Tensor | None
    adapters: tuple[LowRank, ...] = ()

    @property
    def drops(self) -> bool:
        """Whether an adapter drops inputs."""
        return any(adapter.dropout is not None for adapter in self.adapters)

    def dropping(self, x: Tensor) -> Part:
        """The same with the factors of dropout for these inputs."""
        return self._replace(adapters=tuple(adapter.dropping(x) for adapter in self.adapters))


def _dense(weight: Tensor | Nf4) -> Tensor:
    return weight.dense() if isinstance(weight, Nf4) else weight


class _Narrow:
    """One adapter in all layers of a group, on its rows; the narrow products x Aᵀ of all of them are one [rows, Σ r]."""

    def __init__(self, members: Sequence[tuple[int, LowRank]], dtype: torch.dtype) -> None:
        self.members, first = members, members[0][1]
        self.rows, self.keep = first.rows, first.keep
        self.a = torch.cat([low.a for _, low in members]).to(dtype)
        self.b = [(low.b * low.scale).to(dtype) for _, low in members]
        ends = list(accumulate(len(low.a) for _, low in members))
        self.cuts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def kept(self, x: Tensor) -> Tensor:
        """The adapter's rows of x, after dropout."""
        return x[self.rows] if self.keep is None else x[self.rows] * self.keep

    def forward(self, x: Tensor, outs: Sequence[Tensor]) -> Tensor:
        """x Aᵀ; what the adapter adds is added to its rows of the layers' outputs."""
        narrow = self.kept(x) @ self.a.T
        for (layer, _), b, cut in zip(self.members, self.b, self.cuts, strict=True):
            outs[layer][self.rows].addmm_(narrow[:, cut], b.T)
        return narrow

    def inner(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradient of x Aᵀ."""
        return torch.cat([grads[layer][self.rows] @ b for (layer, _), b in zip(self.members, self.b, strict=True)], 1)

    def to_input(self, grad_x: Tensor, inner: Tensor) -> None:
        """Add the adapter's part of the gradient of x."""
        own = grad_x[self.rows]
        if self.keep is None:
            own.addmm_(inner, self.a)
        else:
            own.addcmul_(inner @ self.a, self.keep)

    def slopes(self, x: Tensor, narrow: Tensor, inner: Tensor, grads: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The gradients of A and B, layer after layer."""
        slope_a = (inner.T @ self.kept(x)).float()
        for (layer, low), cut in zip(self.members, self.cuts, strict=True):
            yield slope_a[cut], (grads[layer][self.rows].T @ narrow[:, cut]).float().mul_(low.scale)


class LinearGroup:
    """Frozen linear layers that read the same rows x [T, in], with the adapters of each. A weight in 4 bits (QLoRA) is dequantised in both
    passes. Layers with dropout stand alone, since each draws for itself."""

    def __init__(self, parts: Sequence[Part], dtype: torch.dtype) -> None:
        self.parts = parts
        members: dict[int, list[tuple[int, LowRank]]] = {}
        for layer, part in enumerate(parts):
            for low in part.adapters:
                members.setdefault(low.rows.start or 0, []).append((layer, low))
        self.adapters = {start: _Narrow(each, dtype) for start, each in members.items()}

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Every layer's y, and x Aᵀ of every adapter."""
        outs = [F.linear(x, _dense(part.weight), part.bias) for part in self.parts]
        return outs, [adapter.forward(x, outs) for adapter in self.adapters.values()]

    def to_input(self, grads: Sequence[Tensor], wanted: bool) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of x, and those of x Aᵀ."""
        inner = [adapter.inner(grads) for adapter in self.adapters.values()]
        if not wanted:
            return None, inner
        grad_x = grads[0] @ _dense(self.parts[0].weight)
        for grad, part in zip(grads[1:], self.parts[1:], strict=True):
            grad_x += grad @ _dense(part.weight)  # twice as fast as addmm_ on a CPU
        for adapter, own in zip(self.adapters.values(), inner, strict=True):
            adapter.to_input(grad_x, own)
        return grad_x, inner

    def to_adapters(self, x: Tensor, narrow: Sequence[Tensor], inner: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of A and B in the order of `leaves`."""
        slopes = {
            start: adapter.slopes(x, wide, own, grads)
            for (start, adapter), wide, own in zip(self.adapters.items(), narrow, inner, strict=True)
        }
        return [slope for part in self.parts for low in part.adapters for slope in next(slopes[low.rows.start or 0])]


def leaves(parts: Iterable[Part]) -> list[Tensor]:
    """The adapters' weights, as autograd wants them."""
    return [leaf for part in parts for low in part.adapters for leaf in (low.a, low.b)]


class _Linears(torch.autograd.Function):
    """A group of linear layers with LoRA (arXiv 2106.09685); keeps x and the narrow products, no copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Sequence[Part], *_: Tensor) -> tuple[Tensor, ...]:
        ctx.group = LinearGroup(parts, x.dtype)
        outs, narrow = ctx.group.forward(x)
        ctx.save_for_backward(x, *narrow)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *narrow = ctx.saved_tensors
        grad_x, inner = ctx.group.to_input(grads, ctx.needs_input_grad[0])
        return grad_x, None, *ctx.group.to_adapters(x, narrow, inner, grads)


def linears(x: Tensor, parts: Sequence[Part]) -> tuple[Tensor, ...]:
    """x [T, in] through each of the parts, differentiable in x and the adapters."""
    outs: tuple[Tensor, ...] = _Linears.apply(x, parts, *leaves(parts))
    return outs


class Sharing(NamedTuple):
    """Whose rows stand where in a pass that several trainings share, and what draws a training's dropout."""

    member: int
    rows: slice
    generator: torch.Generator


_passing = threading.local()


@contextmanager
def sharing(members: Sequence[Sharing]) -> Iterator[None]:
    """Every SharedLinear that runs in this thread inside the block computes these members' rows."""
    _passing.members = members
    try:
        yield
    finally:
        del _passing.members


class SharedLinear(nn.Module):
    """A frozen linear layer with the adapters of several trainings, each on its own rows of a pass (see `sharing`).

    The product with the frozen weight is one over all rows; `layers` are the trainings' own layers by their member numbers.
    """

    plain = False

    def __init__(self, base: nn.Module, layers: Mapping[int, FusedLoraLinear]) -> None:
        super().__init__()
        self.base_layer = base
        self.layers = dict(layers)  # no children: their weights belong to the trainings

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        part = part_of(self, rows)
        if part is None:
            raise TypeError(f"a layer that several trainings share is more than a linear one: {self.base_layer}")
        (y,) = linears(rows, [part.dropping(rows)])
        return y.view(*x.shape[:-1], -1)


def part_of(layer: nn.Module, x: Tensor) -> Part | None:
    """The layer as a Part for this input, or None when it computes something else: DoRA, a trained weight, merged adapters, mixed types."""
    base: Any = layer.base_layer if isinstance(layer, FusedLoraLinear | SharedLinear) else layer
    if type(base) not in (nn.Linear, Nf4Linear):
        return None
    weight = base.packed if isinstance(base, Nf4Linear) else base.weight
    if weight.dtype != x.dtype or (isinstance(weight, Tensor) and weight.requires_grad):
        return None
    if isinstance(layer, SharedLinear):
        return _shared(layer, Part(weight, base.bias))
    if isinstance(layer, FusedLoraLinear) and layer.plain:
        return None
    if not isinstance(layer, FusedLoraLinear) or layer.disable_adapters:
        return None if isinstance(layer, FusedLoraLinear) and layer.merged else Part(weight, base.bias)
    low = low_rank(layer)
    return None if low is None else Part(weight, base.bias, (low,))


def _shared(layer: SharedLinear, part: Part) -> Part | None:
    """The part with the adapters of the members of this pass."""
    own = [(low_rank(layer.layers[each.member]), each) for each in getattr(_passing, "members", ()) if each.member in layer.layers]
    adapters = [low._replace(rows=each.rows, generator=each.generator) for low, each in own if low is not None]
    return part._replace(adapters=tuple(adapters)) if len(adapters) == len(own) else None


def low_rank(layer: FusedLoraLinear) -> LowRank | None:
    """What the layer's adapter adds, or None where it is another kind than plain LoRA or rsLoRA, or there are several."""
    names = layer.active_adapters
    if layer.merged or len(names) != 1 or names[0] not in layer.lora_A or names[0] in layer.lora_variant or layer.lora_bias[names[0]]:
        return None
    name, dropout = names[0], layer.lora_dropout[names[0]]
    if type(dropout) is nn.Dropout:
        return None
    seeded = dropout if layer.training and isinstance(dropout, SeededDropout) else None
    return LowRank(layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], seeded)


class FusedLoraLinear(PeftLinear):
    """peft's LoRA layer with a fused forward for plain LoRA and rsLoRA; saving, loading, merging and every variant stay peft's.

    It falls back to peft's own forward for DoRA and other variants, several or merged adapters, a trained base weight or mixed types,
    and where `plain` is set.
    """

    plain = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        part = None if self.plain or args or any(value is not None for value in kwargs.values()) else part_of(self, x)
        if part is None or not part.adapters:
            return super().forward(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1])
        (y,) = linears(rows, [part.dropping(rows)])
        return y.view(*x.shape[:-1], -1)
