"""Attention over packed sequences with shared prefixes, in the attention interface of `transformers`; knows nothing about sampling.

One forward pass carries the tokens of many sequences, laid end to end as a batch of one ([1, N]), so nothing is padded in the linear
layers. The key-value cache lives here: a `SequenceCache` holds one sequence (or one prefix), a `BatchCache` all that are decoded together.
A prefix that many sequences begin with is held once; a sequence attends to it and to its own tokens, and the two halves are merged exactly
by their log-sum-exp
(Milakov & Gimelshein 2018, arXiv:1805.02867; the same merge as FlashAttention's and Hydragen's, arXiv:2402.05099).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "tunesmith_packed"
_LEAST = -3e38
_FEW = 8
_GROWTH = 64  # positions; a cache grows by so many, so that most decoding passes copy nothing


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """How one layer attends: the score's `scale`, a sliding `window` in tokens, the `softcap` of Gemma 2, the `sinks` [heads] of gpt-oss, a
    further score of each head that takes weight and gives nothing (None: off)."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None


class ForwardPass(Protocol):
    """One forward pass: is handed each layer's queries, keys and values and answers with what attention gives."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: LayerOptions) -> Tensor:
        """query [heads, N, d], key [kv heads, N, d] and value [kv heads, N, e] → [heads, N, e]."""
        ...


def packed_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    """The function that `transformers` calls in each layer: query [1, heads, N, d] → ([1, N, heads, d], None)."""
    forward_pass: ForwardPass = kwargs["forward_pass"]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    options = LayerOptions(scale, kwargs.get("sliding_window"), kwargs.get("softcap"), kwargs.get("s_aux"))
    out = forward_pass.attend(module.layer_idx, query[0], key[0], value[0], options)
    return out.transpose(0, 1).unsqueeze(0), None


class SequenceCache:
    """Keys and values of one sequence, layer by layer, each [kv heads, length, d]; grows by what is written."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append [kv heads, n, d] and return everything up to here."""
        if layer in self.layers:
            key, value = (torch.cat(pair, dim=1) for pair in zip(self.layers[layer], (key, value), strict=True))
        self.layers[layer] = (key, value)
        return key, value


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrefix:
    """The keys and values of tokens that many sequences begin with: `ids` are those tokens, computed with `adapter`."""

    adapter: str | None
    ids: tuple[int, ...]
    cache: SequenceCache

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Segment:
    """Tokens `begin:end` of a packed pass that belong to one sequence. `start` of its own tokens are already in `cache`."""

    begin: int
    end: int
    start: int
    cache: SequenceCache
    prefix: CachedPrefix | None = None


@dataclass(slots=True)
class PrefillPass:
    """A pass that reads new tokens of some sequences (prompts, or whole texts to score)."""

    segments: Sequence[Segment]
    _masks: dict[tuple[int, int | None, int, int], Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: LayerOptions) -> Tensor:
        """See `ForwardPass.attend`."""
        out = query.new_empty(*query.shape[:2], value.shape[2])
        for segment in self.segments:
            here = slice(segment.begin, segment.end)
            keys, values = segment.cache.write(layer, key[:, here], value[:, here])
            out[:, here] = self._segment(layer, segment, query[:, here], (keys, values), options)
        return out

    def _segment(self, layer: int, segment: Segment, query: Tensor, own: tuple[Tensor, Tensor], options: LayerOptions) -> Tensor:
        keys, values = own
        prefix = segment.prefix
        windowed = options.window is not None and options.window < query.shape[1]
        if prefix is None and segment.start == 0 and options.softcap is None and options.sinks is None and not windowed:
            group = query.shape[0] // keys.shape[0]
            keys, values = (half.repeat_interleave(group, 0).unsqueeze(0) for half in (keys, values))
            return F.scaled_dot_product_attention(query.unsqueeze(0), keys, values, is_causal=True, scale=options.scale)[0]
        heads, length, width = query.shape
        grouped = query.reshape(keys.shape[0], -1, width)  # [kv heads, group × length, d]
        group = heads // keys.shape[0]
        out, weight = partial_attention(grouped, keys, values, options, self._mask(segment, options.window, group, query.device))
        if prefix is not None:
            before = None if options.window is None else self._mask(segment, options.window, group, query.device, prefix=len(prefix))
            left = partial_attention(grouped, *prefix.cache.layers[layer], options, before)
            out, weight = merge(left, (out, weight)), torch.logaddexp(left[1], weight)
        out = out.reshape(heads, length, -1)
        return out if options.sinks is None else _sunk(out, weight.reshape(heads, length), options.sinks[:, None])

    def _mask(self, segment: Segment, window: int | None, group: int, device: torch.device, prefix: int = 0) -> Tensor:
        """[group × length, keys] additive over the sequence's own tokens (or over its `prefix` tokens): no token sees what follows it."""
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


