"""Cleaning: rules over rows, each change in the ledger; knows nothing about files or splits.

Rules that need one row (`row_rules`) go over the rows once, a piece at a time, by whatever executor is brought. What the rules about the
whole set (`set_rules`) need of a row is kept as numbers. So rows that lie in a file stay there, and what is left is a view of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, GateRefused
from tunesmith.core.map_rows import Executor, here, map_rows
from tunesmith.core.progress import Progress
from tunesmith.core.row_kinds import identified, only
from tunesmith.core.rows import Row
from tunesmith.core.stored_rows import Rewriting, taken
from tunesmith.core.types import Example, Fate, Record
from tunesmith.data.contamination import Contamination, HeldOutRow, contaminated
from tunesmith.data.dedup import Ints, Pairs
from tunesmith.data.fingerprints import COMPILED_ROWS, Fingerprints, Gathered, Look, Seen
from tunesmith.data.ledger import LOST, Ledger
from tunesmith.data.no_gc import no_cycles
from tunesmith.data.pii import PersonalData
from tunesmith.data.row_rules import Length, Rule, empty_answers, language, length, personal_data, refusals, repair_text, user_rule
from tunesmith.data.semantic import Encoder, SemanticDuplicates
from tunesmith.data.set_rules import (
    NearDuplicates,
    SetRule,
    contamination,
    contradictory,
    exact_duplicates,
    near_clusters,
    repeating,
    semantic_duplicates,
)
from tunesmith.data.toxicity import Toxicity, toxicity


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


def row_rules(settings: Clean) -> list[tuple[str, Rule]]:
    """The rules over single rows that the settings ask for, by name, in their order. A new one is a function, its setting in `Clean` and a
    line here. Raises ConfigError for a user's rule that does not exist."""
    rules: list[tuple[str, Rule | None]] = [
        ("repair_text", repair_text if settings.repair_text else None),
        ("length", length(settings.length) if settings.length != Length() else None),
        ("language", language(settings.languages) if settings.languages else None),
        ("empty_answer", empty_answers if settings.empty_answers == "drop" else None),
        ("refusal", refusals if settings.refusals == "drop" else None),
        ("toxicity", toxicity(settings.toxicity) if settings.toxicity.action == "drop" else None),
        *((name, user_rule(name)) for name in settings.rules),
        ("personal_data", personal_data(settings.personal_data) if settings.personal_data.action != "keep" else None),
    ]
    return [(name, rule) for name, rule in rules if rule is not None]


def set_rules(settings: Clean, encoder: Encoder | None = None) -> list[tuple[str, SetRule]]:
    """The rules over the whole set that come before contamination and near-duplicates, as `row_rules`."""
    semantic = settings.semantic_duplicates
    rules: list[tuple[str, SetRule | None]] = [
        ("exact_duplicate", exact_duplicates if settings.exact_duplicates == "drop" else None),
        ("contradiction", contradictory(settings.contradictions) if settings.contradictions != "keep" else None),
        ("semantic_duplicate", semantic_duplicates(semantic, encoder) if semantic.action == "drop" else None),
    ]
    return [(name, rule) for name, rule in rules if rule is not None]


@dataclass(frozen=True)
class Cleaned:
    """The rows that are left, the cluster of each (place of the cluster's first row), the similar pairs as evidence, how many rows had
    each kind of personal data, which rows held evaluation items, and the rows' fingerprints."""

    rows: Sequence[Row]
    clusters: Ints
    pairs: Pairs
    prints: Fingerprints
    personal_data: dict[str, int] = field(default_factory=dict)
    contaminated: list[HeldOutRow] = field(default_factory=list)

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
    executor: Executor = here,
) -> Cleaned:
    """Apply the rules in the order that `Clean` names; `evaluation` are rows that must not be trained on, `encoder` gives the vectors that
    semantic duplicates are found by, `progress` is told how far it is, `executor` applies the rules over single rows.

    Every change is marked in `ledger`, where each row must already be entered under its `origin`. Raises GateRefused when more than
    `max_dropped` of the ledger's rows are lost by now, DataError when nothing is left or the counts do not add up.
    """
    rules = set_rules(settings, encoder)  # what is wrong with them is told before any work
    state = _Rows(*_by_row(rows, settings, ledger, progress, executor), ledger)
    personal = state.personal
    for name, rule in rules:
        state.lose(name, rule)
    held = contaminated(state.rows, evaluation, settings.contamination) if evaluation else []
    if settings.contamination.action == "drop":
        state.lose("contamination", contamination(held, evaluation))
    near = settings.near_duplicates
    pairs, clusters = near_clusters(state.rows, near, state.prints)
    if near.action == "drop":
        state.lose("near_duplicate", repeating(clusters, pairs, near))
        none = np.zeros(0, dtype=np.int32)
        clusters, pairs = np.arange(len(state.rows), dtype=np.int64), Pairs(none, none, np.zeros(0))
    ledger.check(len(ledger), len(state.rows))
    if not len(state.rows):
        raise DataError("no rows are left after cleaning", remedy=f"see the ledger; rows by rule: {ledger.rules()}")
    gate_dropped(ledger, settings.max_dropped)
    return Cleaned(state.rows, clusters, pairs, state.prints, personal, held)


