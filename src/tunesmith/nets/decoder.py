"""Continuous batching over a `transformers` causal model: requests of token ids in, tokens out, one step at a time.

Knows nothing about text, chats or servers. Sequences enter and leave between steps; a prefix that they share is computed once for each
adapter and kept; adapters are mixed in one batch. When memory is short the youngest sequence is preempted and prefilled again later, with
the same result.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunesmith.core.errors import ContextExceeded, UsageError
from tunesmith.nets.cached_attention import BatchCache, CachedPrefix, DecodePass, ForwardPass, PrefillPass, Segment, SequenceCache
from tunesmith.nets.multi_lora import Adapters
from tunesmith.nets.sampling import choose, log_probabilities

_SHORTEST_PREFIX = 16  # tokens; below this, sharing costs more than it saves
_BUSY_CHUNK = 512  # prompt tokens read in one step while other sequences are being decoded, so that their streams do not stall


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Token ids to continue. `share` is how many of the first ids other requests are likely to begin with too.

    `seed` decides every draw of a sampled sequence; `top_logprobs` None returns none. Ids in `stop_ids` end the sequence and are returned
    last.
    """

    ids: Sequence[int]
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()
    adapter: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_logprobs: int | None = None
    share: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """One new token of the sequence that `Decoder.add` numbered so.

    `finish` is set on the last: `stop` (an id of `stop_ids`, which is then `id`) or `length`.
    """

    sequence: int
    id: int
    finish: str | None = None
    logprob: dict[str, Any] | None = None


@dataclass(slots=True, eq=False)
class _Sequence:
    number: int
    request: Request
    generated: list[int] = field(default_factory=list)
    prefix: CachedPrefix | None = None
    cache: SequenceCache = field(default_factory=SequenceCache)
    computed: int = 0  # own tokens (those after the prefix) whose keys and values are in a cache

    @property
    def start(self) -> int:
        """Where its own tokens start: the length of the shared prefix."""
        return len(self.prefix) if self.prefix else 0

    def own_ids(self) -> list[int]:
        """The ids after the prefix: prompt and answer so far."""
        return [*self.request.ids[self.start :], *self.generated]


class Engine:
    """A model and its adapters with one lock: a pass at a time, whoever asks."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.adapters = Adapters(model)
        self.device: torch.device = model.device
        self.context = int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 20))
        self.lock = threading.Lock()

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


class Decoder:
    """Answers requests in batches of at most `max_rows`; `add`, `step` while `busy`, `cancel` at will. One thread at a time.

    `chunk` is how many prompt tokens one pass reads, `cache_bytes` how much the keys and values of the batch may take, `prefixes` how many
    shared prefixes are kept.
    """

    def __init__(self, engine: Engine, *, max_rows: int = 64, chunk: int = 2048, cache_bytes: int = 2 << 30, prefixes: int = 16) -> None:
        self.engine, self.max_rows, self.chunk, self.cache_bytes = engine, max_rows, chunk, cache_bytes
        self._numbers = itertools.count()
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: list[_Sequence] = []
        self._decoding: list[_Sequence] = []  # sequence i is in slot i of the cache
        self._cache = BatchCache()
        self._prefixes: OrderedDict[tuple[str | None, tuple[int, ...]], CachedPrefix] = OrderedDict()
        self._max_prefixes = prefixes

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._waiting or self._prefilling or self._decoding)

    @property
    def load(self) -> tuple[int, int]:
        """(sequences that are prefilled or decoded, sequences waiting)."""
        return len(self._decoding) + len(self._prefilling), len(self._waiting)

    @property
    def cache_use(self) -> float:
        """The share of `cache_bytes` that is in use."""
        return self._cache.bytes / self.cache_bytes

    def add(self, request: Request) -> int:
        """Queue a request; its number comes back with each of its tokens. Raises UsageError when it cannot be answered."""
        room = self.engine.context - len(request.ids)
        if not request.ids or room < 1:
            raise ContextExceeded(len(request.ids), self.engine.context)
        if request.adapter is not None and request.adapter not in self.engine.adapters.loaded:
            raise UsageError(
                f"no adapter '{request.adapter}' is loaded", allowed=", ".join(sorted(self.engine.adapters.loaded)) or "none is loaded"
            )
        sequence = _Sequence(next(self._numbers), request)
        self._waiting.append(sequence)
        return sequence.number

    def cancel(self, number: int) -> None:
        """Forget a sequence, wherever it is; nothing happens when it has ended."""
        for sequence in [sequence for sequence in self._decoding if sequence.number == number]:
            self._retire(sequence)
        self._prefilling = [sequence for sequence in self._prefilling if sequence.number != number]
        self._waiting = deque(sequence for sequence in self._waiting if sequence.number != number)

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

    def _sample(self, sequences: list[_Sequence], logits: Tensor) -> list[Token]:
        """Choose a token for each sequence; those that have ended leave."""
        draws = [(s.request.temperature, s.request.top_p, s.request.seed, len(s.generated)) for s in sequences]
        tokens = []
        for i, (sequence, chosen) in enumerate(zip(sequences, choose(logits, draws), strict=True)):
            sequence.generated.append(chosen)
            request, count = sequence.request, len(sequence.generated)
            top = request.top_logprobs
            logprob = None if top is None else log_probabilities(logits[i], chosen, top)
            full = count >= request.max_tokens or len(request.ids) + count >= self.engine.context
            finish = "stop" if chosen in request.stop_ids else "length" if full else None
            tokens.append(Token(sequence.number, chosen, finish, logprob))
            if finish:
                self._retire(sequence)
        return tokens

    def _retire(self, sequence: _Sequence) -> None:
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

    def _fits(self, sequence: _Sequence) -> bool:
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
            sequence.computed, sequence.cache = 0, SequenceCache()
            self._waiting.appendleft(sequence)
            self._cache.shrink(len(self._decoding))

    def _prefix(self, request: Request) -> CachedPrefix | None:
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


def score(
    engine: Engine, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None, chunk: int = 2048
) -> list[tuple[float, int]]:
    """(summed negative log-likelihood in nats, scored tokens) of each row of (ids, mask), for the ids whose mask is 1.

    The first id of a row has nothing before it and is never scored. Logits are computed for scored places only.
    """
    results = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    while order:
        packed = _Packed()
        segments: list[Segment] = []
        keep: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        while order and (not segments or len(packed.tokens) + len(rows[order[0]][0]) <= chunk):
            number = order.pop(0)
            ids, mask = rows[number]
            if not any(mask[1:]):
                continue
            begin = packed.extend(ids, 0, adapter)
            segments.append(Segment(begin, len(packed.tokens), 0, SequenceCache()))
            places = [i for i in range(1, len(ids)) if mask[i]]
            keep.extend(begin + i - 1 for i in places)
            targets.extend(ids[i] for i in places)
            owners.extend([number] * len(places))
        if segments:
            logits = engine.forward(packed.tokens, packed.positions, packed.owners, PrefillPass(segments), keep)
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(targets, device=logits.device), reduction="none").double()
            for number, loss in zip(owners, losses.tolist(), strict=True):
                nats, count = results[number]
                results[number] = (nats + loss, count + 1)
    return results
