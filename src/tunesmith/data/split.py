"""Rows → train, validation and test, by content hash, with clusters and groups whole, and a leakage gate; knows nothing about training.

A unit (a row, a group, a cluster, or the union of those that overlap) gets a place in [0, 1) from the hash of its content and the salt;
the lowest places are the test set, the next ones validation, the rest train. So a new row moves no old one, unless it joins their units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tunesmith.core.errors import ConfigError, DataError, GateRefused
from tunesmith.core.row_kinds import label_of, only
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Record
from tunesmith.data.dedup import Ints, Pairs, best_matches, components
from tunesmith.data.no_gc import no_cycles
from tunesmith.data.semantic import Overlap, SemanticLeakage
from tunesmith.data.shingle import Shingles, joined
from tunesmith.data.text import comparison_text, normalised, question_of

SIDES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = 0, 1, 2


class Split(Record, frozen=True):
    """How rows are divided. Shares of rows; train gets the rest.

    `by`: 'cluster' (near-duplicates and groups stay together), 'group' (every row must have one), 'random' (rows alone),
    'stratified' (as cluster, the shares hold within each label), 'temporal' (as cluster, the newest rows are the test set; `time` names
    the key of `meta` that holds an ISO date or a number). `at_least_train` rows are trained on whatever the shares say. `salt`
    draws another split. `max_leakage`: share of validation or test rows that may repeat a training row (exactly or at
    `leakage_threshold`). `semantic`: the same gate for rows that say the same in other words. A unit larger than half of a held-out part,
    or than a twentieth of a large one, goes to train.
    """

    validation: float = 0.1
    test: float = 0.2
    by: Literal["cluster", "group", "random", "stratified", "temporal"] = "cluster"
    salt: str = "0"
    time: str = "created"
    at_least_train: int = 1
    max_leakage: float = 0.0
    leakage_threshold: float = 0.8
    semantic: SemanticLeakage = SemanticLeakage()


class Leakage(Record, frozen=True):
    """Rows of a held-out part that repeat a training row: `exact` (same comparison text after normalisation), `near` (Jaccard ≥
    `threshold`, exact ones included), `same_question` (same user turns, any answer; told, not gated), of `rows` rows in all;
    `examples`: up to ten (held-out origin, training origin, Jaccard), the most similar first."""

    rows: int
    exact: int
    near: int
    same_question: int
    threshold: float
    examples: tuple[tuple[str, str, float], ...] = ()

    @property
    def share(self) -> float:
        """Leaked share of the rows, from 0 to 1."""
        return max(self.near, self.exact) / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Splits:
    """The three parts, in the order of the input, the leakage of the held-out ones, what had to be done differently, and the overlap in
    meaning (empty where no encoder was brought)."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    leakage: dict[str, Leakage]
    notes: tuple[str, ...] = ()
    meaning: dict[str, Overlap] = field(default_factory=dict)

    def examples(self, side: Literal["train", "validation", "test"]) -> list[Example]:
        """One part as Examples. Raises DataError when the rows are of another kind."""
        rows: list[Row] = getattr(self, side)
        return only(rows, Example)


@no_cycles()
def split(rows: Sequence[Row], settings: Split, clusters: Ints | None = None, sets: Shingles | None = None) -> Splits:
    """Divide rows; `clusters` as `clean` gives them (None: each row alone), and the shingle `sets` of the rows (None: made here).

    Raises ConfigError for shares that cannot be, DataError when the rows cannot be divided so, GateRefused when the held-out parts
    leak more than `max_leakage`.
    """
    sides, notes = assign(rows, settings, clusters)
    parts = [[row for row, side in zip(rows, sides.tolist(), strict=True) if side == which] for which in (TRAIN, VALIDATION, TEST)]
    known = tuple(sets.taken(np.isin(sides, which)) for which in ([TRAIN], [VALIDATION], [TEST])) if sets is not None else ()
    found = leakages(parts[TRAIN], {"validation": parts[VALIDATION], "test": parts[TEST]}, settings.leakage_threshold, known)
    for name, measured in found.items():
        gate_leakage(measured, settings.max_leakage, name)
    return Splits(parts[TRAIN], parts[VALIDATION], parts[TEST], found, tuple(notes))


