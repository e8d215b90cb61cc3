"""Linear layers with LoRA adapters in one autograd function; knows nothing about losses, rows or which model it runs in: peft finds
the layer by its dispatch of custom modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tunesmith.nets.dropout import SeededDropout
from tunesmith.nets.nf4 import Nf4, Nf4Linear


class Part(NamedTuple):
    """What a linear layer computes: y = x Wᵀ + bias + scale · dropout(x) Aᵀ Bᵀ, with W frozen; A and B are None without an adapter."""

    weight: Tensor | Nf4
    bias: Tensor | None
    a: Tensor | None = None
    b: Tensor | None = None
    scale: float = 0.0
    dropout: SeededDropout | None = None


def _dense(weight: Tensor | Nf4) -> Tensor:
    return weight.dense() if isinstance(weight, Nf4) else weight


class LinearGroup:
    """Frozen linear layers that read the same rows x [T, in]; the narrow products x Aᵀ of all of them are one.

    `keep` [T, in] are the factors of dropout, for a group of one. A weight in 4 bits (QLoRA) is dequantised in both passes.
    """

    def __init__(self, parts: Sequence[Part], dtype: torch.dtype, keep: Tensor | None = None) -> None:
        self.parts, self.keep = parts, keep
        adapted = [part.a for part in parts if part.a is not None]
        self.a = torch.cat(adapted).to(dtype) if adapted else None
        self.b = [None if part.b is None else (part.b * part.scale).to(dtype) for part in parts]
        self.cuts, start = [], 0
        for part in parts:
            width = 0 if part.a is None else len(part.a)
            self.cuts.append(slice(start, start + width))
            start += width

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Every layer's y, and x Aᵀ of all adapters side by side [T, Σ r]."""
        narrow = None if self.a is None else self._kept(x) @ self.a.T
        outs = []
        for part, b, cut in zip(self.parts, self.b, self.cuts, strict=True):
            y = F.linear(x, _dense(part.weight), part.bias)
            outs.append(y if narrow is None or b is None else y.addmm_(narrow[:, cut], b.T))
        return outs, narrow

    def _kept(self, x: Tensor) -> Tensor:
        return x if self.keep is None else x * self.keep

    def to_input(self, grads: Sequence[Tensor], wanted: bool) -> tuple[Tensor | None, Tensor | None]:
        """The gradient of x, and that of x Aᵀ."""
        inner = None
        if self.a is not None:
            inner = torch.cat([grad @ b for grad, b in zip(grads, self.b, strict=True) if b is not None], 1)
        if not wanted:
            return None, inner
        grad_x = grads[0] @ _dense(self.parts[0].weight)
        for grad, part in zip(grads[1:], self.parts[1:], strict=True):
            grad_x += grad @ _dense(part.weight)  # twice as fast as addmm_ on a CPU
        if inner is not None and self.a is not None:
            grad_x = grad_x.addmm_(inner, self.a) if self.keep is None else grad_x.addcmul_(inner @ self.a, self.keep)
        return grad_x, inner

    def to_adapters(self, x: Tensor, narrow: Tensor | None, inner: Tensor | None, grads: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of A and B, layer after layer."""
        if narrow is None or inner is None:
            return [None] * (2 * len(self.parts))
        slope_a = (inner.T @ self._kept(x)).float()
        slopes: list[Tensor | None] = []
        for part, cut, grad in zip(self.parts, self.cuts, grads, strict=True):
            has = part.a is not None
            slopes += [slope_a[cut], (grad.T @ narrow[:, cut]).float().mul_(part.scale)] if has else [None, None]
        return slopes


def leaves(parts: Iterable[Part]) -> list[Tensor | None]:
    """The adapters' weights, as autograd wants them."""
    return [leaf for part in parts for leaf in (part.a, part.b)]


class _Linears(torch.autograd.Function):
    """A group of linear layers with LoRA (arXiv 2106.09685); keeps x and the narrow products, no copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Sequence[Part], keep: Tensor | None, *_: Tensor | None) -> tuple[Tensor, ...]:
        ctx.group = LinearGroup(parts, x.dtype, keep)
        outs, narrow = ctx.group.forward(x)
        ctx.save_for_backward(x, narrow)
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        grad_x, inner = ctx.group.to_input(grads, ctx.needs_input_grad[0])
        return grad_x, None, None, *ctx.group.to_adapters(x, narrow, inner, grads)


def linears(x: Tensor, parts: Sequence[Part], keep: Tensor | None = None) -> tuple[Tensor, ...]:
    """x [T, in] through each of the parts, differentiable in x and the adapters; `keep` as in `LinearGroup`."""
    outs: tuple[Tensor, ...] = _Linears.apply(x, parts, keep, *leaves(parts))
    return outs


def part_of(layer: nn.Module, x: Tensor) -> Part | None:
    """The layer as a Part for this input, or None when it computes something else: DoRA, a trained weight, merged adapters, mixed types."""
    base: Any = layer.base_layer if isinstance(layer, FusedLoraLinear) else layer
    if type(base) not in (nn.Linear, Nf4Linear):
        return None
    weight = base.packed if isinstance(base, Nf4Linear) else base.weight
    if weight.dtype != x.dtype or (isinstance(weight, Tensor) and weight.requires_grad):
        return None
    if isinstance(layer, FusedLoraLinear) and layer.plain:
        return None
    if not isinstance(layer, FusedLoraLinear) or layer.disable_adapters:
        return None if isinstance(layer, FusedLoraLinear) and layer.merged else Part(weight, base.bias)
    names = layer.active_adapters
    if layer.merged or len(names) != 1 or names[0] not in layer.lora_A or names[0] in layer.lora_variant or layer.lora_bias[names[0]]:
        return None
    name, dropout = names[0], layer.lora_dropout[names[0]]
    if type(dropout) is nn.Dropout:
        return None
    seeded = dropout if layer.training and isinstance(dropout, SeededDropout) else None
    return Part(weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], seeded)


class FusedLoraLinear(PeftLinear):
    """peft's LoRA layer with a fused forward for plain LoRA and rsLoRA; saving, loading, merging and every variant stay peft's.

    It falls back to peft's own forward for DoRA and other variants, several or merged adapters, a trained base weight or mixed types,
    and where `plain` is set.
    """

    plain = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        part = None if self.plain or args or any(value is not None for value in kwargs.values()) else part_of(self, x)
        if part is None or part.a is None:
            return super().forward(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1])
        (y,) = linears(rows, [part], None if part.dropout is None else part.dropout.mask(rows))
        return y.view(*x.shape[:-1], -1)
