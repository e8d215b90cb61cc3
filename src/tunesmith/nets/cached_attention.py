"""Attention over packed rows with shared prefixes, registered with `transformers` by its attention interface; knows nothing about sampling.

One forward pass carries the tokens of many rows, laid end to end as a batch of one ([1, N]), so nothing is padded in the linear layers.
Keys and values live here: a `Strip` belongs to one row (or to one prefix), a `Pool` holds all rows that decode together. A prefix that many
rows begin with is kept once; a row attends to it and to its own tokens, and the two halves are merged exactly by their log-sum-exp
(Milakov & Gimelshein 2018, arXiv:1805.02867; the same merge as FlashAttention's and Hydragen's, arXiv:2402.05099).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

NAME = "tunesmith_packed"
_LEAST = -3e38
_FEW = 8
_GROWTH = 64  # positions; a pool grows in such steps, so that most steps copy nothing


@dataclass(frozen=True, slots=True)
class Form:
    """How one layer attends: the score's `scale`, a sliding `window` in tokens, the `softcap` of Gemma 2 (None: off)."""

    scale: float
    window: int | None = None
    softcap: float | None = None


class Step(Protocol):
    """One forward pass: is handed each layer's queries, keys and values and answers with what attention gives."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """query [heads, N, d], key and value [kv heads, N, d] → [heads, N, d]."""
        ...


def packed_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    """The function that `transformers` calls in each layer: query [1, heads, N, d] → ([1, N, heads, d], None)."""
    step: Step = kwargs["step"]
    form = Form(kwargs.get("scaling") or module.head_dim**-0.5, kwargs.get("sliding_window"), kwargs.get("softcap"))
    out = step.attend(module.layer_idx, query[0], key[0], value[0], form)
    return out.transpose(0, 1).unsqueeze(0), None


class Strip:
    """Keys and values of one row, layer by layer, each [kv heads, length, d]; grows by what is written."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append [kv heads, n, d] and return everything up to here."""
        if layer in self.layers:
            key, value = (torch.cat(pair, dim=1) for pair in zip(self.layers[layer], (key, value), strict=True))
        self.layers[layer] = (key, value)
        return key, value


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The keys and values of tokens that many rows begin with; `ids` are those tokens, `adapter` the one that they were computed with."""

    adapter: str | None
    ids: tuple[int, ...]
    strip: Strip

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Segment:
    """Tokens `begin:end` of a packed pass that belong to one row. `start` of its own tokens are already in `strip`."""

    begin: int
    end: int
    start: int
    strip: Strip
    prefix: Prefix | None = None


@dataclass(slots=True)
class Fill:
    """A pass that reads new tokens of some rows (prompts, or whole texts to score)."""

    segments: Sequence[Segment]
    _masks: dict[tuple[int, int | None, int, int], Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `Step.attend`."""
        out = torch.empty_like(query)
        for segment in self.segments:
            here = slice(segment.begin, segment.end)
            keys, values = segment.strip.write(layer, key[:, here], value[:, here])
            out[:, here] = self._segment(layer, segment, query[:, here], (keys, values), form)
        return out

    def _segment(self, layer: int, segment: Segment, query: Tensor, own: tuple[Tensor, Tensor], form: Form) -> Tensor:
        keys, values = own
        prefix = segment.prefix
        if prefix is None and segment.start == 0 and form.softcap is None and (form.window is None or form.window >= query.shape[1]):
            group = query.shape[0] // keys.shape[0]
            keys, values = (half.repeat_interleave(group, 0).unsqueeze(0) for half in (keys, values))
            return torch.nn.functional.scaled_dot_product_attention(query.unsqueeze(0), keys, values, is_causal=True, scale=form.scale)[0]
        heads, length, width = query.shape
        grouped = query.reshape(keys.shape[0], -1, width)  # [kv heads, group × length, d]
        group = heads // keys.shape[0]
        out, weight = partial_attention(grouped, keys, values, form, self._mask(segment, form.window, group, query.device))
        if prefix is not None:
            before = None if form.window is None else self._mask(segment, form.window, group, query.device, prefix=len(prefix))
            left = partial_attention(grouped, *prefix.strip.layers[layer], form, before)
            out = merge(left, (out, weight))
        return out.reshape(heads, length, width)

    def _mask(self, segment: Segment, window: int | None, group: int, device: torch.device, prefix: int = 0) -> Tensor:
        """[group × length, keys] additive over the row's own tokens (or over its `prefix` tokens): no token sees what follows it."""
        name = (segment.begin, window, group, prefix)
        if name not in self._masks:
            at = torch.arange(segment.start, segment.start + segment.end - segment.begin, device=device) + prefix
            keys = torch.arange(prefix or segment.start + segment.end - segment.begin, device=device)
            self._masks[name] = _additive(_seen(at[:, None] - keys[None], window)).repeat(group, 1)
        return self._masks[name]


