"""Rules that need the whole set: duplicates (exact, near, in other words), contradictions, evaluation items; knows nothing about single
rows' faults.

A rule sees the fingerprints of the rows that are left (and may read the rows themselves, a piece at a time) and says which are lost. Adding
one: a function here, its setting in `clean.Clean` and a line in `clean.set_rules`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.rows import Row
from tunesmith.core.types import Fate, Record
from tunesmith.data.contamination import HeldOutRow
from tunesmith.data.dedup import Ints, Pairs, components, near_duplicates
from tunesmith.data.fingerprints import Fingerprints, distinct_places, fingerprints
from tunesmith.data.semantic import Encoder, SemanticDuplicates, earlier
from tunesmith.data.text import comparison_text


class Lost(NamedTuple):
    """The row at `at` is lost: its fate, the reason, and of a duplicate the row that it repeats."""

    at: int
    fate: Fate
    reason: str
    other: int | None = None


SetRule = Callable[[Fingerprints, Sequence[Row]], Iterator[Lost]]


class NearDuplicates(Record, frozen=True):
    """Rows whose comparison texts (user turns and answer) have a Jaccard similarity ≥ `threshold` over pairs of adjacent words.

    `action`: 'cluster' keeps them all and keeps each cluster on one side of the split; 'drop' keeps the first of each cluster;
    'keep' does nothing. `same_prompt`: rows that ask exactly the same are in one cluster too, whatever they answer.
    """

    threshold: float = 0.8
    action: Literal["cluster", "drop", "keep"] = "cluster"
    same_prompt: bool = True


def exact_duplicates(prints: Fingerprints, rows: Sequence[Row]) -> Iterator[Lost]:
    """Every repetition of a row that came earlier, to the last character: what differs in case, white space or form is not the same (such
    rows are near-duplicates, which stay on one side of a split)."""
    first = distinct_places(prints.ids)
    for i in np.flatnonzero(first != np.arange(len(first))).tolist():
        yield Lost(i, "duplicate_of", "the same turns, answer and tools", other=int(first[i]))


def contradictions(rows: Sequence[Row]) -> list[list[int]]:
    """Rows that ask the same and answer differently, or call the same answer wanted and unwanted (all after normalisation): the places of
    each group."""
    return _contradicting(fingerprints(rows, sets=False))


def _contradicting(prints: Fingerprints) -> list[list[int]]:
    first = distinct_places(prints.about)
    several = np.flatnonzero((np.bincount(first, minlength=len(first))[first] > 1) & prints.about.any(axis=1))
    groups: dict[int, list[int]] = defaultdict(list)
    for i, leader in zip(several.tolist(), first[several].tolist(), strict=True):
        groups[leader].append(i)
    return [places for _, places in sorted(groups.items()) if len(np.unique(prints.claim[places])) > 1]


def contradictory(action: Literal["drop", "majority"]) -> SetRule:
    """Of rows that contradict each other all are dropped, or those whose answer is not given by more than half of them."""

    def rule(prints: Fingerprints, rows: Sequence[Row]) -> Iterator[Lost]:
        for places in _contradicting(prints):
            answers = Counter(prints.claim[places].tolist())
            best, times = answers.most_common(1)[0]
            for i in places:
                if action == "drop" or times * 2 <= len(places) or prints.claim[i] != best:
                    yield Lost(i, "dropped", f"{len(places)} rows ask the same and give {len(answers)} answers")

    return rule


def semantic_duplicates(settings: SemanticDuplicates, encoder: Encoder | None) -> SetRule:
    """Rows that say the same as an earlier one in other words; `encoder` gives vectors (n × d), which are all in memory. Raises ConfigError
    without one, or for a threshold outside (0, 1]."""
    if not 0 < settings.threshold <= 1:
        raise ConfigError(f"a cosine of {settings.threshold}", where="clean.semantic_duplicates", allowed="above 0 and up to 1")
    if encoder is None:
        raise ConfigError(
            "no encoder was brought for semantic duplicates", where="clean.semantic_duplicates", remedy="tunesmith data clean brings one"
        )

    def rule(prints: Fingerprints, rows: Sequence[Row]) -> Iterator[Lost]:
        index, value = earlier(encoder([comparison_text(row) for row in rows]), settings.threshold)
        for i in np.flatnonzero(index >= 0).tolist():
            yield Lost(i, "duplicate_of", f"cosine {value[i]:.3f}, threshold {settings.threshold}", other=int(index[i]))

    return rule


def contamination(held: Sequence[HeldOutRow], evaluation: Sequence[Row]) -> SetRule:
    """The rows that hold evaluation items."""

    def rule(prints: Fingerprints, rows: Sequence[Row]) -> Iterator[Lost]:
        for match in held:
            how = f"Jaccard {match.jaccard:.3f}" if match.jaccard else f"{match.containment:.0%} of its word pairs"
            yield Lost(match.row, "dropped", f"it holds the evaluation item {evaluation[match.item].origin} ({how})")

    return rule


def near_clusters(rows: Sequence[Row], settings: NearDuplicates, prints: Fingerprints | None = None) -> tuple[Pairs, Ints]:
    """Similar pairs, and the cluster of each row (the place of its first row): linked by similarity or by the same prompt. `prints`: those
    of the rows (None: made here)."""
    if settings.action == "keep":
        none = np.zeros(0, dtype=np.int32)
        return Pairs(none, none, np.zeros(0)), np.arange(len(rows), dtype=np.int64)
    prints = fingerprints(rows) if prints is None or prints.sets is None else prints
    assert prints.sets is not None
    pairs = near_duplicates(prints.sets, settings.threshold)
    if not settings.same_prompt or settings.action == "drop":
        return pairs, components(pairs, len(prints))
    first = distinct_places(prints.prompt)
    again = np.flatnonzero((first != np.arange(len(first))) & prints.prompt.any(axis=1))
    left, right = (np.concatenate([own, more.astype(np.int32)]) for own, more in ((pairs.left, first[again]), (pairs.right, again)))
    linked = Pairs(left, right, np.zeros(0))
    return pairs, components(linked, len(prints))


def repeating(clusters: Ints, pairs: Pairs, settings: NearDuplicates) -> SetRule:
    """All but the first row of each cluster; the reason names the nearest other and its similarity."""
    nearest = np.zeros(len(clusters))
    for side in (pairs.left, pairs.right):
        np.maximum.at(nearest, side, pairs.jaccard)

    def rule(prints: Fingerprints, rows: Sequence[Row]) -> Iterator[Lost]:
        for i in np.flatnonzero(clusters != np.arange(len(clusters))).tolist():
            reason = f"Jaccard {nearest[i]:.3f} to its nearest row in the cluster, threshold {settings.threshold}"
            yield Lost(i, "duplicate_of", reason, other=int(clusters[i]))

    return rule
