"""Attention over a tree of token spans by the kernels that a GPU brings: one piece a branch, its ancestors' keys laid before its own.

Knows nothing about models. `tree_attention` comes here with tensors of a GPU; on a CPU its own blocks are faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from tunesmith.nets.spans import Span


class Branch(NamedTuple):
    """Tokens [start, end) that follow each other; they see the tokens of `before`, which are ranges, and the earlier ones of their own."""

    start: int
    end: int
    before: tuple[tuple[int, int], ...]


def branches(spans: Sequence[Span]) -> Iterator[Branch]:
    """The tree with chains of spans joined, in the order of the tokens. A row that shares nothing is one branch."""
    path: list[Span] = []
    for span in spans:
        while path and path[-1].reach <= span.start:
            yield from _closed(path)
        if path and path[-1].end == span.start and path[-1].reach == span.reach:
            path[-1] = path[-1]._replace(end=span.end)
        else:
            path.append(span)
    while path:
        yield from _closed(path)


def _closed(path: list[Span]) -> Iterator[Branch]:
    last = path.pop()
    yield Branch(last.start, last.end, tuple((span.start, span.end) for span in path))


def segment_attention(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scale: float) -> Tensor:
    """What `tree_attention` computes: query [H, T, D], key and value [K, T, D] → [T, H, D], differentiable."""
    key, query = key.to(value.dtype), query.to(value.dtype)
    tree = sorted(branches(spans))
    if query.is_cuda and value.dtype in (torch.bfloat16, torch.float16) and _varlen_is_exact(query.device, value.dtype):
        return _varlen(query, key, value, tree, scale)
    return _one_by_one(query, key, value, tree, scale)


def _seen(x: Tensor, branch: Branch) -> Tensor:
    """The columns [K, n, D] of `x` that the branch's last token sees, in their order."""
    own = x[:, branch.start : branch.end]
    return torch.cat([*(x[:, a:b] for a, b in branch.before), own], 1) if branch.before else own


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, tree: Sequence[Branch], scale: float) -> Tensor:
    group, parts = query.shape[0] // key.shape[0], []
    for branch in tree:
        q = query[:, branch.start : branch.end]
        k, v = (_seen(x, branch).repeat_interleave(group, 0) for x in (key, value))
        mask = None
        if branch.before:
            ones = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
            mask = ones.tril(k.shape[1] - q.shape[1])
        parts.append(F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale)[0])
    return torch.cat(parts, 1).transpose(0, 1)


def _varlen(query: Tensor, key: Tensor, value: Tensor, tree: Sequence[Branch], scale: float) -> Tensor:
    """All branches in one call of FlashAttention (arXiv 2307.08691), whose causal mask ends at the last key of each."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = [branch.end - branch.start for branch in tree]
    seen = [length + sum(b - a for a, b in branch.before) for length, branch in zip(lengths, tree, strict=True)]
    if any(branch.before for branch in tree):
        key, value = (torch.cat([_seen(x, branch) for branch in tree], 1) for x in (key, value))
    starts, starts_seen = (torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=query.device) for n in (lengths, seen))
    q, k, v = (x.transpose(0, 1).contiguous() for x in (query, key, value))
    out = varlen_attn(
        q, k, v, starts, starts_seen, max(lengths), max(seen), scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(out, Tensor)  # a pair only where the log-sum-exp is asked for
    return out


@lru_cache
def _varlen_is_exact(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this GPU's kernel computes what the plain one does on a small tree, tried once: older chips have none."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(heads, 48, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    tree = (Branch(0, 16, ()), Branch(16, 32, ((0, 16),)), Branch(32, 48, ((0, 16),)))
    with torch.no_grad():
        try:
            out = _varlen(q, k, v, tree, 0.125)
        except (ImportError, RuntimeError, NotImplementedError, TypeError):
            return False
        return torch.allclose(out, _one_by_one(q, k, v, tree, 0.125), rtol=2e-2, atol=2e-2)
