"""Kernels that training and serving share: attention over a tree of token spans, and a LoRA linear layer in one autograd function.

Knows nothing about losses, rows, optimisers or which model it runs in: transformers finds the attention by name
(`AttentionInterface`), peft finds the layer by its dispatch of custom modules.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
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
from tunesmith.nets.nf4 import Nf4, Nf4Linear
from tunesmith.nets.varlen_attention import segment_attention

ATTENTION = "tunesmith_tree"


class Span(NamedTuple):
    """Tokens [start, end) that follow each other; [end, reach) are the tokens of its descendants, which all attend to it."""

    start: int
    end: int
    reach: int


# exp2 costs a quarter of exp on a CPU, so scores are in units of log 2.
LOG2E, LN2 = math.log2(math.e), math.log(2.0)


@lru_cache(maxsize=512)
def _future(tokens: int, group: int, device: torch.device) -> Tensor:
    """[tokens·group, tokens], to be added to scores: −∞ where a query (one row for each head of the group) must not look, else 0."""
    ahead = torch.full((tokens, tokens), float("-inf"), device=device).triu_(1)
    return ahead.repeat_interleave(group, 0)


def _blocks(spans: Sequence[Span], group: int, device: torch.device) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Which queries look at which keys, and what to add to their scores: each span at itself, all its descendants at it."""
    for a, b, c in spans:
        yield slice(a * group, b * group), slice(a, b), _future(b - a, group, device)
        if b < c:
            yield slice(b * group, c * group), slice(a, b), None


def _scores(q: Tensor, k: Tensor, future: Tensor | None) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2)).float()
    return scores if future is None else scores.add_(future)


class _TreeAttention(torch.autograd.Function):
    """Softmax attention in blocks: each span against itself (causal), and all its descendants against it (no mask).

    The blocks of one query are merged by their log-sum-exp, as in FlashAttention (arXiv 2205.14135) and in cascade inference; the
    backward pass recomputes the probabilities from it. Heads of one key-value group are rows of the same matrix product.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], group: int, scale: float) -> Tensor:
        # q [K, T·group, D]; k, v [K, T, D]; returns [K, T·group, D]
        q = (q * (scale * LOG2E)).to(k.dtype)
        out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.empty((*q.shape[:2], 1), dtype=torch.float32, device=q.device)
        seen = 0  # queries before this one already hold the part of an ancestor
        for rows, keys, future in _blocks(spans, group, q.device):
            scores = _scores(q[:, rows], k[:, keys], future)
            peak = scores.amax(-1, keepdim=True)
            p = scores.sub_(peak).exp2_()
            total = p.sum(-1, keepdim=True)
            part = torch.bmm(p.to(v.dtype), v[:, keys]) / total
            part_lse = total.log2_().add_(peak)
            if rows.start < seen:
                merged = torch.logaddexp2(lse[:, rows], part_lse)
                out[:, rows].mul_((lse[:, rows] - merged).exp2_()).addcmul_(part, (part_lse - merged).exp2_())
                lse[:, rows] = merged
            else:
                out[:, rows], lse[:, rows] = part, part_lse
            seen = max(seen, rows.stop)
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, lse)
        ctx.spans, ctx.group, ctx.scale = spans, group, scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grad, delta = grad.contiguous(), torch.empty_like(lse)
        for a, b, _ in ctx.spans:  # span by span: in the cache, and nothing large is allocated
            own = slice(a * ctx.group, b * ctx.group)
            delta[:, own] = (grad[:, own].float() * out[:, own]).sum(-1, keepdim=True)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, keys, future in _blocks(ctx.spans, ctx.group, q.device):
            p = _scores(q[:, rows], k[:, keys], future).sub_(lse[:, rows]).exp2_()
            dv[:, keys].baddbmm_(p.to(v.dtype).transpose(1, 2), grad[:, rows])
            ds = torch.bmm(grad[:, rows], v[:, keys].transpose(1, 2)).float().sub_(delta[:, rows]).mul_(p).to(q.dtype)
            dq[:, rows].baddbmm_(ds, k[:, keys], alpha=ctx.scale)
            dk[:, keys].baddbmm_(ds.transpose(1, 2), q[:, rows], alpha=LN2)
        return dq, dk, dv, None, None, None


def tree_attention(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float) -> Tensor:
    """Attention of one packed sequence: query [H, T, D], key and value [K, T, D] → [T, H, D], differentiable.

    `spans` lie in depth-first order and cover the T tokens; a token sees the earlier tokens of its span and all of its ancestors.
    """
    if query.is_cuda:
        return segment_attention(query, key, value, spans, scale)
    groups, tokens, width = key.shape
    q = query.view(groups, -1, tokens, width).transpose(1, 2).reshape(groups, -1, width)
    return attend(q, key, value, spans, scale)


def attend(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float) -> Tensor:
    """The same for queries laid out as the products want them, q [K, T · group, D] with a token's heads side by side."""
    groups, tokens, width = k.shape
    group = q.shape[1] // tokens
    with torch.autocast(q.device.type, enabled=False):
        out = _TreeAttention.apply(q, k.to(v.dtype).contiguous(), v.contiguous(), spans, group, scale)
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


