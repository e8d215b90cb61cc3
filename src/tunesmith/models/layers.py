"""Kernels that training and serving share: attention over a tree of token spans, and a LoRA linear layer in one autograd function.

Knows nothing about losses, rows, optimisers or which model it runs in: transformers finds the attention by name
(`AttentionInterface`), peft finds the layer by its dispatch of custom modules.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import AttentionInterface

from tunesmith.core.errors import UsageError
from tunesmith.models.nf4 import Nf4, Nf4Linear

ATTENTION = "tunesmith_tree"


class Span(NamedTuple):
    """Tokens [start, end) that follow each other; [end, reach) are the tokens of its descendants, which all attend to it."""

    start: int
    end: int
    reach: int


@lru_cache(maxsize=512)
def _future(tokens: int, group: int, device: torch.device) -> Tensor:
    """Boolean [tokens·group, tokens]: True where a query (one row for each head of the group) must not look."""
    position = torch.arange(tokens, device=device)
    return (position[None, :] > position[:, None]).repeat_interleave(group, 0)


def _scores(q: Tensor, k: Tensor, future: Tensor | None) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2)).float()
    return scores if future is None else scores.masked_fill_(future, float("-inf"))


class _TreeAttention(torch.autograd.Function):
    """Softmax attention in blocks: each span against itself (causal), and all its descendants against it (no mask).

    The blocks of one query are merged by their log-sum-exp, as in FlashAttention (arXiv 2205.14135) and in cascade inference; the
    backward pass recomputes the probabilities from it. Heads of one key-value group are rows of the same matrix product.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], group: int) -> Tensor:
        # q [K, T·group, D] already scaled; k, v [K, T, D]; returns [K, T·group, D]
        out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.empty((*q.shape[:2], 1), dtype=torch.float32, device=q.device)
        seen = 0  # queries before this one already hold the part of an ancestor
        for a, b, c in spans:
            for first, last, future in ((a, b, _future(b - a, group, q.device)), (b, c, None)):
                if first == last:
                    continue
                rows = slice(first * group, last * group)
                scores = _scores(q[:, rows], k[:, a:b], future)
                # Every query sees the block's first key; log_softmax and exp cost less than softmax and a maximum.
                log_p = torch.log_softmax(scores, -1)
                part_lse = scores[:, :, :1] - log_p[:, :, :1]
                part = torch.bmm(log_p.exp_().to(v.dtype), v[:, a:b])
                if first < seen:
                    total = torch.logaddexp(lse[:, rows], part_lse)
                    out[:, rows].mul_((lse[:, rows] - total).exp_()).addcmul_(part, (part_lse - total).exp_())
                    lse[:, rows] = total
                else:
                    out[:, rows], lse[:, rows] = part, part_lse
                if last == c:
                    seen = max(seen, c)
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, lse)
        ctx.spans, ctx.group = spans, group
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        delta = (grad.float() * out).sum(-1, keepdim=True)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for a, b, c in ctx.spans:
            for first, last, future in ((a, b, _future(b - a, ctx.group, q.device)), (b, c, None)):
                if first == last:
                    continue
                rows = slice(first * ctx.group, last * ctx.group)
                p = _scores(q[:, rows], k[:, a:b], future).sub_(lse[:, rows]).exp_()
                dv[:, a:b] += torch.bmm(p.to(v.dtype).transpose(1, 2), grad[:, rows])
                ds = torch.bmm(grad[:, rows], v[:, a:b].transpose(1, 2)).float().sub_(delta[:, rows]).mul_(p).to(q.dtype)
                dq[:, rows] += torch.bmm(ds, k[:, a:b])
                dk[:, a:b] += torch.bmm(ds.transpose(1, 2), q[:, rows])
        return dq, dk, dv, None, None


def tree_attention(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float) -> Tensor:
    """Attention of one packed sequence: query [H, T, D], key and value [K, T, D] → [T, H, D], differentiable.

    `spans` lie in depth-first order and cover the T tokens; a token sees the earlier tokens of its span and all of its ancestors.
    """
    groups, tokens, width = key.shape
    group = query.shape[0] // groups
    q = (query * scale).to(value.dtype).view(groups, group, tokens, width).transpose(1, 2).reshape(groups, tokens * group, width)
    with torch.autocast(q.device.type, enabled=False):
        out = _TreeAttention.apply(q, key.to(value.dtype).contiguous(), value.contiguous(), spans, group)
    return out.view(groups, tokens, group, width).transpose(0, 1).reshape(tokens, groups * group, width)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface; the spans travel as the keyword `spans` of the model's forward call."""
    spans: Sequence[Span] = options["spans"]
    window = options.get("sliding_window")
    longest = options["longest"]
    if window is not None and longest > window:
        raise UsageError(f"a row of {longest} tokens is longer than the model's sliding window of {window}", remedy=f"max_length: {window}")
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise UsageError(
            f"{type(module).__name__} caps or sinks its attention, which packed training does not compute", remedy="pack: false"
        )
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    return tree_attention(query[0], key[0], value[0], spans, scale)[None], None


