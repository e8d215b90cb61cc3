"""Linear layers whose frozen weight is kept in 4 bits: NF4 with double quantisation (QLoRA, arXiv 2305.14314). Knows nothing of adapters.

The codebook is computed from the paper's formula. A weight is dequantised for each product and never kept, in training and evaluation
alike, so nothing depends on which of them came before.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK, GROUP = 64, 256  # weights that share a scale; scales that share a scale of theirs


@lru_cache
def codebook() -> tuple[float, ...]:
    """The 16 values of NF4, ascending, −1 to 1: quantiles of a normal, 7 below zero, zero, 8 above (the paper's appendix E)."""
    offset = 1 - 0.5 * (1 / 32 + 1 / 30)
    quantile = NormalDist().inv_cdf
    above = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    values = sorted([*below, 0.0, *above])
    return tuple(value / values[-1] for value in values)


@lru_cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Eight bytes of weights for each key, as int64: two float32 for a byte of codes, four 16-bit weights for two bytes."""
    values = torch.tensor(codebook(), dtype=dtype, device=device)
    key = torch.arange(256 if dtype.itemsize == 4 else 65536, device=device)
    nibbles = (4, 0) if dtype.itemsize == 4 else (4, 0, 12, 8)
    return torch.stack([values[(key >> shift) & 15] for shift in nibbles], 1).view(torch.int64).flatten()


class Nf4(nn.Module):
    """A weight [out, in] as 4-bit codes; each block of 64 has an 8-bit scale, each group of 256 scales a float32 one.

    Scales are stored less their mean, as int8 (the paper: FP8, the same size).
    """

    codes: Tensor
    scales: Tensor
    steps: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, self.dtype = weight.shape, weight.dtype
        flat = F.pad(weight.detach().float().flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        peak = flat.abs().amax(1)
        self.mean = float(peak.mean())
        off = F.pad(peak - self.mean, (0, -len(peak) % GROUP)).view(-1, GROUP)
        steps = off.abs().amax(1).clamp_min(1e-30) / 127
        scales = (off / steps[:, None]).round().to(torch.int8).flatten()[: len(peak)].contiguous()
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        values = torch.tensor(codebook(), device=weight.device)
        # Codes are chosen for the scale that will be there when the weight is read.
        unit = flat / self._peaks()[:, None].clamp_min(1e-30)
        code = torch.bucketize(unit, (values[1:] + values[:-1]) / 2).to(torch.uint8).flatten()
        self.register_buffer("codes", (code[0::2] << 4) | code[1::2], persistent=False)

    def _peaks(self) -> Tensor:
        steps = self.steps.repeat_interleave(GROUP)[: len(self.scales)]
        return self.scales.float().mul_(steps).add_(self.mean)

    def dense(self) -> Tensor:
        """The weight [out, in] in its own type."""
        keys = (self.codes if self.dtype.itemsize == 4 else self.codes.view(torch.uint16)).int()
        # Gathering eight bytes at a time is ten times as fast as gathering weights.
        values = _table(self.dtype, self.codes.device).index_select(0, keys).view(self.dtype).view(-1, BLOCK)
        flat = values.mul_(self._peaks().to(self.dtype)[:, None]).flatten()
        return flat[: self.shape[0] * self.shape[1]].view(self.shape)

    @property
    def bits(self) -> float:
        """Stored bits for each weight."""
        stored = sum(8 * t.numel() * t.element_size() for t in (self.codes, self.scales, self.steps)) + 32
        return stored / (self.shape[0] * self.shape[1])


class _Nf4Product(torch.autograd.Function):
    """y = x Wᵀ + bias with W dequantised in both passes and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Nf4, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return F.linear(x, packed.dense(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ ctx.packed.dense(), None, None


class Nf4Linear(nn.Module):
    """A frozen linear layer in 4 bits. `weight` is computed anew each time it is asked for."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T  # GPT-2's layers keep theirs the other way round
        self.out_features, self.in_features = int(weight.shape[0]), int(weight.shape[1])
        self.packed, self.bias = Nf4(weight), layer.bias

    @property
    def weight(self) -> Tensor:
        """The dequantised weight [out, in]."""
        return self.packed.dense()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Nf4Product.apply(x, self.packed, self.bias)
        return out


def packable(module: nn.Module, *, keep: str) -> list[tuple[nn.Module, str, Any]]:
    """The frozen linear layers inside `module` that can be in 4 bits, each with what holds it and its name there. Layers with `keep` in
    their full name are left out; experts in one tensor are no layers."""
    from transformers.pytorch_utils import Conv1D

    return [
        (parent, name, child)
        for path, parent in module.named_modules()
        for name, child in parent.named_children()
        if type(child) in (nn.Linear, Conv1D) and not child.weight.requires_grad and keep not in f"{path}.{name}"
    ]


def quantise(module: nn.Module, *, keep: str) -> int:
    """Put these layers into their 4-bit form, in place, one after the other; returns how many weights they have."""
    count = 0
    for parent, name, layer in packable(module, keep=keep):
        count += layer.weight.numel()
        setattr(parent, name, Nf4Linear(layer))
    return count
