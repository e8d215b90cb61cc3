"""Rows → packs: one sequence of token spans in which a prefix that rows share is laid down once; knows nothing about models or losses.

Every row of a pack sees exactly its own tokens: positions restart with each row, attention follows the tree of spans. Tokens after a
row's last trained one influence nothing that is trained and are left out. Shared prefixes: arXiv 2410.20305.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tunesmith.core.chat import Rendered
from tunesmith.nets.spans import Span

# A prefix shorter than this is repeated: a span of its own costs more than its tokens.
MIN_SHARED = 16
# Longer spans are laid down as a chain, so that attention never holds a block wider than this (and skips the masked half).
MAX_SPAN = 128

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """One forward pass. `ids`, `positions` int64 [T]; `spans` cover the T tokens in depth-first order.

    `at`, `targets`, `row` int64 [M]: the hidden state at `at` predicts `targets` for the pack's row `row`. `longest` is the length of
    the longest row, `tokens` what the `rows` hold together without sharing.
    """

    ids: Ints
    positions: Ints
    spans: tuple[Span, ...]
    at: Ints
    targets: Ints
    row: Ints
    longest: int
    tokens: int
    rows: tuple[Rendered, ...]

    @property
    def shares(self) -> bool:
        """Whether rows have tokens in common that are laid down once."""
        return len(self.ids) < sum(map(_needed, self.rows))


@dataclass(slots=True)
class _Builder:
    """Grows the tree while it walks the sorted rows. `where[i]` gives, for each computed token of row i, its place in the pack."""

    rows: Sequence[Ints]
    shared: Sequence[int]  # tokens that row i has in common with row i - 1
    where: list[Ints]
    ids: list[Ints] = field(default_factory=list)
    positions: list[Ints] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    size: int = 0

    def lay(self, low: int, high: int, depth: int) -> None:
        """Lay down rows[low:high], whose first `depth` tokens are in the pack already."""
        for first, last in self._groups(low, high, depth):
            if last - first == 1:
                end = len(self.rows[first])
            else:
                end = min(self.shared[first + 1 : last])
            opened = self._open(first, last, depth, end)
            if last - first > 1:
                self.lay(first, last, end)
            for index in opened:
                self.spans[index] = self.spans[index]._replace(reach=self.size)

    def _groups(self, low: int, high: int, depth: int) -> Iterator[tuple[int, int]]:
        first = low
        for i in range(low + 1, high + 1):
            if i == high or self.shared[i] < depth + MIN_SHARED:
                yield first, i
                first = i

    def _open(self, first: int, last: int, depth: int, end: int) -> list[int]:
        opened = []
        for start in range(depth, end, MAX_SPAN):
            stop = min(start + MAX_SPAN, end)
            opened.append(len(self.spans))
            self.spans.append(Span(self.size, self.size + stop - start, 0))
            self.ids.append(self.rows[first][start:stop])
            self.positions.append(np.arange(start, stop))
            for i in range(first, last):
                self.where[i][start:stop] = np.arange(self.size, self.size + stop - start)
            self.size += stop - start
        return opened


def _needed(row: Rendered) -> int:
    """How many leading tokens of the row bear on its loss: all that come before the last trained one."""
    trained = np.flatnonzero(row.mask)
    return int(trained[-1]) if len(trained) else 0


def _common(a: Ints, b: Ints) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def _order(rows: Sequence[Rendered]) -> list[int]:
    """Row numbers in lexicographic order of their tokens, so that rows which begin alike stand together."""
    return sorted(range(len(rows)), key=lambda i: (rows[i].ids.astype(">u4").tobytes(), i))


def pack(rows: Sequence[Rendered], *, share: bool = True) -> Pack:
    """Lay the rows into one pack; with `share`, common prefixes of at least MIN_SHARED tokens are laid down once."""
    order = _order(rows)
    tokens = [rows[i].ids[: _needed(rows[i])].astype(np.int64) for i in order]
    shared = [0] + [_common(a, b) if share else 0 for a, b in pairwise(tokens)]
    builder = _Builder(tokens, shared, [np.empty(len(t), np.int64) for t in tokens])
    builder.lay(0, len(rows), 0)
    at, targets, owner = [], [], []
    for i, where in zip(order, builder.where, strict=True):
        trained = np.flatnonzero(rows[i].mask)
        trained = trained[trained > 0]  # nothing predicts a first token
        at.append(where[trained - 1])
        targets.append(rows[i].ids[trained].astype(np.int64))
        owner.append(np.full(len(trained), i, np.int64))
    return Pack(
        ids=np.concatenate(builder.ids),
        positions=np.concatenate(builder.positions),
        spans=tuple(builder.spans),
        at=np.concatenate(at),
        targets=np.concatenate(targets),
        row=np.concatenate(owner),
        longest=max(len(t) for t in tokens),
        tokens=sum(len(row.ids) for row in rows),
        rows=tuple(rows),
    )


def micro_batches(items: Sequence[Sequence[Rendered]], budget: int, *, lanes: int = 1, share: bool = True) -> list[list[int]]:
    """Item numbers in groups to be packed: alike items together, about equal work in each, at most about `budget` computed tokens a group.

    The rows of an item stay together. The number of groups is a multiple of `lanes` (packs computed side by side) where there are items
    enough. An item longer than the budget still gets its group.
    """
    order = _order([rows[0] for rows in items])
    work, previous = [], None
    for i in order:
        cost = 0
        for row in items[i]:
            tokens = row.ids[: _needed(row)].astype(np.int64)
            common = _common(previous, tokens) if share and previous is not None else 0
            cost += len(tokens) - (common if common >= MIN_SHARED else 0)
            previous = tokens
        work.append(cost)
    count = min(len(items), lanes * math.ceil(sum(work) / (budget * lanes)))
    middle = np.cumsum(work) - np.asarray(work) / 2
    part = np.minimum((middle * count / max(1, sum(work))).astype(int), count - 1)
    groups = [[order[k] for k in np.flatnonzero(part == g)] for g in range(count)]
    return [group for group in groups if group]


def epoch_order(count: int, *, seed: int, epoch: int) -> Ints:
    """The order of the rows in one epoch: a function of seed and epoch alone, so that a resumed run repeats it."""
    return np.random.default_rng([seed, epoch]).permutation(count)