def partial_attention(query: Tensor, key: Tensor, value: Tensor, options: LayerOptions, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention over a part of the keys: query [n, m, d], key and value [n, t, d] → (output [n, m, d], log-sum-exp [n, m] in nats).

    Scores and weights are float32 whatever the inputs are. A query that may see no key here gives output 0 and −∞.
    """
    scores = _scores(query, key).mul_(options.scale)
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
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


def _sunk(out: Tensor, weight: Tensor, sinks: Tensor) -> Tensor:
    """Attention beside sinks: of the softmax over keys and sink, whose value is 0, what the keys keep. `weight` is their log-sum-exp."""
    return (out.float() * torch.sigmoid(weight - sinks.float()).unsqueeze(-1)).to(out.dtype)


class BatchCache:
    """Keys and values of the sequences that are decoded together, one slot each: per layer [slots, kv heads, length, d].

    Slots 0 to n − 1 are in use; a sequence that leaves is replaced by the last one. Memory grows with the longest sequence and is freed
    when none is left.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.slots = self.length = 0

    @property
    def bytes(self) -> int:
        """What the cache holds now."""
        return sum(half.nbytes for pair in self.layers.values() for half in pair)

    def reserve(self, slots: int, length: int) -> None:
        """Room for `slots` sequences of `length` tokens."""
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

    def put(self, slot: int, cache: SequenceCache) -> None:
        """Copy a prefilled sequence into its slot; `reserve` was called."""
        for layer, (key, value) in cache.layers.items():
            if layer not in self.layers:
                shape = (self.slots, key.shape[0], self.length, key.shape[2])
                self.layers[layer] = (key.new_zeros(shape), value.new_zeros((*shape[:3], value.shape[2])))
            for half, new in zip(self.layers[layer], (key, value), strict=True):
                half[slot, :, : new.shape[1]] = new

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the sequence in slot `source` to slot `target`."""
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


class DecodePass:
    """A pass with one new token for each sequence of a batch. `lengths` are the own tokens that each has in the cache already."""

    def __init__(self, cache: BatchCache, lengths: Sequence[int], prefixes: Sequence[CachedPrefix | None], device: torch.device) -> None:
        self.cache = cache
        self.lengths = torch.tensor(lengths, device=device)
        self.rows = torch.arange(len(lengths), device=device)
        self.keys = max(lengths) + 1
        self.groups = _grouped(prefixes, device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: LayerOptions) -> Tensor:
        """See `ForwardPass.attend`."""
        heads, rows, width = query.shape
        kv_heads = key.shape[0]
        keys, values = self.cache.layers[layer]
        keys[self.rows, :, self.lengths] = key.transpose(0, 1)
        values[self.rows, :, self.lengths] = value.transpose(0, 1)
        keys, values = (half[:rows, :, : self.keys].flatten(0, 1) for half in (keys, values))  # [rows × kv heads, length, d]
        by_head = query.reshape(kv_heads, heads // kv_heads, rows, width)
        own = by_head.permute(2, 0, 1, 3).reshape(rows * kv_heads, -1, width)
        out, weight = partial_attention(own, keys, values, options, self._mask(options.window, kv_heads))
        out = out.reshape(rows, kv_heads, heads // kv_heads, -1).permute(1, 2, 0, 3)  # [kv heads, group, rows, e]
        weight = weight.reshape(rows, kv_heads, -1).permute(1, 2, 0)
        if self.groups:
            out, weight = out.contiguous(), weight.contiguous()
            self._add_prefixes(layer, by_head, (out, weight), options)
        if options.sinks is not None:
            out = _sunk(out, weight, options.sinks.reshape(kv_heads, -1, 1))
        return out.reshape(heads, rows, -1)

    def _add_prefixes(self, layer: int, query: Tensor, own: tuple[Tensor, Tensor], options: LayerOptions) -> None:
        """Merge what each group of sequences sees in its prefix into `own`, in place."""
        out, weight = own
        for prefix, index in self.groups:
            part = query if index is None else query[:, :, index]
            kv_heads, group, rows, width = part.shape
            mask = None if options.window is None else self._far(prefix, index, options.window, group)
            before, total = partial_attention(part.reshape(kv_heads, -1, width), *prefix.cache.layers[layer], options, mask)
            left = (before.reshape(kv_heads, group, rows, -1), total.reshape(kv_heads, group, rows))
            at = slice(None) if index is None else index
            right = (out[:, :, at], weight[:, :, at])
            out[:, :, at], weight[:, :, at] = merge(left, right), torch.logaddexp(left[1], right[1])

    def _mask(self, window: int | None, kv_heads: int) -> Tensor:
        """[rows × kv heads, 1, keys] additive: what a sequence has not yet generated is not seen, nor what its window has left behind."""
        if window not in self._masks:
            distance = self.lengths[:, None] - torch.arange(self.keys, device=self.lengths.device)[None]
            self._masks[window] = _additive(_seen(distance, window)).repeat_interleave(kv_heads, 0).unsqueeze(1)
        return self._masks[window]

    def _far(self, prefix: CachedPrefix, index: Tensor | None, window: int, group: int) -> Tensor:
        at = len(prefix) + (self.lengths if index is None else self.lengths[index])
        distance = at[:, None] - torch.arange(len(prefix), device=at.device)[None]
        return _additive(_seen(distance, window)).repeat(group, 1)


def _grouped(prefixes: Sequence[CachedPrefix | None], device: torch.device) -> list[tuple[CachedPrefix, Tensor | None]]:
    """The sequences of each prefix; None stands for all."""
    members: dict[int, list[int]] = {}
    named: dict[int, CachedPrefix] = {}
    for row, prefix in enumerate(prefixes):
        if prefix is not None:
            members.setdefault(id(prefix), []).append(row)
            named[id(prefix)] = prefix
    return [(named[key], None if len(rows) == len(prefixes) else torch.tensor(rows, device=device)) for key, rows in members.items()]