def _seen(distance: Tensor, window: int | None) -> Tensor:
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=torch.float32, device=seen.device).masked_fill_(~seen, float("-inf"))


def partial_attention(query: Tensor, key: Tensor, value: Tensor, form: Form, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention over a part of the keys: query [n, m, d], key and value [n, t, d] → (output [n, m, d], log-sum-exp [n, m] in nats).

    Scores and weights are float32 whatever the inputs are. A query that may see no key here gives output 0 and −∞.
    """
    scores = _scores(query, key).mul_(form.scale)
    if form.softcap is not None:
        scores = torch.tanh(scores / form.softcap) * form.softcap
    if mask is not None:
        scores += mask
    top = scores.amax(dim=-1, keepdim=True).clamp_min_(_LEAST)  # finite, so that −∞ everywhere gives weights of 0 and not NaN
    weights = scores.sub_(top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    out = torch.bmm(weights.to(value.dtype), value) / total.clamp_min(1e-30)
    return out.to(value.dtype), (top + total.log()).squeeze(-1)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """query × keyᵀ in float32 [n, m, t]. With few queries in a short type the CPU's product is twice as fast the other way round."""
    if query.dtype == torch.float32 or query.shape[1] > _FEW or query.is_cuda:
        return torch.bmm(query, key.transpose(1, 2)).float()
    return torch.empty(*query.shape[:2], key.shape[1]).copy_(torch.bmm(key, query.transpose(1, 2)).transpose(1, 2))


def merge(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """Two partial attentions over disjoint keys as one: the softmax over both, exactly."""
    share = torch.sigmoid(left[1] - right[1]).unsqueeze(-1)  # the weight that all the keys of the left have together
    return (left[0].float() * share + right[0].float() * (1 - share)).to(left[0].dtype)


class Pool:
    """Keys and values of the rows that decode together, one slot each: per layer [slots, kv heads, length, d].

    Slots 0 to n − 1 are in use; a row that leaves is replaced by the last one. Memory grows with the longest row and is freed when
    the pool is empty.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.slots = self.length = 0

    @property
    def bytes(self) -> int:
        """What the pool holds now."""
        return sum(half.nbytes for pair in self.layers.values() for half in pair)

    def reserve(self, slots: int, length: int) -> None:
        """Room for `slots` rows of `length` tokens."""
        if slots <= self.slots and length <= self.length:
            return
        self.slots = max(self.slots, slots)
        self.length = max(self.length, -(-length // _GROWTH) * _GROWTH)
        for layer, pair in self.layers.items():
            self.layers[layer] = (self._grown(pair[0]), self._grown(pair[1]))

    def _grown(self, old: Tensor) -> Tensor:
        new = old.new_zeros(self.slots, old.shape[1], self.length, old.shape[3])
        new[: old.shape[0], :, : old.shape[2]] = old
        return new

    def put(self, slot: int, strip: Strip) -> None:
        """Copy a row into its slot; `reserve` was called."""
        for layer, (key, value) in strip.layers.items():
            if layer not in self.layers:
                shape = (self.slots, key.shape[0], self.length, key.shape[2])
                self.layers[layer] = (key.new_zeros(shape), value.new_zeros((*shape[:3], value.shape[2])))
            for half, new in zip(self.layers[layer], (key, value), strict=True):
                half[slot, :, : new.shape[1]] = new

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the row in slot `source` to slot `target`."""
        for pair in self.layers.values():
            for half in pair:
                half[target, :, :length] = half[source, :, :length]

    def shrink(self, slots: int) -> None:
        """Give back the memory of slots that are no longer used."""
        self.slots = max(slots, 1)
        self.layers = {layer: (key[: self.slots].clone(), value[: self.slots].clone()) for layer, (key, value) in self.layers.items()}

    def clear(self) -> None:
        """Give the memory back."""
        self.layers.clear()
        self.slots = self.length = 0


class Advance:
    """A pass with one new token for each row of a pool. `lengths` are the own tokens that each row has in the pool already."""

    def __init__(self, pool: Pool, lengths: Sequence[int], prefixes: Sequence[Prefix | None], device: torch.device) -> None:
        self.pool = pool
        self.lengths = torch.tensor(lengths, device=device)
        self.rows = torch.arange(len(lengths), device=device)
        self.keys = max(lengths) + 1
        self.groups = _grouped(prefixes, device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `Step.attend`."""
        heads, rows, width = query.shape
        kv_heads = key.shape[0]
        keys, values = self.pool.layers[layer]
        keys[self.rows, :, self.lengths] = key.transpose(0, 1)
        values[self.rows, :, self.lengths] = value.transpose(0, 1)
        keys, values = (half[:rows, :, : self.keys].flatten(0, 1) for half in (keys, values))  # [rows × kv heads, length, d]
        by_head = query.reshape(kv_heads, heads // kv_heads, rows, width)
        own = by_head.permute(2, 0, 1, 3).reshape(rows * kv_heads, -1, width)
        out, weight = partial_attention(own, keys, values, form, self._mask(form.window, kv_heads))
        out = out.reshape(rows, kv_heads, -1, width).permute(1, 2, 0, 3)  # [kv heads, group, rows, d]
        if self.groups:
            out = out.contiguous()
            self._add_prefixes(layer, by_head, (out, weight.reshape(rows, kv_heads, -1).permute(1, 2, 0)), form)
        return out.reshape(heads, rows, width)

    def _add_prefixes(self, layer: int, query: Tensor, own: tuple[Tensor, Tensor], form: Form) -> None:
        """Merge what each group of rows sees in its prefix into `own`, in place."""
        out, weight = own
        for prefix, index in self.groups:
            part = query if index is None else query[:, :, index]
            kv_heads, group, rows, width = part.shape
            mask = None if form.window is None else self._far(prefix, index, form.window, group)
            before, total = partial_attention(part.reshape(kv_heads, -1, width), *prefix.strip.layers[layer], form, mask)
            left = (before.reshape(kv_heads, group, rows, -1), total.reshape(kv_heads, group, rows))
            if index is None:
                out.copy_(merge(left, (out, weight)))
            else:
                out[:, :, index] = merge(left, (out[:, :, index], weight[:, :, index]))

    def _mask(self, window: int | None, kv_heads: int) -> Tensor:
        """[rows × kv heads, 1, keys] additive: what a row has not yet said is not seen, nor what its window has left behind."""
        if window not in self._masks:
            distance = self.lengths[:, None] - torch.arange(self.keys, device=self.lengths.device)[None]
            self._masks[window] = _additive(_seen(distance, window)).repeat_interleave(kv_heads, 0).unsqueeze(1)
        return self._masks[window]

    def _far(self, prefix: Prefix, index: Tensor | None, window: int, group: int) -> Tensor:
        at = len(prefix) + (self.lengths if index is None else self.lengths[index])
        distance = at[:, None] - torch.arange(len(prefix), device=at.device)[None]
        return _additive(_seen(distance, window)).repeat(group, 1)


def _grouped(prefixes: Sequence[Prefix | None], device: torch.device) -> list[tuple[Prefix, Tensor | None]]:
    """The rows of each prefix; None stands for all rows."""
    members: dict[int, list[int]] = {}
    named: dict[int, Prefix] = {}
    for row, prefix in enumerate(prefixes):
        if prefix is not None:
            members.setdefault(id(prefix), []).append(row)
            named[id(prefix)] = prefix
    return [(named[key], None if len(rows) == len(prefixes) else torch.tensor(rows, device=device)) for key, rows in members.items()]
