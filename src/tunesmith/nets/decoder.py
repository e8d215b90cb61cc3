"""Continuous batching over a `transformers` causal model: requests of token ids in, tokens out, one step at a time.

Knows nothing about text, chats or servers. Rows enter and leave between steps; a prefix that rows share is computed once for each adapter
and kept; adapters are mixed in one batch. When memory is short the youngest row steps back and is read again later, with the same result.
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

from tunesmith.core.errors import UsageError
from tunesmith.nets.cached_attention import Advance, Fill, Pool, Prefix, Segment, Step, Strip
from tunesmith.nets.multi_lora import Adapters
from tunesmith.nets.sampling import choose, log_probabilities

_SHORTEST_PREFIX = 16  # tokens; below this, sharing costs more than it saves
_BUSY_CHUNK = 512  # prompt tokens read in one step while other rows are being answered, so that their streams do not stall


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Token ids to continue. `share` is how many of the first ids other requests are likely to begin with too.

    `seed` decides every draw of a sampled row; `top_logprobs` None returns none. Ids in `stop_ids` end the row and are returned last.
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
    """One new token of a row. `finish` is set on the last: `stop` (an id of `stop_ids`, which is then `id`) or `length`."""

    row: int
    id: int
    finish: str | None = None
    logprob: dict[str, Any] | None = None


@dataclass(slots=True, eq=False)
class _Row:
    number: int
    request: Request
    said: list[int] = field(default_factory=list)
    prefix: Prefix | None = None
    strip: Strip = field(default_factory=Strip)
    read: int = 0  # own tokens (those after the prefix) whose keys are in the strip or in the pool

    def own(self) -> list[int]:
        """The tokens after the prefix: prompt and answer so far."""
        return [*self.request.ids[len(self.prefix) if self.prefix else 0 :], *self.said]


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
        self, tokens: Sequence[int], positions: Sequence[int], owners: Sequence[str | None], step: Step, keep: Sequence[int]
    ) -> Tensor:
        """Logits float32 [len(keep), vocabulary] at the packed places `keep`. `owners` has each token's adapter."""
        with self.lock:
            self.adapters.use(owners, keep, self.device)
            out = self.model(
                input_ids=torch.tensor([tokens], device=self.device),
                position_ids=torch.tensor([positions], device=self.device),
                use_cache=False,
                logits_to_keep=torch.tensor(keep, device=self.device),
                step=step,
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
        self._waiting: deque[_Row] = deque()
        self._filling: list[_Row] = []
        self._active: list[_Row] = []  # row i is in slot i of the pool
        self._pool = Pool()
        self._prefixes: OrderedDict[tuple[str | None, tuple[int, ...]], Prefix] = OrderedDict()
        self._max_prefixes = prefixes

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self._waiting or self._filling or self._active)

    @property
    def load(self) -> tuple[int, int]:
        """(rows being answered, rows waiting)."""
        return len(self._active) + len(self._filling), len(self._waiting)

    @property
    def cache_use(self) -> float:
        """The share of `cache_bytes` that is in use."""
        return self._pool.bytes / self.cache_bytes

    def add(self, request: Request) -> int:
        """Queue a request; its number comes back with each of its tokens. Raises UsageError when it cannot be answered."""
        room = self.engine.context - len(request.ids)
        if not request.ids or room < 1:
            raise UsageError(
                f"the prompt has {len(request.ids)} tokens",
                allowed=f"1 to {self.engine.context - 1}, the model's context less one",
                remedy="shorten it",
            )
        if request.adapter is not None and request.adapter not in self.engine.adapters.loaded:
            raise UsageError(
                f"no adapter '{request.adapter}' is loaded", allowed=", ".join(sorted(self.engine.adapters.loaded)) or "none is loaded"
            )
        row = _Row(next(self._numbers), request)
        self._waiting.append(row)
        return row.number

    def cancel(self, number: int) -> None:
        """Forget a row, wherever it is; nothing happens when it has ended."""
        for row in [row for row in self._active if row.number == number]:
            self._leave(row)
        self._filling = [row for row in self._filling if row.number != number]
        self._waiting = deque(row for row in self._waiting if row.number != number)

    def step(self) -> list[Token]:
        """Read some prompt tokens, then one token more for every row that is being answered."""
        tokens = self._fill()
        waited = {token.row for token in tokens}
        if any(row.number not in waited for row in self._active):
            tokens += self._advance()
        return tokens

    def _fill(self) -> list[Token]:
        while self._waiting and len(self._active) + len(self._filling) < self.max_rows and self._fits(self._waiting[0]):
            if sum(len(row.own()) - row.read for row in self._filling) >= self.chunk:
                break
            row = self._waiting.popleft()
            row.prefix = self._prefix(row.request)
            self._filling.append(row)
        if not self._filling:
            return []
        budget = min(self.chunk, _BUSY_CHUNK) if self._active else self.chunk
        packed, segments, rows = _Packed(), [], []
        for row in self._filling:
            new = row.own()[row.read : row.read + budget - len(packed.tokens)]
            if not new:
                break
            begin = packed.extend(new, (len(row.prefix) if row.prefix else 0) + row.read, row.request.adapter)
            segments.append(Segment(begin, len(packed.tokens), row.read, row.strip, row.prefix))
            rows.append(row)
        logits = self.engine.forward(packed.tokens, packed.positions, packed.owners, Fill(segments), [s.end - 1 for s in segments])
        for row, segment in zip(rows, segments, strict=True):
            row.read += segment.end - segment.begin
        whole = [i for i, row in enumerate(rows) if row.read == len(row.own())]
        ready = [rows[i] for i in whole]
        self._filling = [row for row in self._filling if row not in ready]
        for row in ready:
            self._pool.reserve(min(self.max_rows, _rounded(len(self._active) + 1)), row.read + 1)
            self._pool.put(len(self._active), row.strip)
            row.strip = Strip()
            self._active.append(row)
        return self._said(ready, logits[whole]) if ready else []

    def _advance(self) -> list[Token]:
        self._make_room()
        rows = list(self._active)
        lengths = [row.read for row in rows]
        self._pool.reserve(len(rows), max(lengths) + 1)
        starts = [len(row.prefix) if row.prefix else 0 for row in rows]
        step = Advance(self._pool, lengths, [row.prefix for row in rows], self.engine.device)
        positions = [start + length for start, length in zip(starts, lengths, strict=True)]
        owners = [row.request.adapter for row in rows]
        logits = self.engine.forward([row.said[-1] for row in rows], positions, owners, step, range(len(rows)))
        for row in rows:
            row.read += 1
        return self._said(rows, logits)

    def _said(self, rows: list[_Row], logits: Tensor) -> list[Token]:
        """Choose a token for each row; rows that have ended leave."""
        draws = [(row.request.temperature, row.request.top_p, row.request.seed, len(row.said)) for row in rows]
        tokens = []
        for i, (row, chosen) in enumerate(zip(rows, choose(logits, draws), strict=True)):
            row.said.append(chosen)
            top = row.request.top_logprobs
            logprob = None if top is None else log_probabilities(logits[i], chosen, top)
            full = len(row.said) >= row.request.max_tokens or len(row.request.ids) + len(row.said) >= self.engine.context
            finish = "stop" if chosen in row.request.stop_ids else "length" if full else None
            tokens.append(Token(row.number, chosen, finish, logprob))
            if finish:
                self._leave(row)
        return tokens

    def _leave(self, row: _Row) -> None:
        slot, last = self._active.index(row), self._active[-1]
        if last is not row:
            self._pool.move(len(self._active) - 1, slot, last.read)
            self._active[slot] = last
        self._active.pop()
        if not self._active:
            self._pool.clear()

    def _bytes(self, rows: int, length: int) -> int:
        pool = self._pool
        return 0 if not pool.layers else pool.bytes // (pool.slots * pool.length) * rows * length

    def _fits(self, row: _Row) -> bool:
        """Whether the batch with this row stays within the memory, as far as one can know today. An empty batch takes any row."""
        rows = self._active + self._filling
        longest = max((len(other.own()) for other in [*rows, row]), default=0)
        return not rows or self._bytes(len(rows) + 1, longest + 1) <= self.cache_bytes

    def _make_room(self) -> None:
        """Send the youngest rows back to wait when the next token would not fit; they keep what they have said."""
        while len(self._active) > 1 and self._bytes(len(self._active), max(row.read for row in self._active) + 1) > self.cache_bytes:
            row = max(self._active, key=lambda row: row.number)
            self._leave(row)
            row.read, row.strip = 0, Strip()
            self._waiting.appendleft(row)
            self._pool.shrink(len(self._active))

    def _prefix(self, request: Request) -> Prefix | None:
        """The kept prefix that the request begins with, computed now when it is new. At least one token stays the row's own."""
        size = min(request.share, len(request.ids) - 1)
        if size < _SHORTEST_PREFIX:
            return None
        key = (request.adapter, tuple(request.ids[:size]))
        if key not in self._prefixes:
            strip = Strip()
            for start in range(0, size, self.chunk):
                packed = _Packed()
                packed.extend(key[1][start : start + self.chunk], start, request.adapter)
                segment = Segment(0, len(packed.tokens), start, strip)
                self.engine.forward(packed.tokens, packed.positions, packed.owners, Fill([segment]), [0])
            self._prefixes[key] = Prefix(request.adapter, key[1], strip)
            while len(self._prefixes) > self._max_prefixes:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def forget(self, adapter: str) -> None:
        """Drop what was computed with an adapter that is being unloaded."""
        for key in [key for key in self._prefixes if key[0] == adapter]:
            del self._prefixes[key]


class _Packed:
    """Tokens of several rows end to end."""

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


def _rounded(rows: int) -> int:
    """The next power of two: slots are added in doublings."""
    return 1 << (rows - 1).bit_length()


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
            segments.append(Segment(begin, len(packed.tokens), 0, Strip()))
            places = [i for i in range(1, len(ids)) if mask[i]]
            keep.extend(begin + i - 1 for i in places)
            targets.extend(ids[i] for i in places)
            owners.extend([number] * len(places))
        if segments:
            logits = engine.forward(packed.tokens, packed.positions, packed.owners, Fill(segments), keep)
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(targets, device=logits.device), reduction="none").double()
            for number, loss in zip(owners, losses.tolist(), strict=True):
                nats, count = results[number]
                results[number] = (nats + loss, count + 1)
    return results