def assign(rows: Sequence[Row], settings: Split, clusters: Ints | None = None) -> tuple[np.ndarray[Any, np.dtype[np.int8]], list[str]]:
    """The side of each row (0 train, 1 validation, 2 test), and notes on what had to be done differently."""
    _check(rows, settings)
    unit = _units(rows, settings, clusters)
    size = np.bincount(unit)
    rank = _ranks(rows, unit, settings)
    strata = _strata(rows, unit) if settings.by == "stratified" else np.zeros(len(size), dtype=np.int64)
    sides = np.zeros(len(size), dtype=np.int8)
    shares = {TEST: settings.test, VALIDATION: settings.validation}
    notes: list[str] = []
    held = min((share for share in shares.values() if share > 0), default=0.0) * len(rows)
    cap = min(held / 2, max(100, held / 20))  # a few large units on one side or the other would leave little of the shares asked for
    large = (size > max(cap, 1)) if settings.by != "random" else np.zeros(len(size), dtype=bool)
    if large.any():
        notes.append(
            f"{int(large.sum())} clusters or groups with {int(size[large].sum())} rows in all are too large to hold out: they are in train"
        )
    for stratum in np.unique(strata):
        members = np.flatnonzero((strata == stratum) & ~large)
        members = members[np.argsort(rank[members], kind="stable")]
        if settings.by in ("stratified", "temporal"):
            done = np.cumsum(size[members]) - size[members] / 2
            place = done / size[members].sum() if len(members) else done
        else:
            place = rank[members]
        sides[members[place < settings.test + settings.validation]] = VALIDATION
        sides[members[place < settings.test]] = TEST
    notes += _give_back(sides, size, rank, settings)
    return sides[unit], notes


def _check(rows: Sequence[Row], settings: Split) -> None:
    if not (0 <= settings.test < 1 and 0 <= settings.validation < 1 and settings.test + settings.validation < 1):
        raise ConfigError(
            f"validation {settings.validation} and test {settings.test}", where="split", allowed="shares from 0 with a sum below 1"
        )
    if settings.at_least_train > len(rows):
        raise DataError(
            f"{len(rows)} rows, but at least {settings.at_least_train} must be trained on", where="split", remedy="collect more rows"
        )


def _units(rows: Sequence[Row], settings: Split, clusters: Ints | None) -> Ints:
    """The unit of each row, numbered from 0. Rows of one cluster or one group are in one unit."""
    n = len(rows)
    if settings.by == "random":
        return np.arange(n, dtype=np.int64)
    groups: dict[str, int] = {}
    links = [(groups.setdefault(row.group, i), i) for i, row in enumerate(rows) if row.group is not None]
    if settings.by == "group" and len(links) < n:
        missing = next(row.origin for row in rows if row.group is None)
        raise DataError(
            f"{n - len(links)} of {n} rows have no group, the first is {missing}",
            where="split.by",
            remedy="map a column: map: {group: document}",
        )
    if clusters is not None:
        links += list(zip(clusters.tolist(), range(n), strict=True))
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    joined = components(Pairs(ends[:, 0], ends[:, 1], np.zeros(0)), n)
    return np.asarray(np.unique(joined, return_inverse=True)[1], dtype=np.int64)


def _place(key: str, salt: str) -> float:
    return int.from_bytes(hashlib.blake2b(f"{salt}\n{key}".encode(), digest_size=8).digest(), "big") / 2**64


def _ranks(rows: Sequence[Row], unit: Ints, settings: Split) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The place of each unit: by its lowest row id (or group), or by the age of its newest row, newest first.

    Not the lowest place of its rows: of many places one is nearly always low, and large units would all be test rows."""
    n_units = int(unit.max(initial=-1)) + 1
    if settings.by == "temporal":
        order = np.full(n_units, -np.inf)
        np.maximum.at(order, unit, _times(rows, settings.time))
        return -order
    lowest: dict[int, str] = {}
    for which, row in zip(unit.tolist(), rows, strict=True):
        key = row.group or row.id
        if which not in lowest or key < lowest[which]:
            lowest[which] = key
    return np.array([_place(lowest[which], settings.salt) for which in range(n_units)])


def _times(rows: Sequence[Row], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The time of each row in seconds. Raises DataError naming the first row without one."""
    from datetime import datetime

    found = np.zeros(len(rows))
    for i, row in enumerate(rows):
        value = row.meta.get(key)
        try:
            found[i] = float(value) if isinstance(value, int | float) else datetime.fromisoformat(str(value)).timestamp()
        except ValueError as error:
            raise DataError(
                f"meta.{key} is {value!r}, which is no time",
                where=row.origin,
                allowed="an ISO date such as 2026-05-01, or a number",
                remedy="name the right key: split.time",
            ) from error
    return found


