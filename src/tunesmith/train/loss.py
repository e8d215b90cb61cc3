"""Losses over hidden states at trained positions; logits exist only for those and only a chunk at a time. Knows nothing about rows.

A loss of a run divides by the trained tokens of the whole optimiser step, never of one micro-batch: then accumulation and packing change
nothing (the mean of means is another objective).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes that a chunk's logits would take in float32; those of a block of its rows, which stays in the processor's cache.
CHUNK_BYTES, BLOCK_BYTES = 64 << 20, 1 << 20
LOG2E = math.log2(math.e)


def chunk_of(vocabulary: int) -> int:
    """Positions whose float32 logits fit CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


class Head(NamedTuple):
    """What a model does with its last states: logits z = cap · tanh(scale · (h Wᵀ + bias) / cap) / temperature.

    `weight` [V, H] is the output embedding; None where the states are the logits already, as the model itself computed them. `cap` None
    caps nothing (Gemma 2 caps, Granite and Cohere scale, Phi has a bias).
    """

    weight: Tensor | None
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None
    temperature: float = 1.0

    @property
    def plain(self) -> bool:
        """Whether the logits are h Wᵀ and nothing else."""
        return self.weight is not None and self.bias is None and self.scale == 1.0 and self.cap is None and self.temperature == 1.0

    def at(self, temperature: float) -> Head:
        """The same at another temperature."""
        return self._replace(temperature=temperature)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [M, V] in float32 of states [M, H], differentiable; for a few positions at a time."""
        z = hidden.float() if self.weight is None else (hidden @ self.weight.to(hidden.dtype).T).float()
        z = z if self.bias is None else z + self.bias.float()
        z = z if self.scale == 1.0 else z * self.scale
        z = z if self.cap is None else self.cap * torch.tanh(z / self.cap)
        return z if self.temperature == 1.0 else z / self.temperature


class _Shape(NamedTuple):
    """What of a head is no tensor, and how it bends the logits of a block in place."""

    scale: float
    cap: float | None
    temperature: float

    @property
    def plain(self) -> bool:
        return self.scale == 1.0 and self.cap is None and self.temperature == 1.0

    def bend(self, y: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(z, dz/dy) of y = h Wᵀ in float32; the slope is None where it is 1."""
        if bias is not None:
            y = y.add_(bias)
        if self.plain:
            return y, None
        slope = self.scale / self.temperature
        if self.cap is None:
            return y.mul_(slope), torch.full((1, 1), slope, device=y.device)
        turned = y.mul_(self.scale / self.cap).tanh_()
        return turned * (self.cap / self.temperature), turned.square_().neg_().add_(1.0).mul_(slope)


class _Chunk(NamedTuple):
    """A chunk's positions: Σ exp(z − max z), log p of the target, whether it was the likeliest; and Σ·(softmax z − onehot), [m, V]."""

    part: slice
    total: Tensor
    logp: Tensor
    hit: Tensor
    slope: Tensor