def register_attention() -> str:
    """Make the tree attention known to transformers; returns its name, for `model.set_attn_implementation(name)`."""
    AttentionInterface.register(ATTENTION, _attention)
    return ATTENTION


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + s·dropout(x) Aᵀ Bᵀ with W frozen (LoRA, arXiv 2106.09685); keeps x and the r-wide product, no copies.

    A weight in 4 bits (QLoRA) is dequantised in both passes.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Nf4, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, keep: Tensor | None
    ) -> Tensor:
        dense, packed = (weight.dense(), weight) if isinstance(weight, Nf4) else (weight, None)
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        narrow = (rows if keep is None else rows * keep) @ low_a.T
        y = F.linear(rows, dense, bias).addmm_(narrow, low_b.T, alpha=scale)
        ctx.save_for_backward(rows, dense if packed is None else None, low_a, low_b, narrow, keep)
        ctx.scale, ctx.shape, ctx.packed = scale, x.shape, packed
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, low_a, low_b, narrow, keep = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        inner = (grad @ low_b).mul_(ctx.scale)
        grad_b = (grad.T @ narrow).float().mul_(ctx.scale)
        grad_a = (inner.T @ (rows if keep is None else rows * keep)).float()
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ (weight if ctx.packed is None else ctx.packed.dense())
            if keep is None:
                grad_x.addmm_(inner, low_a)
            else:
                grad_x.addcmul_(inner @ low_a, keep)
            grad_x = grad_x.view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None, None


_random = threading.local()


@contextmanager
def dropout_seed(seed: int) -> Iterator[None]:
    """Every SeededDropout that runs in this thread inside the block draws from one generator with this seed."""
    _random.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        del _random.generator


class SeededDropout(nn.Dropout):
    """Dropout whose masks come from the thread's own generator, so that packs computed side by side stay reproducible."""

    def mask(self, x: Tensor) -> Tensor:
        """The factors, 0 or 1/(1 − p), in the shape of x. Outside of `dropout_seed` they come from torch's global generator."""
        kept = torch.empty(x.shape).bernoulli_(1.0 - self.p, generator=getattr(_random, "generator", None))
        return kept.div_(1.0 - self.p).to(x.device, x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x) if self.training else x


class FusedLoraLinear(PeftLinear):
    """peft's LoRA layer with a fused forward for plain LoRA and rsLoRA; saving, loading, merging and every variant stay peft's.

    It falls back to peft's own forward for DoRA and other variants, several or merged adapters, a trained base weight or mixed types.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, names = self.base_layer, self.active_adapters
        if (
            self.disable_adapters
            or self.merged
            or args
            or any(value is not None for value in kwargs.values())
            or len(names) != 1
            or names[0] not in self.lora_A
            or names[0] in self.lora_variant
            or self.lora_bias[names[0]]
            or type(base) not in (nn.Linear, Nf4Linear)
            or (weight := base.packed if isinstance(base, Nf4Linear) else base.weight).dtype != x.dtype
            or (isinstance(weight, Tensor) and weight.requires_grad)
            or type(self.lora_dropout[names[0]]) is nn.Dropout
        ):
            return super().forward(x, *args, **kwargs)
        name = names[0]
        dropout, keep = self.lora_dropout[name], None
        if self.training and isinstance(dropout, SeededDropout):
            keep = dropout.mask(x.reshape(-1, x.shape[-1]))
        return _LoraLinear.apply(x, weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name], keep)


class _RMSNorm(torch.autograd.Function):
    """y = w · x / √(mean x² + ε) (arXiv 1910.07467), computed in float32; keeps x itself and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = x.float()
        rate = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        return (exact * rate).to(x.dtype) * weight

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


def fuse_norms(model: nn.Module) -> int:
    """Replace every RMS norm that provably is the plain one (same output on random input) by the fused one; returns how many."""
    replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            weight, eps = getattr(child, "weight", None), getattr(child, "variance_epsilon", getattr(child, "eps", None))
            if not type(child).__name__.endswith("RMSNorm") or weight is None or eps is None:
                continue
            fused = FusedRMSNorm(weight, eps)
            probe = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
            with torch.no_grad():
                same = torch.allclose(fused(probe), child(probe), rtol=1e-2 if weight.dtype == torch.bfloat16 else 1e-5)
            if same:
                setattr(module, name, fused)
                replaced += 1
    return replaced
