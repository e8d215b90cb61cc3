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


class _Chunk(NamedTuple):
    """A chunk's positions: Σ exp(z − max z), log p of the target, whether it was the likeliest; and Σ·(softmax z − onehot), [m, V]."""

    part: slice
    total: Tensor
    logp: Tensor
    hit: Tensor
    slope: Tensor


def _chunks(hidden: Tensor, weight: Tensor, targets: Tensor, *, slopes: bool) -> Iterator[_Chunk]:
    """The logits z = h Wᵀ of one chunk after the other; each is overwritten by its slope when slopes are wanted."""
    size = max(1, min(len(targets), chunk_of(len(weight))))
    room = torch.empty(size, len(weight), dtype=hidden.dtype, device=hidden.device)
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        target = targets[part, None]
        logits = torch.mm(hidden[part], weight.T, out=room[: len(target)])
        found = torch.empty(3, len(target), 1, dtype=torch.float32, device=hidden.device)
        rows = max(1, BLOCK_BYTES // (4 * len(weight))) if hidden.device.type == "cpu" else size
        for low in range(0, len(target), rows):
            block = slice(low, low + rows)
            z = logits[block].float()
            chosen, peak = z.gather(1, target[block]), z.amax(1, keepdim=True)
            e = torch.add(peak * -LOG2E, z, alpha=LOG2E, out=z).exp2_()  # exp2 costs a quarter of exp on a CPU
            total = e.sum(1, keepdim=True)
            found[0, block], found[1, block], found[2, block] = total, chosen - peak - total.log(), chosen - peak
            if slopes:
                logits[block] = e.scatter_add_(1, target[block], -total)
        yield _Chunk(part, found[0], found[1, :, 0], found[2, :, 0] >= 0, logits)


def _take_slope(chunk: _Chunk, weight: Tensor, hidden: Tensor, by: Tensor, grads: tuple[Tensor | None, Tensor | None]) -> None:
    """Put the chunk's slopes, times `by` [M], into the gradients of the hidden states and of the weight."""
    grad_hidden, grad_weight = grads
    factor = by[chunk.part, None] / chunk.total
    if grad_hidden is not None:
        grad_hidden[chunk.part] = (chunk.slope @ weight).mul_(factor)
    if grad_weight is not None:
        grad_weight += chunk.slope.T @ (hidden[chunk.part] * factor).to(hidden.dtype)


def _empty_grads(ctx: Any, hidden: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Room for the gradients that are wanted."""
    grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
    return grad_hidden, torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None


class _ChunkedNLL(torch.autograd.Function):
    """Σ coefficient·(logsumexp(z) − z[target]) with z = h Wᵀ; the gradient is computed in the forward pass, so no logits are kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        hit = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        grads, low = _empty_grads(ctx, hidden, weight), weight.to(hidden.dtype)
        wanted = any(grad is not None for grad in grads)
        for chunk in _chunks(hidden, low, targets, slopes=wanted):
            nll[chunk.part], hit[chunk.part] = -chunk.logp, chunk.hit
            if wanted:
                _take_slope(chunk, low, hidden, coefficients, grads)
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(nll, hit)
        return (nll * coefficients).sum(), nll, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if part is None else part * grad for part in ctx.saved_tensors), None, None


class _ChunkedLogp(torch.autograd.Function):
    """log p of each target; the backward pass computes a chunk's logits again, because its slopes are known only then."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logp = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for chunk in _chunks(hidden, weight.to(hidden.dtype), targets, slopes=False):
            logp[chunk.part] = chunk.logp
        ctx.save_for_backward(hidden, weight, targets)
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        grads, low = _empty_grads(ctx, hidden, weight), weight.to(hidden.dtype)
        for chunk in _chunks(hidden, low, targets, slopes=True):
            _take_slope(chunk, low, hidden, -grad, grads)
        return *grads, None


def chunked_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Natural log-probability of each target, float32 [M]; shapes as in `chunked_nll`. For losses that are no plain sum over tokens."""
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedLogp.apply(hidden, weight, targets)


def chunked_nll(hidden: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of negative log-likelihoods, in nats.

    hidden [M, H], weight [V, H] (the output embedding, without bias), targets int64 [M], coefficients float32 [M].
    Returns the differentiable sum, and per position the nll [M] and whether the target was the likeliest token [M].
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return _ChunkedNLL.apply(hidden, weight, targets, coefficients)