def _chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: _Shape, *, slopes: bool) -> Iterator[_Chunk]:
    """The logits of one chunk after the other; each is overwritten by its slope with respect to h Wᵀ when slopes are wanted."""
    size = max(1, min(len(targets), chunk_of(len(weight))))
    room = torch.empty(size, len(weight), dtype=hidden.dtype, device=hidden.device)
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        target = targets[part, None]
        logits = torch.mm(hidden[part], weight.T, out=room[: len(target)])
        columns = torch.empty(3, len(target), 1, dtype=torch.float32, device=hidden.device)
        rows = max(1, BLOCK_BYTES // (4 * len(weight))) if hidden.device.type == "cpu" else size
        for low in range(0, len(target), rows):
            block = slice(low, low + rows)
            z, bent = shape.bend(logits[block].float(), bias)
            chosen, peak = z.gather(1, target[block]), z.amax(1, keepdim=True)
            e = torch.add(peak * -LOG2E, z, alpha=LOG2E, out=z).exp2_()  # exp2 costs a quarter of exp on a CPU
            total = e.sum(1, keepdim=True)
            columns[0, block], columns[1, block], columns[2, block] = total, chosen - peak - total.log(), chosen - peak
            if slopes:
                slope = e.scatter_add_(1, target[block], -total)
                logits[block] = slope if bent is None else slope.mul_(bent)
        yield _Chunk(part, columns[0], columns[1, :, 0], columns[2, :, 0] >= 0, logits)


class _Grads(NamedTuple):
    """Room for the gradients of states, weight and bias; None for one that is not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def empty(cls, ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Grads:
        """Those that autograd asks for."""
        wanted = ctx.needs_input_grad
        return cls(
            torch.empty_like(hidden) if wanted[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wanted[2] else None,
        )

    @property
    def wanted(self) -> bool:
        return any(grad is not None for grad in self)

    def take(self, chunk: _Chunk, weight: Tensor, hidden: Tensor, by: Tensor) -> None:
        """Add a chunk's slopes, times `by` [M]."""
        factor = by[chunk.part, None] / chunk.total
        if self.hidden is not None:
            self.hidden[chunk.part] = (chunk.slope @ weight).mul_(factor)
        if self.weight is not None:
            self.weight.add_(chunk.slope.T @ (hidden[chunk.part] * factor).to(hidden.dtype))
        if self.bias is not None:
            self.bias.add_((chunk.slope * factor).sum(0))


class _ChunkedNLL(torch.autograd.Function):
    """Σ coefficient·(logsumexp(z) − z[target]); the gradient is computed in the forward pass, so no logits are kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, coefficients: Tensor, shape: _Shape
    ) -> tuple[Tensor, Tensor, Tensor]:
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        hit = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        grads, low = _Grads.empty(ctx, hidden, weight, bias), weight.to(hidden.dtype)
        for chunk in _chunks(hidden, low, bias, targets, shape, slopes=grads.wanted):
            nll[chunk.part], hit[chunk.part] = -chunk.logp, chunk.hit
            if grads.wanted:
                grads.take(chunk, low, hidden, coefficients)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(nll, hit)
        return (nll * coefficients).sum(), nll, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if part is None else part * grad for part in ctx.saved_tensors), None, None, None


class _ChunkedLogp(torch.autograd.Function):
    """log p of each target; the backward pass computes a chunk's logits again, because its slopes are known only then."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shape: _Shape) -> Tensor:
        logp = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for chunk in _chunks(hidden, weight.to(hidden.dtype), bias, targets, shape, slopes=False):
            logp[chunk.part] = chunk.logp
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.shape = shape
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        grads, low = _Grads.empty(ctx, hidden, weight, bias), weight.to(hidden.dtype)
        for chunk in _chunks(hidden, low, bias, targets, ctx.shape, slopes=True):
            grads.take(chunk, low, hidden, -grad)
        return *grads, None, None


def _whole_logp(logits: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log p of each target, whether it was the likeliest) of logits that the model itself computed."""
    z = head.logits(logits)
    return torch.log_softmax(z, -1).gather(1, targets[:, None])[:, 0], z.detach().argmax(-1) == targets


def as_head(head: Head | Tensor) -> Head:
    """A head of its weight alone."""
    return head if isinstance(head, Head) else Head(head)


def chunked_logp(hidden: Tensor, head: Head | Tensor, targets: Tensor) -> Tensor:
    """Natural log-probability of each target, float32 [M]; shapes as in `chunked_nll`. For losses that are no plain sum over tokens."""
    head = as_head(head)
    with torch.autocast(hidden.device.type, enabled=False):
        if head.weight is None:
            return _whole_logp(hidden, head, targets)[0]
        return _ChunkedLogp.apply(hidden, head.weight, head.bias, targets, _Shape(head.scale, head.cap, head.temperature))


def chunked_nll(hidden: Tensor, head: Head | Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of negative log-likelihoods, in nats.

    hidden [M, H], `head` what makes logits of them (or its weight [V, H]), targets int64 [M], coefficients float32 [M].
    Returns the differentiable sum, and per position the nll [M] and whether the target was the likeliest token [M].
    """
    head = as_head(head)
    with torch.autocast(hidden.device.type, enabled=False):
        if head.weight is None:
            logp, hit = _whole_logp(hidden, head, targets)
            return -(logp * coefficients).sum(), -logp.detach(), hit
        return _ChunkedNLL.apply(hidden, head.weight, head.bias, targets, coefficients, _Shape(head.scale, head.cap, head.temperature))
