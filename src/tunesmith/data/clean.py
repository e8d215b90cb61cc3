"""Cleaning: a list of plain callables over rows, each change in the ledger; knows nothing about files or splits.

A rule takes all rows that are left and yields changes. A user's own rule (`module:function`) is simpler: it takes one row and returns
None (keep it), a text (drop it, with that reason) or a row (put right).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np

from tunesmith.core.errors import DataError, GateRefused
from tunesmith.core.progress import Progress
from tunesmith.core.row_kinds import identified, only, prompt_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Record
from tunesmith.data.contamination import Contamination, Held, contaminated
from tunesmith.data.dedup import Ints, Pairs, components, near_duplicates
from tunesmith.data.ledger import LOST, Ledger
from tunesmith.data.no_gc import no_cycles
from tunesmith.data.pii import PersonalData
from tunesmith.data.row_rules import Change, Length, Rule, empty_answers, language, length, personal_data, refusals, repair_text, user_rule
from tunesmith.data.semantic import Encoder, SemanticDuplicates, semantic_duplicates
from tunesmith.data.set_rules import contradictory, exact_duplicates
from tunesmith.data.shingle import Shingles, shingles
from tunesmith.data.text import comparison_text, prompt_key
from tunesmith.data.toxicity import Toxicity, toxicity


class NearDuplicates(Record, frozen=True):
    """Rows whose comparison texts (user turns and answer) have a Jaccard similarity ≥ `threshold` over pairs of adjacent words.

    `action`: 'cluster' keeps them all and keeps each cluster on one side of the split; 'drop' keeps the first of each cluster;
    'keep' does nothing. `same_prompt`: rows that ask exactly the same are in one cluster too, whatever they answer.
    """

    threshold: float = 0.8
    action: Literal["cluster", "drop", "keep"] = "cluster"
    same_prompt: bool = True


class Clean(Record, frozen=True):
    """What is done to rows before they are split, in this order.

    `repair_text` (mojibake, control characters, Unicode NFC) · `length` limits · `languages` (ISO 639-1 codes; none: any) ·
    `empty_answers` · `refusals` · `toxicity` (offensive words, or a scorer of the user's) · the user's own `rules` (`module:function`) ·
    `personal_data` · `exact_duplicates` · `contradictions` (same question, other answer) · `semantic_duplicates` · `contamination` with
    evaluation rows · `near_duplicates`.
    `max_dropped`: a share of the input; losing more is refused.
    """

    repair_text: bool = True
    length: Length = Length()
    languages: tuple[str, ...] = ()
    empty_answers: Literal["drop", "keep"] = "drop"
    refusals: Literal["drop", "keep"] = "keep"
    toxicity: Toxicity = Toxicity()
    rules: tuple[str, ...] = ()
    personal_data: PersonalData = PersonalData()
    exact_duplicates: Literal["drop", "keep"] = "drop"
    contradictions: Literal["drop", "majority", "keep"] = "keep"
    semantic_duplicates: SemanticDuplicates = SemanticDuplicates()
    contamination: Contamination = Contamination()
    near_duplicates: NearDuplicates = NearDuplicates()
    max_dropped: float | None = None


@dataclass(frozen=True)
class Cleaned:
    """The rows that are left, the cluster of each (index of the cluster's first row), the similar pairs as evidence, how many rows had
    each kind of personal data, which rows held evaluation items, and the rows' shingle sets (None where none were made)."""

    rows: list[Row]
    clusters: Ints
    pairs: Pairs
    personal_data: dict[str, int] = field(default_factory=dict)
    contaminated: list[Held] = field(default_factory=list)
    sets: Shingles | None = None

    @property
    def examples(self) -> list[Example]:
        """The rows as Examples. Raises DataError when they are of another kind."""
        return only(self.rows, Example)


@no_cycles()
def clean(
    rows: Sequence[Row],
    settings: Clean,
    ledger: Ledger,
    *,
    evaluation: Sequence[Row] = (),
    encoder: Encoder | None = None,
    progress: Progress | None = None,
) -> Cleaned:
    """Apply the rules in the order that `Clean` names; `evaluation` are rows that must not be trained on, `encoder` gives the vectors that
    semantic duplicates are found by, `progress` is told how far each rule is.

    Every change is marked in `ledger`, where each row must already be entered under its `origin`. Raises GateRefused when more than
    `max_dropped` of the ledger's rows are lost by now, DataError when nothing is left or the counts do not add up.
    """
    left = list(rows)
    personal: dict[str, int] = {}
    for name, rule in rules(settings, personal, encoder):
        left = apply(left, name, rule, ledger, progress)
    held = contaminated(left, evaluation, settings.contamination) if evaluation else []
    if settings.contamination.action == "drop":
        left = apply(left, "contamination", lambda found: _contaminated(held, evaluation), ledger)
    near = settings.near_duplicates
    sets = shingles([comparison_text(row) for row in left]) if near.action != "keep" else None
    pairs, clusters = near_clusters(left, near, sets)
    if near.action == "drop":
        sets = None
        left, clusters, pairs = _drop_near(left, clusters, pairs, near, ledger)
    ledger.check(len(ledger), len(left))
    if not left:
        raise DataError("no rows are left after cleaning", remedy=f"see the ledger; rows by rule: {ledger.rules()}")
    gate_dropped(ledger, settings.max_dropped)
    return Cleaned(left, clusters, pairs, personal, held, sets)


class _Watched(list[Row]):
    """Rows that tell which of them a rule has come to."""

    def __init__(self, rows: Sequence[Row], label: str, progress: Progress) -> None:
        super().__init__(rows)
        self._label, self._progress = label, progress

    def __iter__(self) -> Iterator[Row]:
        for i, row in enumerate(super().__iter__()):
            if i % 1_000 == 0:
                self._progress.bar(self._label, i, len(self))
            yield row


def rules(settings: Clean, personal: dict[str, int], encoder: Encoder | None = None) -> list[tuple[str, Rule]]:
    """The rules over rows that the settings ask for, by name, in their order; `personal` will count the kinds of personal data.

    Raises ConfigError for a user's rule that does not exist.
    """
    semantic = settings.semantic_duplicates
    found: list[tuple[str, Rule | None]] = [
        ("repair_text", repair_text if settings.repair_text else None),
        ("length", length(settings.length) if settings.length != Length() else None),
        ("language", language(settings.languages) if settings.languages else None),
        ("empty_answer", empty_answers if settings.empty_answers == "drop" else None),
        ("refusal", refusals if settings.refusals == "drop" else None),
        ("toxicity", toxicity(settings.toxicity) if settings.toxicity.action == "drop" else None),
        *((name, user_rule(name)) for name in settings.rules),
        ("personal_data", personal_data(settings.personal_data, personal) if settings.personal_data.action != "keep" else None),
        ("exact_duplicate", exact_duplicates if settings.exact_duplicates == "drop" else None),
        ("contradiction", contradictory(settings.contradictions) if settings.contradictions != "keep" else None),
        ("semantic_duplicate", semantic_duplicates(semantic, encoder) if semantic.action == "drop" else None),
    ]
    return [(name, rule) for name, rule in found if rule is not None]


def _contaminated(held: Sequence[Held], evaluation: Sequence[Row]) -> Iterator[Change]:
    for one in held:
        how = f"Jaccard {one.jaccard:.3f}" if one.jaccard else f"{one.containment:.0%} of its word pairs"
        yield Change(one.row, "dropped", f"it holds the evaluation item {evaluation[one.item].origin} ({how})")


def apply(rows: Sequence[Row], name: str, rule: Rule, ledger: Ledger, progress: Progress | None = None) -> list[Row]:
    """The rows that a rule leaves, mended where it says so; each change is marked in the ledger."""
    result: list[Row | None] = list(rows)
    for change in rule(rows if progress is None else _Watched(rows, name, progress)):
        row = rows[change.at]
        other = rows[change.other].origin if change.other is not None else None
        mended = change.row
        if change.fate in LOST:
            result[change.at] = None
        elif mended is not None:
            mended = result[change.at] = identified(msgspec.structs.replace(mended, origin=row.origin))
        ledger.mark(row.origin, change.fate, name, change.reason, row=mended.id if mended else None, other=other)
    return [row for row in result if row is not None]


def near_clusters(rows: Sequence[Row], settings: NearDuplicates, sets: Shingles | None = None) -> tuple[Pairs, Ints]:
    """Similar pairs, and the cluster of each row (the index of its first row): linked by similarity or by the same prompt. `sets` are the
    shingles of the rows' comparison texts (None: made here)."""
    if settings.action == "keep":
        empty = Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
        return empty, np.arange(len(rows), dtype=np.int64)
    pairs = near_duplicates(sets if sets is not None else [comparison_text(row) for row in rows], settings.threshold)
    if not settings.same_prompt or settings.action == "drop":
        return pairs, components(pairs, len(rows))
    first: dict[bytes, int] = {}
    asks = [(i, row) for i, row in enumerate(rows) if prompt_of(row)]  # plain text asks nothing
    same = [(earlier, i) for i, row in asks if (earlier := first.setdefault(prompt_key(row), i)) != i]
    more = np.array(same, dtype=np.int64).reshape(-1, 2)
    linked = Pairs(np.concatenate([pairs.left, more[:, 0]]), np.concatenate([pairs.right, more[:, 1]]), np.zeros(0))
    return pairs, components(linked, len(rows))


def _drop_near(
    rows: Sequence[Row], clusters: Ints, pairs: Pairs, settings: NearDuplicates, ledger: Ledger
) -> tuple[list[Row], Ints, Pairs]:
    """Only the first row of each cluster; the reason names the nearest other and its similarity."""
    nearest: dict[int, float] = {}
    for i, j, value in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.jaccard.tolist(), strict=True):
        nearest[i], nearest[j] = max(value, nearest.get(i, 0.0)), max(value, nearest.get(j, 0.0))
    left: list[Row] = []
    for i, row in enumerate(rows):
        if clusters[i] == i:
            left.append(row)
            continue
        reason = f"Jaccard {nearest[i]:.3f} to its nearest row in the cluster, threshold {settings.threshold}"
        ledger.mark(row.origin, "duplicate_of", "near_duplicate", reason, other=rows[clusters[i]].origin)
    none = np.zeros(0, dtype=np.int64)
    return left, np.arange(len(left), dtype=np.int64), Pairs(none, none, np.zeros(0))


def gate_dropped(ledger: Ledger, limit: float | None) -> None:
    """Refuse (GateRefused) when more than the share `limit` of the input rows is lost."""
    if limit is None:
        return
    lost = sum(n for fate, n in ledger.counts().items() if fate in LOST)
    if lost > limit * len(ledger):
        raise GateRefused(
            f"cleaning takes out {lost} of {len(ledger)} rows ({lost / len(ledger):.1%})",
            allowed=f"at most {limit:.1%} (max_dropped)",
            remedy=f"look at the ledger or raise max_dropped; rows by rule: {ledger.rules()}",
        )