def _strata(rows: Sequence[Row], unit: Ints) -> Ints:
    """The stratum of each unit: the label of its first row. Raises DataError when no row has a label."""
    if all(label_of(row) is None for row in rows):
        raise DataError(
            "no row has a label to stratify by", where="split.by", remedy="map a column: map: {label: intent}, or use by: cluster"
        )
    names: dict[str | None, int] = {}
    found = np.full(int(unit.max(initial=-1)) + 1, -1, dtype=np.int64)
    for which, row in zip(unit.tolist(), rows, strict=True):
        if found[which] < 0:
            found[which] = names.setdefault(label_of(row), len(names))
    return found


def _give_back(sides: np.ndarray[Any, Any], size: Ints, rank: np.ndarray[Any, Any], settings: Split) -> list[str]:
    """Move held-out units into train, those nearest to it first, until `at_least_train` rows are there."""
    missing = settings.at_least_train - int(size[sides == TRAIN].sum())
    shares = {VALIDATION: settings.validation, TEST: settings.test}
    moved = 0
    while moved < missing and (sides != TRAIN).any():
        full = {side: size[sides == side].sum() / share for side, share in shares.items() if share > 0 and (sides == side).any()}
        # by time the oldest go first, whichever part they are in; else the part that has most of its share gives
        held = np.flatnonzero(sides != TRAIN if settings.by == "temporal" else sides == max(full, key=lambda side: full[side]))
        which = held[np.argmax(rank[held])]
        sides[which] = TRAIN
        moved += int(size[which])
    for side, share in ((VALIDATION, settings.validation), (TEST, settings.test)):
        if share > 0 and not (sides == side).any():
            raise DataError(
                f"no row is left for {SIDES[side]} ({int(size.sum())} rows in {len(size)} units, {settings.at_least_train} to train)",
                where="split",
                remedy="collect more rows, ask for fewer in train or set that share to 0; "
                "when all rows share one prompt: near_duplicates.same_prompt: false",
            )
    return [f"{moved} held-out rows went to train so that it has at least {settings.at_least_train}"] if moved else []


def leakage(train: Sequence[Row], held_out: Sequence[Row], threshold: float = 0.8) -> Leakage:
    """How many held-out rows repeat a training row, measured on their comparison texts (user turns and answer)."""
    return leakages(train, {"held_out": held_out}, threshold)["held_out"]


def leakages(
    train: Sequence[Row], held_out: Mapping[str, Sequence[Row]], threshold: float = 0.8, sets: Sequence[Shingles] = ()
) -> dict[str, Leakage]:
    """`leakage` of several held-out parts, with one pass over the training rows. `sets`: the shingles of the training rows and of each
    part's comparison texts, where they are known already."""
    new = [comparison_text(row) for rows in held_out.values() for row in rows]
    ours, theirs = (sets[0], joined(sets[1:])) if sets else ([comparison_text(row) for row in train], new)
    index, value = best_matches(theirs, ours, threshold)
    # equal texts have equal shingles, or none at all: only then is it worth normalising every training text
    alike = [i for i, text in enumerate(new) if value[i] == 1.0 or not text.strip()]
    known = {normalised(comparison_text(row)) for row in train} if alike else set()
    exact = np.array([i for i in alike if normalised(new[i]) in known], dtype=np.int64)
    asked = {normalised(question_of(row)) for row in train} - {""}  # plain text asks nothing
    found, start = {}, 0
    for name, rows in held_out.items():
        end = start + len(rows)
        worst = sorted((np.flatnonzero(index[start:end] >= 0) + start).tolist(), key=lambda i: (-value[i], i))[:10]
        found[name] = Leakage(
            rows=len(rows),
            exact=int(((exact >= start) & (exact < end)).sum()),
            near=int((index[start:end] >= 0).sum()),
            same_question=sum(normalised(question_of(row)) in asked for row in rows),
            threshold=threshold,
            examples=tuple((rows[i - start].origin, train[index[i]].origin, round(float(value[i]), 4)) for i in worst),
        )
        start = end
    return found


def gate_leakage(measured: Leakage, limit: float, name: str = "test") -> None:
    """Refuse (GateRefused) when more than the share `limit` of the held-out rows repeat training rows."""
    if measured.share > limit:
        pairs = "; ".join(f"{new} ≈ {old} ({value})" for new, old, value in measured.examples[:3])
        raise GateRefused(
            f"{max(measured.near, measured.exact)} of {measured.rows} {name} rows repeat a training row ({measured.share:.1%}): {pairs}",
            allowed=f"at most {limit:.1%} (max_leakage)",
            remedy="split by cluster, with near_duplicates.action cluster or drop at the same threshold",
        )
