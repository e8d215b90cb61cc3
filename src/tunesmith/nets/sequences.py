"""Sequences of token ids that are answered together, step by step: what every decoder shares, whichever way it computes logits.

Knows nothing about text, chats or servers, nor about attention and caches.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from tunesmith.core.errors import ContextExceeded, UsageError
from tunesmith.nets.cached_attention import CachedPrefix, SequenceCache
from tunesmith.nets.sampling import choose, log_probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRequest:
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
    """One new token of the sequence that `SequenceDecoder.add` numbered so.

    `finish` is set on the last: `stop` (an id of `stop_ids`, which is then `id`) or `length`.
    """

    sequence: int
    id: int
    finish: str | None = None
    logprob: dict[str, Any] | None = None


class Held(Protocol):
    """What decides which tokens a sequence may take: a grammar, for one."""

    def masked(self, logits: Tensor, stop_ids: frozenset[int]) -> Tensor:
        """The logits [V] of the next token, −∞ where it may not be; the given ones stay as they are."""
        ...

    def take(self, token: int) -> None:
        """A token was taken, and more will follow."""
        ...


@dataclass(slots=True, eq=False)
class TokenSequence:
    """A request on its way: what was generated so far, and what a decoder remembers of it."""

    number: int
    request: DecodeRequest
    generated: list[int] = field(default_factory=list)
    held: Held | None = None
    prefix: CachedPrefix | None = None
    cache: SequenceCache = field(default_factory=SequenceCache)
    computed: int = 0  # own tokens (those after the prefix) whose keys and values are in a cache
    past: Any = None  # the cache of transformers

    @property
    def start(self) -> int:
        """Where its own tokens start: the length of the shared prefix."""
        return len(self.prefix) if self.prefix else 0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.request.ids) + len(self.generated)

    def ids(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.request.ids, *self.generated]

    def own_ids(self) -> list[int]:
        """The ids after the prefix: prompt and answer so far."""
        return [*self.request.ids[self.start :], *self.generated]

    def forget(self) -> None:
        """Let go of what a decoder remembered: the next one reads it from its first token."""
        self.prefix, self.cache, self.computed, self.past = None, SequenceCache(), 0, None


class Computing(Protocol):
    """What a decoder asks for logits: a model with its context in tokens and its adapters by name."""

    @property
    def context(self) -> int: ...

    @property
    def names(self) -> Collection[str]:
        """The adapters that are loaded."""
        ...


def refuse(request: DecodeRequest, context: int, names: Collection[str]) -> None:
    """Raises UsageError for a request that fills the context, or names an adapter that is not among `names`."""
    if not request.ids or len(request.ids) >= context:
        raise ContextExceeded(len(request.ids), context)
    if request.adapter is not None and request.adapter not in names:
        raise UsageError(f"no adapter '{request.adapter}' is loaded", allowed=", ".join(sorted(names)) or "none is loaded")


class SequenceDecoder(ABC):
    """Answers requests in batches of at most `max_rows`; `add`, `step` while `busy`, `cancel` at will. One thread at a time.

    `numbers` counts the sequences: decoders that hand sequences to each other share it.
    """

    def __init__(self, engine: Computing, *, max_rows: int, numbers: Iterator[int] | None = None) -> None:
        self.max_rows, self._known = max_rows, engine
        self._numbers = numbers if numbers is not None else itertools.count()
        self._waiting: deque[TokenSequence] = deque()
        self._decoding: list[TokenSequence] = []

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._waiting or self._decoding)

    @property
    def load(self) -> tuple[int, int]:
        """(sequences that are prefilled or decoded, sequences waiting)."""
        return len(self._decoding), len(self._waiting)

    @property
    @abstractmethod
    def cache_use(self) -> float:
        """The share of the memory for its cache that is in use."""

    @abstractmethod
    def step(self) -> list[Token]:
        """One token more of the sequences that are being answered."""

    @abstractmethod
    def _retire(self, sequence: TokenSequence) -> None:
        """Let go of a sequence that is being decoded."""

    def add(self, request: DecodeRequest) -> int:
        """Queue a request; its number comes back with each of its tokens. Raises UsageError when it cannot be answered."""
        refuse(request, self._known.context, self._known.names)
        sequence = TokenSequence(next(self._numbers), request)
        self.take(sequence)
        return sequence.number

    def take(self, sequence: TokenSequence) -> None:
        """Queue a sequence that another decoder began; it is read from its first token."""
        self._waiting.append(sequence)

    def hold(self, number: int, held: Held) -> None:
        """Let `held` decide what an open sequence may take."""
        for sequence in self._open():
            if sequence.number == number:
                sequence.held = held

    def leave(self, wanted: Callable[[TokenSequence], bool]) -> list[TokenSequence]:
        """Give away the open sequences that are `wanted`."""
        left = [sequence for sequence in self._open() if wanted(sequence)]
        for sequence in left:
            self.cancel(sequence.number)
            sequence.forget()
        return left

    def cancel(self, number: int) -> None:
        """Forget a sequence, wherever it is; nothing happens when it has ended."""
        for sequence in [sequence for sequence in self._decoding if sequence.number == number]:
            self._retire(sequence)
        self._waiting = deque(sequence for sequence in self._waiting if sequence.number != number)

    def _open(self) -> list[TokenSequence]:
        return [*self._waiting, *self._decoding]

    def _sample(self, sequences: list[TokenSequence], logits: Tensor) -> list[Token]:
        """Choose a token for each sequence from its logits [V]; those that have ended leave."""
        logits = _held(sequences, logits)
        draws = [(s.request.temperature, s.request.top_p, s.request.seed, len(s.generated)) for s in sequences]
        tokens = []
        for i, (sequence, chosen) in enumerate(zip(sequences, choose(logits, draws), strict=True)):
            sequence.generated.append(chosen)
            request, top = sequence.request, sequence.request.top_logprobs
            logprob = None if top is None else log_probabilities(logits[i], chosen, top)
            full = len(sequence.generated) >= request.max_tokens or sequence.length >= self._known.context
            finish = "stop" if chosen in request.stop_ids else "length" if full else None
            tokens.append(Token(sequence.number, chosen, finish, logprob))
            if finish:
                self._retire(sequence)
            elif sequence.held is not None:
                sequence.held.take(chosen)
        return tokens


def _held(sequences: Sequence[TokenSequence], logits: Tensor) -> Tensor:
    """The logits as those that decide about sequences allow them."""
    held = [(i, sequence.held, sequence.request.stop_ids) for i, sequence in enumerate(sequences) if sequence.held is not None]
    if not held:
        return logits
    logits = logits.clone()
    for i, decides, stop_ids in held:
        logits[i] = decides.masked(logits[i], stop_ids)
    return logits


class ScoringEngine(Protocol):
    """A model that says how likely token ids are."""

    def logps(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None) -> list[list[float]]:
        """Natural log-probabilities of the ids whose mask is 1, never of the first id, for each row of (ids, mask)."""
        ...


def score(engine: ScoringEngine, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None) -> list[tuple[float, int]]:
    """(summed negative log-likelihood in nats, scored tokens) of each row of (ids, mask), for the ids whose mask is 1."""
    return [(-math.fsum(values), len(values)) for values in engine.logps(rows, adapter)]
