"""Losses over hidden states at trained positions; logits exist only for those and only a chunk at a time. Knows nothing about rows.

A loss of a run divides by the trained tokens of the whole optimiser step, never of one micro-batch: then accumulation and packing change
nothing (the mean of means is another objective).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Bytes of float32 logits held at once.
CHUNK_BYTES = 64 << 20


def chunk_of(vocabulary: int) -> int:
    """Positions whose logits fit CHUNK_BYTES."""
    return max(16, CHUNK_BYTES // (4 * vocabulary))


class _ChunkedNLL(torch.autograd.Function):
    """Σ coefficient·(logsumexp(z) − z[target]) with z = h Wᵀ; the gradient is computed in the forward pass, so no logits are kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        hit = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        size = chunk_of(len(weight))
        low = weight.to(hidden.dtype)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            logits = F.linear(hidden[part], low).float()
            chosen = logits.gather(1, targets[part, None])
            peak = logits.amax(1, keepdim=True)
            hit[part] = (chosen >= peak).squeeze(1)
            total = logits.sub_(peak).exp_().sum(1, keepdim=True)
            nll[part] = (peak + total.log() - chosen).squeeze(1)
            if not (wants_hidden or wants_weight):
                continue
            slope = logits.mul_(coefficients[part, None] / total)
            slope.scatter_add_(1, targets[part, None], -coefficients[part, None])
            slope = slope.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = slope @ low
            if grad_weight is not None:
                grad_weight += slope.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(nll, hit)
        return (nll * coefficients).sum(), nll, hit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad
        if grad_weight is not None:
            grad_weight = grad_weight * grad
        return grad_hidden, grad_weight, None, None


class _ChunkedLogp(torch.autograd.Function):
    """log p of each target; the backward pass computes a chunk's logits again, because its slopes are known only then."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        logp = torch.empty_like(total)
        low = weight.to(hidden.dtype)
        size = chunk_of(len(weight))
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            logits = F.linear(hidden[part], low).float()
            total[part] = logits.logsumexp(1)
            logp[part] = logits.gather(1, targets[part, None]).squeeze(1) - total[part]
        ctx.save_for_backward(hidden, weight, targets, total)
        return logp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, total = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        low = weight.to(hidden.dtype)
        size = chunk_of(len(weight))
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            slope = F.linear(hidden[part], low).float().sub_(total[part, None]).exp_().mul_(-grad[part, None])
            slope = slope.scatter_add_(1, targets[part, None], grad[part, None]).to(hidden.dtype)
            grad_hidden[part] = slope @ low
            if grad_weight is not None:
                grad_weight += slope.T @ hidden[part]
        return grad_hidden, grad_weight, None


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
