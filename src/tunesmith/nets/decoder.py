"""Continuous batching over a `transformers` causal model: requests of token ids in, tokens out, one step at a time.

Knows nothing about text, chats or servers. Sequences enter and leave between steps; a prefix that they share is computed once for each
adapter and kept; adapters are mixed in one batch. When memory is short the youngest sequence is preempted and prefilled again later, with
the same result.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.nets.cached_attention import BatchCache, CachedPrefix, DecodePass, ForwardPass, PrefillPass, Segment, SequenceCache
from tunesmith.nets.multi_lora import Adapters
from tunesmith.nets.sequences import DecodeRequest, SequenceDecoder, Token, TokenSequence

_SHORTEST_PREFIX = 16  # tokens; below this, sharing costs more than it saves
_FEW = 256  # tokens of a prompt whose logits over the whole vocabulary are in memory at once
_BUSY_CHUNK = 512  # prompt tokens read in one step while other sequences are being decoded, so that their streams do not stall


class Engine:
    """A model and its adapters with one lock: a pass at a time, whoever asks. `lock` may be that of other engines on the same weights."""

    def __init__(self, model: Any, lock: threading.Lock | None = None) -> None:
        self.model = model
        self.device: torch.device = model.device
        self.context = context_of(model)
        self.lock = lock or threading.Lock()
        self.adapters = Adapters(model, self.lock)

    @property
    def names(self) -> Collection[str]:
        """See `Computing`."""
        return self.adapters.loaded

    def rehearsal(self) -> Engine:
        """An engine of its own over the same weights and adapters: what is done to it is not done to this one."""
        shared: dict[int, Any] = {id(p): p for p in self.model.parameters()}
        with self.lock:
            return copy.deepcopy(self, shared | {id(self.lock): threading.Lock()})

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], owners: Sequence[str | None], forward_pass: ForwardPass, keep: Sequence[int]
    ) -> Tensor:
        """Logits float32 [len(keep), vocabulary] at the packed places `keep`. `owners` has each token's adapter."""
        with self.lock:
            self.adapters.use(owners, keep, self.device)
            out = self.model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
                logits_to_keep=torch.tensor(keep, device=self.device),
                forward_pass=forward_pass,
            )
        return out.logits[0].float()

    def prompt_logits(self, ids: Sequence[int], adapter: str | None) -> Iterator[Tensor]:
        """See `Reading.prompt_logits`."""
        cache = SequenceCache()
        for start in range(0, len(ids) - 1, _FEW):
            chunk = list(ids[start : min(start + _FEW, len(ids) - 1)])
            places, forward_pass = list(range(start, start + len(chunk))), PrefillPass([Segment(0, len(chunk), start, cache)])
            yield self.forward(chunk, places, [adapter] * len(chunk), forward_pass, range(len(chunk)))

    def logps(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None, chunk: int = 2048) -> list[list[float]]:
        """Natural log-probabilities of the ids whose mask is 1, for each row of (ids, mask).

        The first id of a row has nothing before it and is never scored. Logits are computed for scored places only.
        """
        results: list[list[float]] = [[] for _ in rows]
        order = sorted((i for i in range(len(rows)) if any(rows[i][1][1:])), key=lambda i: len(rows[i][0]))
        while order:
            packed, segments, keep = _Packed(), list[Segment](), list[int]()
            targets: list[tuple[int, int]] = []  # row and id of each kept place
            while order and (not segments or len(packed.tokens) + len(rows[order[0]][0]) <= chunk):
                number = order.pop(0)
                ids, mask = rows[number]
                begin = packed.extend(ids, 0, adapter)
                segments.append(Segment(begin, len(packed.tokens), 0, SequenceCache()))
                places = [i for i in range(1, len(ids)) if mask[i]]
                keep.extend(begin + i - 1 for i in places)
                targets.extend((number, ids[i]) for i in places)
            logits = self.forward(packed.tokens, packed.positions, packed.owners, PrefillPass(segments), keep)
            wanted = torch.tensor([number for _, number in targets], device=logits.device)
            losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").tolist()
            for (number, _), loss in zip(targets, losses, strict=True):
                results[number].append(-loss)
        return results


