"""Which solved training rows to show before every question: drawn once, or chosen one after the other for what they bring. Knows rows by
their numbers alone, and no model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import ConfigError

Floats = NDArray[np.floating[Any]]


def random_order(rows: int, seed: int = 0) -> list[int]:
    """All row numbers in an order that only the seed decides."""
    return random.Random(seed).sample(range(rows), rows)


def spread(vectors: Floats, count: int, seed: int = 0) -> list[int]:
    """`count` rows that cover the unit vectors [rows, d]: each is the row farthest from those chosen before (Gonzalez 1985), the first the
    one nearest to the mean."""
    if count < 1 or not len(vectors):
        return []
    chosen = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    likeness = vectors @ vectors[chosen[0]]
    for _ in range(min(count, len(vectors)) - 1):
        rest = likeness.copy()
        rest[chosen] = np.inf
        chosen.append(int(np.argmin(rest)))
        likeness = np.maximum(likeness, vectors @ vectors[chosen[-1]])
    return chosen


def greedy(pool: Sequence[int], score: Callable[[tuple[int, ...]], float], most: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Forward selection: of the rows of `pool` the one whose addition scores best, as long as it scores better than without it, at most
    `most`. Returns the chosen rows in the order in which they are shown, and every set that was scored.

    Raises ConfigError for an empty pool.
    """
    if not pool or most < 1:
        raise ConfigError(f"{most} shots from a pool of {len(pool)}", where="decide.shots", allowed="at least one of each")
    chosen: tuple[int, ...] = ()
    best, tried = -np.inf, list[tuple[int, ...]]()
    while len(chosen) < most:
        sets = [(*chosen, row) for row in pool if row not in chosen]
        if not sets:
            break
        scores = [score(rows) for rows in sets]
        tried += sets
        first = int(np.argmax(scores))
        if scores[first] <= best:
            break
        best, chosen = scores[first], sets[first]
    return chosen, tried
