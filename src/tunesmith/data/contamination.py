"""Training rows that hold items of an evaluation set, whole, in part or edited; knows nothing about what is done with them.

A shared run of eight words makes a candidate; it counts when the row contains at least `containment` of the item's pairs of adjacent
words, each weighted by how rare it is in both sets (so that the frame which many items share is not taken for the item), or when the two
are near-duplicates as wholes. Short items (fewer than eight words) count only as near-duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tunesmith.core.map_rows import PIECE, pieces_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Record
from tunesmith.data.dedup import best_matches
from tunesmith.data.shingle import Shingles, shingles
from tunesmith.data.text import comparison_text, subject_of

RUN = 8


class Contamination(Record, frozen=True):
    """What is done about training rows that hold evaluation items: 'drop', or 'keep' (then they are only counted)."""

    action: Literal["drop", "keep"] = "drop"
    containment: float = 0.5
    threshold: float = 0.8


class HeldOutRow(NamedTuple):
    """Training row `row` holds evaluation item `item`: the weighted share of the item's word pairs in it, and the wholes' Jaccard (0 below
    the threshold)."""

    row: int
    item: int
    containment: float
    jaccard: float


def contaminated(train: Sequence[Row], evaluation: Sequence[Row], settings: Contamination, size: int = PIECE) -> list[HeldOutRow]:
    """For each training row that holds an evaluation item the item that it holds most of, by row. They are seen `size` at a time."""
    items = [subject_of(row) for row in evaluation]
    wholes, pairs, runs = shingles([comparison_text(row) for row in evaluation]), shingles(items), shingles(items, size=RUN)
    known = np.unique(pairs.hashes)
    times = np.zeros(len(known), dtype=np.int64)
    held: dict[int, HeldOutRow] = {}
    shared: list[tuple[int, int, Any]] = []  # row, item, and which of the item's pairs the row has
    for start, piece in zip(range(0, len(train), size), pieces_of(train, size), strict=True):
        texts = [comparison_text(row) for row in piece]
        mine = shingles(texts)
        times += np.bincount(_places(known, mine.hashes), minlength=len(known))
        index, value = best_matches(mine, wholes, settings.threshold)
        for i in np.flatnonzero(index >= 0).tolist():
            held[start + i] = HeldOutRow(start + i, int(index[i]), 1.0, float(value[i]))
        for i, j in _candidates(shingles(texts, size=RUN), runs, pairs):
            shared.append((start + i, j, np.isin(_set(pairs, j), _set(mine, i), assume_unique=True)))
    weights = _rarity(known, times, pairs, len(train) + len(items))
    for i, j, which in shared:
        if i in held and held[i].containment == 1.0:
            continue
        weight = weights[pairs.starts[j] : pairs.starts[j + 1]]
        share = float(weight[which].sum() / weight.sum())
        if share >= settings.containment and (i not in held or share > held[i].containment):
            held[i] = HeldOutRow(i, j, share, 0.0)
    return [held[i] for i in sorted(held)]


def _set(sets: Shingles, i: int) -> Any:
    return sets.hashes[sets.starts[i] : sets.starts[i + 1]]


def _places(known: Any, hashes: Any) -> Any:
    """Where in the ascending `known` those of the hashes are that are there."""
    at = np.minimum(np.searchsorted(known, hashes), max(len(known) - 1, 0))
    return at[known[at] == hashes] if len(known) else at[:0]


def _rarity(known: Any, times: Any, items: Shingles, texts: int) -> Any:
    """For each pair of each item ln((1 + N) / (1 + n)) + 0.1, of N texts in both sets, n of which have the pair."""
    n = times + np.bincount(np.searchsorted(known, items.hashes), minlength=len(known))
    return (np.log((1 + texts) / (1 + n)) + 0.1)[np.searchsorted(known, items.hashes)]


def _candidates(rows: Shingles, items: Shingles, item_pairs: Shingles) -> list[tuple[int, int]]:
    """(row, item) that share a run of eight words; of items shorter than that none."""
    long_enough = np.diff(item_pairs.starts) >= RUN - 1
    owner = np.repeat(np.arange(len(items)), np.diff(items.starts))
    wanted = long_enough[owner]
    hashes, owner = items.hashes[wanted], owner[wanted]
    order = np.argsort(hashes, kind="stable")
    hashes, owner = hashes[order], owner[order]
    low, high = np.searchsorted(hashes, rows.hashes, "left"), np.searchsorted(hashes, rows.hashes, "right")
    hit = np.flatnonzero(high > low)
    times = (high - low)[hit]
    row = np.repeat(np.searchsorted(rows.starts, hit, "right") - 1, times)
    within = np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
    item = owner[np.repeat(low[hit], times) + within]
    return [(int(key // max(len(items), 1)), int(key % max(len(items), 1))) for key in np.unique(row * max(len(items), 1) + item)]
