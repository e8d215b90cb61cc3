"""Attention over a tree of token spans, forward and backward by blocks; knows nothing about losses, rows or which model it runs in:
transformers finds it by name (`AttentionInterface`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

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


class Bend(NamedTuple):
    """What some models do to their attention besides softmax of scaled products.

    A token sees the `window` last positions (its own among them); scores are capped, cap · tanh(s / cap); `sinks` [H] are scores that take
    a share of the softmax and give nothing (gpt-oss). `positions` int64 [T] are those of the tokens, which a window needs.
    """

    window: int | None = None
    cap: float | None = None
    sinks: Tensor | None = None
    positions: Tensor | None = None


_PLAIN = Bend()
# Finite, so that a block in which a query sees nothing has a largest score too; its share vanishes when the blocks are merged.
_UNSEEN = -1e30


def _blocks(spans: Sequence[Span], group: int, device: torch.device, bend: Bend) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Which queries look at which keys, and what to add to their scores: each span at itself, all its descendants at it."""
    for a, b, c in spans:
        yield slice(a * group, b * group), slice(a, b), _beyond(a, b, a, b, group, bend, _future(b - a, group, device))
        if b < c:
            yield slice(b * group, c * group), slice(a, b), _beyond(b, c, a, b, group, bend, None)


def _beyond(first: int, last: int, a: int, b: int, group: int, bend: Bend, mask: Tensor | None) -> Tensor | None:
    """The mask with what lies before the window of queries first … last among the keys a … b."""
    if bend.window is None or bend.positions is None:
        return mask
    places = bend.positions
    if mask is not None and b - a <= bend.window:
        return mask
    far = places[first:last, None] - places[None, a:b] >= bend.window
    if not bool(far.any()):
        return mask
    hidden = torch.zeros(far.shape, device=far.device).masked_fill_(far, _UNSEEN).repeat_interleave(group, 0)
    return hidden if mask is None else hidden.add_(mask)


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Scores in units of log 2, and their slope to the products where they are capped."""
    scores, slope = torch.bmm(q, k.transpose(1, 2)).float(), None
    if cap is not None:
        turned = scores.div_(cap * LOG2E).tanh_()
        slope = 1.0 - turned.square()
        scores = turned.mul_(cap * LOG2E)
    return (scores if mask is None else scores.add_(mask)), slope


class _TreeAttention(torch.autograd.Function):
    """Softmax attention in blocks: each span against itself (causal), and all its descendants against it (no mask).

    The blocks of one query are merged by their log-sum-exp, as in FlashAttention (arXiv 2205.14135) and in cascade inference; the
    backward pass recomputes the probabilities from it. Heads of one key-value group are rows of the same matrix product.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, spans: Sequence[Span], group: int, scale: float, bend: Bend
    ) -> Tensor:
        # q [K, T·group, D]; k [K, T, D], v [K, T, E]; sinks [K, T·group, 1] in units of log 2; returns [K, T·group, E]
        q = (q * (scale * LOG2E)).to(k.dtype)
        out = torch.empty((*q.shape[:2], v.shape[2]), dtype=torch.float32, device=q.device)
        lse = torch.empty((*q.shape[:2], 1), dtype=torch.float32, device=q.device)
        seen = 0  # queries before this one already hold the part of an ancestor
        for rows, keys, mask in _blocks(spans, group, q.device, bend):
            scores, _ = _scores(q[:, rows], k[:, keys], mask, bend.cap)
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
        if sinks is not None:
            whole = torch.logaddexp2(lse, sinks)
            out.mul_((lse - whole).exp2_())
            lse = whole
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, result, lse, sinks)
        ctx.spans, ctx.group, ctx.scale, ctx.bend = spans, group, scale, bend
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks = ctx.saved_tensors
        grad, delta = grad.contiguous(), torch.empty_like(lse)
        for a, b, _ in ctx.spans:  # span by span: in the cache, and nothing large is allocated
            own = slice(a * ctx.group, b * ctx.group)
            delta[:, own] = (grad[:, own].float() * out[:, own]).sum(-1, keepdim=True)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, keys, mask in _blocks(ctx.spans, ctx.group, q.device, ctx.bend):
            scores, slope = _scores(q[:, rows], k[:, keys], mask, ctx.bend.cap)
            p = scores.sub_(lse[:, rows]).exp2_()
            dv[:, keys].baddbmm_(p.to(v.dtype).transpose(1, 2), grad[:, rows])
            ds = torch.bmm(grad[:, rows], v[:, keys].transpose(1, 2)).float().sub_(delta[:, rows]).mul_(p)
            ds = (ds if slope is None else ds.mul_(slope)).to(q.dtype)
            dq[:, rows].baddbmm_(ds, k[:, keys], alpha=ctx.scale)
            dk[:, keys].baddbmm_(ds.transpose(1, 2), q[:, rows], alpha=LN2)
        taken = None if sinks is None else (sinks - lse).exp2_().mul_(delta).mul_(-LN2)
        return dq, dk, dv, taken, None, None, None, None


def tree_attention(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float, bend: Bend = _PLAIN) -> Tensor:
    """Attention of one packed sequence: query [H, T, D], key [K, T, D] and value [K, T, E] → [T, H, E], differentiable.

    `spans` lie in depth-first order and cover the T tokens; a token sees the earlier tokens of its span and all of its ancestors.
    """
    if query.device.type != "cpu":
        if bend != _PLAIN or key.shape[2] != value.shape[2]:
            raise NotImplementedError("windows, caps and sinks of a tree of spans are computed on processors only")
        return segment_attention(query, key, value, spans, scale)
    groups, tokens, width = key.shape
    q = query.view(groups, -1, tokens, width).transpose(1, 2).reshape(groups, -1, width)
    return attend(q, key, value, spans, scale, bend)


def attend(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span], scale: float, bend: Bend = _PLAIN) -> Tensor:
    """The same for queries laid out as the products want them, q [K, T · group, D] with a token's heads side by side."""
    groups, tokens, _ = k.shape
    group = q.shape[1] // tokens
    with torch.autocast(q.device.type, enabled=False):
        sinks = None
        if bend.sinks is not None:  # [H] → one for each query of each key-value head
            sinks = (bend.sinks.float() * LOG2E).view(groups, 1, group).expand(groups, tokens, group).reshape(groups, -1, 1)
        out = _TreeAttention.apply(q, k.to(v.dtype).contiguous(), v.contiguous(), sinks, spans, group, scale, bend._replace(sinks=None))
    return out.view(groups, tokens, group, -1).transpose(0, 1).reshape(tokens, groups * group, -1)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface; the spans travel as the keyword `spans` of the model's forward call."""
    spans: Sequence[Span] = options["spans"]
    window = options.get("sliding_window")
    bend = Bend(
        window=None if window is None or options["longest"] <= window else int(window),
        cap=options.get("softcap"),
        sinks=options.get("s_aux"),
        positions=options["places"] if window is not None and options["longest"] > window else None,
    )
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    return tree_attention(query[0], key[0], value[0], spans, scale, bend)[None], None


def register_attention() -> str:
    """Make the tree attention known to transformers; returns its name, for `model.set_attn_implementation(name)`."""
    AttentionInterface.register(ATTENTION, _attention)
    return ATTENTION