def context_of(model: Any) -> int:
    """How many tokens a model reads; a large number where its configuration has no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else 1 << 20


class Decoder(SequenceDecoder):
    """See `SequenceDecoder`.

    `chunk` is how many prompt tokens one pass reads, `cache_bytes` how much the keys and values of the batch may take, `prefixes` how many
    shared prefixes are kept.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_rows: int = 64,
        chunk: int = 2048,
        cache_bytes: int = 2 << 30,
        prefixes: int = 16,
        numbers: Iterator[int] | None = None,
    ) -> None:
        super().__init__(engine, max_rows=max_rows, numbers=numbers)
        self.engine, self.chunk, self.cache_bytes = engine, chunk, cache_bytes
        self._prefilling: list[TokenSequence] = []
        self._cache = BatchCache()  # sequence i of those being decoded is in its slot i
        self._prefixes: OrderedDict[tuple[str | None, tuple[int, ...]], CachedPrefix] = OrderedDict()
        self._max_prefixes = prefixes

    @property
    def busy(self) -> bool:
        """See `SequenceDecoder`."""
        return bool(self._waiting or self._prefilling or self._decoding)

    @property
    def load(self) -> tuple[int, int]:
        """See `SequenceDecoder`."""
        return len(self._decoding) + len(self._prefilling), len(self._waiting)

    @property
    def cache_use(self) -> float:
        """See `SequenceDecoder`."""
        return self._cache.bytes / self.cache_bytes

    def cancel(self, number: int) -> None:
        """See `SequenceDecoder`."""
        super().cancel(number)
        self._prefilling = [sequence for sequence in self._prefilling if sequence.number != number]

    def _open(self) -> list[TokenSequence]:
        return [*super()._open(), *self._prefilling]

    def step(self) -> list[Token]:
        """Prefill some prompt tokens, then decode one token more of every sequence that is being answered."""
        tokens = self._prefill()
        waited = {token.sequence for token in tokens}
        if any(sequence.number not in waited for sequence in self._decoding):
            tokens += self._decode()
        return tokens

    def _prefill(self) -> list[Token]:
        while self._waiting and len(self._decoding) + len(self._prefilling) < self.max_rows and self._fits(self._waiting[0]):
            if sum(len(sequence.own_ids()) - sequence.computed for sequence in self._prefilling) >= self.chunk:
                break
            sequence = self._waiting.popleft()
            sequence.prefix = self._prefix(sequence.request)
            self._prefilling.append(sequence)
        if not self._prefilling:
            return []
        budget = min(self.chunk, _BUSY_CHUNK) if self._decoding else self.chunk
        packed, segments, sequences = _Packed(), [], []
        for sequence in self._prefilling:
            new = sequence.own_ids()[sequence.computed : sequence.computed + budget - len(packed.tokens)]
            if not new:
                break
            begin = packed.extend(new, sequence.start + sequence.computed, sequence.request.adapter)
            segments.append(Segment(begin, len(packed.tokens), sequence.computed, sequence.cache, sequence.prefix))
            sequences.append(sequence)
        logits = self.engine.forward(packed.tokens, packed.positions, packed.owners, PrefillPass(segments), [s.end - 1 for s in segments])
        for sequence, segment in zip(sequences, segments, strict=True):
            sequence.computed += segment.end - segment.begin
        whole = [i for i, sequence in enumerate(sequences) if sequence.computed == len(sequence.own_ids())]
        ready = [sequences[i] for i in whole]
        self._prefilling = [sequence for sequence in self._prefilling if sequence not in ready]
        for sequence in ready:
            self._cache.reserve(min(self.max_rows, _rounded(len(self._decoding) + 1)), sequence.computed + 1)
            self._cache.put(len(self._decoding), sequence.cache)
            sequence.cache = SequenceCache()
            self._decoding.append(sequence)
        return self._sample(ready, logits[whole]) if ready else []

    def _decode(self) -> list[Token]:
        self._preempt()
        sequences = list(self._decoding)
        lengths = [sequence.computed for sequence in sequences]
        self._cache.reserve(len(sequences), max(lengths) + 1)
        forward_pass = DecodePass(self._cache, lengths, [sequence.prefix for sequence in sequences], self.engine.device)
        positions = [sequence.start + sequence.computed for sequence in sequences]
        owners = [sequence.request.adapter for sequence in sequences]
        ids = [sequence.generated[-1] for sequence in sequences]
        logits = self.engine.forward(ids, positions, owners, forward_pass, range(len(sequences)))
        for sequence in sequences:
            sequence.computed += 1
        return self._sample(sequences, logits)

    def _retire(self, sequence: TokenSequence) -> None:
        slot, last = self._decoding.index(sequence), self._decoding[-1]
        if last is not sequence:
            self._cache.move(len(self._decoding) - 1, slot, last.computed)
            self._decoding[slot] = last
        self._decoding.pop()
        if not self._decoding:
            self._cache.clear()

    def _bytes(self, sequences: int, length: int) -> int:
        cache = self._cache
        return 0 if not cache.layers else cache.bytes // (cache.slots * cache.length) * sequences * length

    def _fits(self, sequence: TokenSequence) -> bool:
        """Whether the batch with this sequence stays within the memory, as far as is known today. An empty batch takes any."""
        sequences = self._decoding + self._prefilling
        longest = max((len(other.own_ids()) for other in [*sequences, sequence]), default=0)
        return not sequences or self._bytes(len(sequences) + 1, longest + 1) <= self.cache_bytes

    def _preempt(self) -> None:
        """Send the youngest sequences back to wait when the next token would not fit; they keep what they have generated."""
        while len(self._decoding) > 1:
            longest = max(sequence.computed for sequence in self._decoding)
            if self._bytes(len(self._decoding), longest + 1) <= self.cache_bytes:
                return
            sequence = max(self._decoding, key=lambda sequence: sequence.number)
            self._retire(sequence)
            sequence.forget()
            self._waiting.appendleft(sequence)
            self._cache.shrink(len(self._decoding))

    def _prefix(self, request: DecodeRequest) -> CachedPrefix | None:
        """The cached prefix that the request begins with, computed now when it is new. At least one token stays the sequence's own."""
        size = min(request.share, len(request.ids) - 1)
        if size < _SHORTEST_PREFIX:
            return None
        key = (request.adapter, tuple(request.ids[:size]))
        if key not in self._prefixes:
            cache = SequenceCache()
            for start in range(0, size, self.chunk):
                packed = _Packed()
                packed.extend(key[1][start : start + self.chunk], start, request.adapter)
                segment = Segment(0, len(packed.tokens), start, cache)
                self.engine.forward(packed.tokens, packed.positions, packed.owners, PrefillPass([segment]), [0])
            self._prefixes[key] = CachedPrefix(request.adapter, key[1], cache)
            while len(self._prefixes) > self._max_prefixes:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def forget(self, adapter: str) -> None:
        """Drop what was computed with an adapter that is being unloaded."""
        for key in [key for key in self._prefixes if key[0] == adapter]:
            del self._prefixes[key]


class _Packed:
    """Tokens of several sequences end to end."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.owners: list[str | None] = []

    def extend(self, new: Sequence[int], position: int, owner: str | None) -> int:
        """Append tokens that stand at `position` and after; returns where they begin."""
        begin = len(self.tokens)
        self.tokens.extend(new)
        self.positions.extend(range(position, position + len(new)))
        self.owners.extend([owner] * len(new))
        return begin


def _rounded(slots: int) -> int:
    """The next power of two: slots are added in doublings."""
    return 1 << (slots - 1).bit_length()
