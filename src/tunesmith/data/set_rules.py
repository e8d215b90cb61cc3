"""Rules that need the whole set: exact duplicates and contradictions; knows nothing about single rows' faults."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from tunesmith.core.rows import Row
from tunesmith.data.row_rules import Change, Rule
from tunesmith.data.text import claim_key, claim_of, exact_key


def exact_duplicates(rows: Sequence[Row]) -> Iterator[Change]:
    """Every repetition of a row that came earlier, compared whole after normalisation (case, white space, Unicode form)."""
    first: dict[bytes, int] = {}
    for i, row in enumerate(rows):
        earlier = first.setdefault(exact_key(row), i)
        if earlier != i:
            yield Change(i, "duplicate_of", "the same turns, answer and tools", other=earlier)


def contradictions(rows: Sequence[Row]) -> dict[bytes, list[int]]:
    """Rows that ask the same and answer differently, or call the same answer wanted and unwanted (all after normalisation): the key of
    what they speak about → indices."""
    asked: dict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if (key := claim_key(row)) is not None:
            asked[key].append(i)
    return {key: places for key, places in asked.items() if len({claim_of(rows[i]) for i in places}) > 1}


def contradictory(action: Literal["drop", "majority"]) -> Rule:
    """Of rows that contradict each other all are dropped, or those whose answer is not given by more than half of them."""

    def rule(rows: Sequence[Row]) -> Iterator[Change]:
        for places in contradictions(rows).values():
            answers = Counter(claim_of(rows[i]) for i in places)
            best, times = answers.most_common(1)[0]
            for i in places:
                if action == "drop" or times * 2 <= len(places) or claim_of(rows[i]) != best:
                    yield Change(i, "dropped", f"{len(places)} rows ask the same and give {len(answers)} answers")

    return rule
