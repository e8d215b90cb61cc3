"""Training rows that hold items of an evaluation set, whole, in part or edited; knows nothing about what is done with them.

A shared run of eight words makes a candidate; it counts when the row contains at least `containment` of the item's pairs of adjacent
words, each weighted by how rare it is in both sets (so that the frame which many items share is not taken for the item), or when the two
are near-duplicates as wholes. Short items (fewer than eight words) count only as near-duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

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


class Held(NamedTuple):
    """Training row `row` holds evaluation item `item`: the weighted share of the item's word pairs in it, and the wholes' Jaccard (0 below
    the threshold)."""

    row: int
    item: int
    containment: float
    jaccard: float


def contaminated(train: Sequence[Row], evaluation: Sequence[Row], settings: Contamination) -> list[Held]:
    """For each training row that holds an evaluation item the item that it holds most of, by row."""
    texts, items = [comparison_text(row) for row in train], [subject_of(row) for row in evaluation]
    found: dict[int, Held] = {}
    index, value = best_matches(texts, [comparison_text(row) for row in evaluation], settings.threshold)
    for i in np.flatnonzero(index >= 0).tolist():
        found[i] = Held(i, int(index[i]), 1.0, float(value[i]))
    pairs, item_pairs = shingles(texts), shingles(items)
    weights = _rarity(pairs, item_pairs)
    for i, j in _candidates(shingles(texts, size=RUN), shingles(items, size=RUN), item_pairs):
        if i in found and found[i].containment == 1.0:
            continue
        its, weight = _set(item_pairs, j), weights[item_pairs.starts[j] : item_pairs.starts[j + 1]]
        share = float(weight[np.isin(its, _set(pairs, i), assume_unique=True)].sum() / weight.sum())
        if share >= settings.containment and (i not in found or share > found[i].containment):
            found[i] = Held(i, j, share, 0.0)
    return [found[i] for i in sorted(found)]


def _set(sets: Shingles, i: int) -> Any:
    return sets.hashes[sets.starts[i] : sets.starts[i + 1]]


def _rarity(rows: Shingles, items: Shingles) -> Any:
    """For each pair of each item ln((1 + N) / (1 + n)) + 0.1, of N texts in both sets, n of which have the pair."""
    known, times = np.unique(np.concatenate([rows.hashes, items.hashes]), return_counts=True)
    n = times[np.searchsorted(known, items.hashes)]
    return np.log((1 + len(rows) + len(items)) / (1 + n)) + 0.1


def _candidates(rows: Shingles, items: Shingles, item_pairs: Shingles) -> list[tuple[int, int]]:
    """(row, item) that share a run of eight words; of items shorter than that none."""
    long_enough = np.diff(item_pairs.starts) >= RUN - 1
    owner = np.repeat(np.arange(len(items)), np.diff(items.starts))
    kept = long_enough[owner]
    hashes, owner = items.hashes[kept], owner[kept]
    order = np.argsort(hashes, kind="stable")
    hashes, owner = hashes[order], owner[order]
    low, high = np.searchsorted(hashes, rows.hashes, "left"), np.searchsorted(hashes, rows.hashes, "right")
    hit = np.flatnonzero(high > low)
    times = (high - low)[hit]
    row = np.repeat(np.searchsorted(rows.starts, hit, "right") - 1, times)
    within = np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
    item = owner[np.repeat(low[hit], times) + within]
    return [(int(key // max(len(items), 1)), int(key % max(len(items), 1))) for key in np.unique(row * max(len(items), 1) + item)]
