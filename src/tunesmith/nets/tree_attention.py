"""Attention over a tree of token spans, forward and backward by blocks; knows nothing about losses, rows or which model it runs in:
transformers finds it by name (`AttentionInterface`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from tunesmith.core.errors import UsageError
from tunesmith.nets.spans import Span
from tunesmith.nets.varlen_attention import segment_attention

ATTENTION = "tunesmith_tree"
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