class Mark(NamedTuple):
    """What a rule over single rows says of the row at `at` of its piece, for the ledger; `row`: its new id."""

    at: int
    fate: Fate
    rule: str
    reason: str
    row: str | None


class CleanedPiece(NamedTuple):
    """What became of one piece of rows: how many it had, the places that are left, the rows that changed, what is to be marked (with the
    origins), how many rows had each kind of personal data, and what was seen of the rows that are left."""

    rows: int
    left: list[int]
    changed: list[tuple[int, Row]]
    marks: list[tuple[str, Mark]]
    personal: Counter[str]
    seen: Seen


@dataclass(frozen=True)
class ByRow:
    """All that is done with a row alone, as a pure function of a piece of rows, so that it can be sent anywhere."""

    settings: Clean
    look: Look

    @cached_property
    def _rules(self) -> list[tuple[str, Rule]]:
        return row_rules(self.settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return ByRow, (self.settings, self.look)  # the rules are functions of functions, made anew where it arrives

    def __call__(self, piece: Sequence[Row]) -> CleanedPiece:
        """What the rules make of a piece."""
        origins = list(piece)
        now: list[Row | None] = list(origins)
        personal: Counter[str] = Counter()
        marks = [mark for name, rule in self._rules for mark in apply_rule(now, name, rule, personal)]
        left = [i for i, row in enumerate(now) if row is not None]
        changed = [(i, row) for i, row in enumerate(now) if row is not None and row is not origins[i]]
        seen = self.look(row for row in now if row is not None)
        return CleanedPiece(len(now), left, changed, [(origins[mark.at].origin, mark) for mark in marks], personal, seen)


def apply_rule(rows: list[Row | None], name: str, rule: Rule, personal: Counter[str]) -> list[Mark]:
    """Let a rule go over the rows that are left: what it mends is replaced, what it drops is None from then on."""
    places = [i for i, row in enumerate(rows) if row is not None]
    marks = []
    for change in list(rule([row for row in rows if row is not None])):
        at, mended = places[change.at], change.row
        before = rows[at]
        assert before is not None
        personal.update(change.kinds)
        if change.fate in LOST:
            rows[at] = None
        elif mended is not None:
            mended = rows[at] = identified(msgspec.structs.replace(mended, origin=before.origin))
        elif change.fate == "kept":
            continue
        marks.append(Mark(at, change.fate, name, change.reason, mended.id if mended else None))
    return marks


def apply(rows: Sequence[Row], name: str, rule: Rule, ledger: Ledger) -> list[Row]:
    """The rows that a rule leaves, mended where it says so; each change is marked in the ledger."""
    now: list[Row | None] = list(rows)
    for mark in apply_rule(now, name, rule, Counter()):
        ledger.mark(rows[mark.at].origin, mark.fate, name, mark.reason, row=mark.row)
    return [row for row in now if row is not None]


def _by_row(
    rows: Sequence[Row], settings: Clean, ledger: Ledger, progress: Progress | None, executor: Executor
) -> tuple[Sequence[Row], Fingerprints, dict[str, int]]:
    """The rules over single rows: the rows that they leave, what is known of these, and the kinds of personal data."""
    sets = settings.near_duplicates.action != "keep"
    gathered, rewriting = Gathered(len(rows), sets), Rewriting(rows)
    left, start, personal = [np.zeros(0, dtype=np.int64)], 0, Counter[str]()
    work = ByRow(settings, Look(sets, len(rows) >= COMPILED_ROWS))
    for piece in map_rows(work, rows, executor):
        for origin, mark in piece.marks:
            ledger.mark(origin, mark.fate, mark.rule, mark.reason, row=mark.row)
        for i, row in piece.changed:
            rewriting.put(start + i, row)
        gathered.add(piece.seen)
        personal += piece.personal
        left.append(np.array(piece.left, dtype=np.int64) + start)
        start += piece.rows
        if progress is not None:
            progress.bar("cleaning", start, len(rows))
    return rewriting.left(np.concatenate(left)), gathered.done(), dict(personal)


@dataclass
class _Rows:
    """The rows that are left by now and what is known of them."""

    rows: Sequence[Row]
    prints: Fingerprints
    personal: dict[str, int]
    ledger: Ledger

    def lose(self, name: str, rule: SetRule) -> None:
        """Take out what a rule says is lost, in the ledger."""
        stays, origins = np.ones(len(self.rows), dtype=bool), self.prints.origins
        for lost in rule(self.prints, self.rows):
            stays[lost.at] = False
            other = None if lost.other is None else origins[lost.other]
            self.ledger.mark(origins[lost.at], lost.fate, name, lost.reason, other=other)
        if not stays.all():
            left = np.flatnonzero(stays)
            self.rows, self.prints = taken(self.rows, left), self.prints.taken(left)


def gate_dropped(ledger: Ledger, limit: float | None) -> None:
    """Refuse (GateRefused) when more than the share `limit` of the input rows is lost."""
    if limit is None:
        return
    lost = sum(n for fate, n in ledger.counts().items() if fate in LOST)
    if lost > limit * len(ledger):
        raise GateRefused(
            f"cleaning takes out {lost} of {counted(len(ledger), 'row')} ({lost / len(ledger):.1%})",
            allowed=f"at most {limit:.1%} (max_dropped)",
            remedy=f"look at the ledger or raise max_dropped; rows by rule: {ledger.rules()}",
        )
