"""Root-mean-square norms in one autograd function; knows nothing about which model they run in."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Replaced(NamedTuple):
    """A module's own child `name`, in whose place another one stands."""

    parent: nn.Module
    name: str
    own: nn.Module


class _RMSNorm(torch.autograd.Function):
    """y = w · x / √(mean x² + ε) (arXiv 1910.07467), computed in float32; keeps x itself and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = x.to(torch.float32, copy=True)
        rate = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        return exact.mul_(rate).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rate = ctx.saved_tensors
        unit = x.float() * rate
        grad_weight = (grad.float() * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        slope = (grad * weight).float()
        inner = (slope * unit).mean(-1, keepdim=True)
        return slope.sub_(unit.mul_(inner)).mul_(rate).to(x.dtype), grad_weight, None


class FusedRMSNorm(nn.Module):
    """A root-mean-square norm in one autograd function, with the weight of the layer that it takes the place of."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps)


def fuse_norms(model: nn.Module) -> list[Replaced]:
    """Replace every RMS norm that provably is the plain one (same output on random input) by the fused one; returns what was replaced."""
    replaced = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            fused = _fused(child)
            if fused is not None:
                setattr(module, name, fused)
                replaced.append(Replaced(module, name, child))
    return replaced


def restore(replaced: Iterable[Replaced]) -> None:
    """Put the model's own layers back."""
    for parent, name, own in replaced:
        setattr(parent, name, own)


def _fused(norm: nn.Module) -> FusedRMSNorm | None:
    """The fused form of a norm, or None where it is another one: with a gate beside its input, say, or a weight around 1."""
    weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not type(norm).__name__.endswith("RMSNorm") or weight is None or eps is None or len(signature(norm.forward).parameters) != 1:
        return None
    fused = FusedRMSNorm(weight, eps)
    probe = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    with torch.no_grad():
        try:
            own = norm(probe)
        except (RuntimeError, TypeError, ValueError):  # it wants another shape: then it is another norm
            return None
        same = own.shape == probe.shape and torch.allclose(fused(probe), own, rtol=1e-2 if weight.dtype == torch.bfloat16 else 1e-5)
    return fused if same else None