class Group:
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
        found = []
        for part, b, cut in zip(self.parts, self.b, self.cuts, strict=True):
            y = F.linear(x, _dense(part.weight), part.bias)
            found.append(y if narrow is None or b is None else y.addmm_(narrow[:, cut], b.T))
        return found, narrow

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
        found: list[Tensor | None] = []
        for part, cut, grad in zip(self.parts, self.cuts, grads, strict=True):
            has = part.a is not None
            found += [slope_a[cut], (grad.T @ narrow[:, cut]).float().mul_(part.scale)] if has else [None, None]
        return found


def leaves(parts: Iterable[Part]) -> list[Tensor | None]:
    """The adapters' weights, as autograd wants them."""
    return [leaf for part in parts for leaf in (part.a, part.b)]


class _Linears(torch.autograd.Function):
    """A group of linear layers with LoRA (arXiv 2106.09685); keeps x and the narrow products, no copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Sequence[Part], keep: Tensor | None, *_: Tensor | None) -> tuple[Tensor, ...]:
        ctx.group = Group(parts, x.dtype, keep)
        found, narrow = ctx.group.forward(x)
        ctx.save_for_backward(x, narrow)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, narrow = ctx.saved_tensors
        grad_x, inner = ctx.group.to_input(grads, ctx.needs_input_grad[0])
        return grad_x, None, None, *ctx.group.to_adapters(x, narrow, inner, grads)


def linears(x: Tensor, parts: Sequence[Part], keep: Tensor | None = None) -> tuple[Tensor, ...]:
    """x [T, in] through each of the parts, differentiable in x and the adapters; `keep` as in Group."""
    found: tuple[Tensor, ...] = _Linears.apply(x, parts, keep, *leaves(parts))
    return found


def part_of(layer: nn.Module, x: Tensor) -> Part | None:
    """The layer as a Part for this input, or None when it computes something else: DoRA, a trained weight, merged adapters, mixed types."""
    base: Any = layer.base_layer if isinstance(layer, FusedLoraLinear) else layer
    if type(base) not in (nn.Linear, Nf4Linear):
        return None
    weight = base.packed if isinstance(base, Nf4Linear) else base.weight
    if weight.dtype != x.dtype or (isinstance(weight, Tensor) and weight.requires_grad):
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

    It falls back to peft's own forward for DoRA and other variants, several or merged adapters, a trained base weight or mixed types.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        part = None if args or any(value is not None for value in kwargs.values()) else part_of(self, x)
        if part is None or part.a is None:
            return super().forward(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1])
        (y,) = linears(rows, [part], None if part.dropout is None else part.dropout.mask(rows))
        return y.view(*x.shape[:-1], -1)


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
