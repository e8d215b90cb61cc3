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
from tunesmith.core.row_kinds import only
from tunesmith.core.rows import Row
from tunesmith.core.stored_rows import chained, taken
from tunesmith.core.types import Example, Record
from tunesmith.data.dedup import Ints, Pairs, components, matches_across
from tunesmith.data.fingerprints import Fingerprints, fingerprints
from tunesmith.data.no_gc import no_cycles
from tunesmith.data.semantic import Overlap, SemanticLeakage
from tunesmith.data.text import comparison_text, normalised

SIDES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = 0, 1, 2


class Split(Record, frozen=True):
    """How rows are divided. Shares of rows; train gets the rest.

    `by`: 'cluster' (near-duplicates and groups stay together), 'group' (every row must have one), 'random' (rows alone, whatever their
    group or cluster; groups that are torn apart are told), 'stratified' (as cluster, the shares hold within each label), 'temporal' (as
    cluster, the newest rows are the test set; `time` names the key of `meta` that holds an ISO date or a number). `at_least_train` rows
    are trained on whatever the shares say. `salt` draws another split. `max_leakage`: share of validation or test rows that may repeat a
    training row (exactly or at `leakage_threshold`). `semantic`: the same gate for rows that say the same in other words. A unit larger
    than half of a held-out part, or than a twentieth of a large one, goes to train.
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

    train: Sequence[Row]
    validation: Sequence[Row]
    test: Sequence[Row]
    leakage: dict[str, Leakage]
    notes: tuple[str, ...] = ()
    meaning: dict[str, Overlap] = field(default_factory=dict)

    def examples(self, side: Literal["train", "validation", "test"]) -> list[Example]:
        """One part as Examples. Raises DataError when the rows are of another kind."""
        return only(getattr(self, side), Example)


@no_cycles()
def split(rows: Sequence[Row], settings: Split, clusters: Ints | None = None, prints: Fingerprints | None = None) -> Splits:
    """Divide rows; `clusters` as `clean` gives them (None: each row alone), and the rows' fingerprints (None: made here).

    Raises ConfigError for shares that cannot be, DataError when the rows cannot be divided so, GateRefused when the held-out parts
    leak more than `max_leakage`.
    """
    prints = fingerprints(rows) if prints is None or prints.sets is None else prints
    sides, notes = assign(rows, settings, clusters, prints)
    places = [np.flatnonzero(sides == which) for which in (TRAIN, VALIDATION, TEST)]
    held_out = {"validation": places[VALIDATION], "test": places[TEST]}
    measured = _leakages(rows, prints, places[TRAIN], held_out, settings.leakage_threshold)
    for name, leak in measured.items():
        gate_leakage(leak, settings.max_leakage, name)
    train, validation, test = (taken(rows, which) for which in places)
    return Splits(train, validation, test, measured, tuple(notes))


def assign(
    rows: Sequence[Row], settings: Split, clusters: Ints | None = None, prints: Fingerprints | None = None
) -> tuple[np.ndarray[Any, np.dtype[np.int8]], list[str]]:
    """The side of each row (0 train, 1 validation, 2 test), and notes on what had to be done differently."""
    _check(rows, settings)
    prints = fingerprints(rows, sets=False) if prints is None else prints
    unit = _units(prints, settings, clusters)
    size = np.bincount(unit)
    rank = _ranks(rows, prints, unit, settings)
    strata = _strata(prints, unit) if settings.by == "stratified" else np.zeros(len(size), dtype=np.int64)
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
    assigned = sides[unit]
    if settings.by == "random" and (torn := _torn(prints, assigned)):
        notes.append(
            f"{torn} groups have rows on both sides, since by: random looks at no group: what was learned of one row of a group helps with "
            "the others, so held-out values may be too good; by: cluster or by: group keeps them whole"
        )
    return assigned, notes


def _torn(prints: Fingerprints, sides: np.ndarray[Any, Any]) -> int:
    """How many groups have rows both in train and in a held-out part."""
    grouped = prints.group >= 0
    train, held = (np.unique(prints.group[grouped & which]) for which in (sides == TRAIN, sides != TRAIN))
    return len(np.intersect1d(train, held))


def _check(rows: Sequence[Row], settings: Split) -> None:
    if not (0 <= settings.test < 1 and 0 <= settings.validation < 1 and settings.test + settings.validation < 1):
        raise ConfigError(
            f"validation {settings.validation} and test {settings.test}", where="split", allowed="shares from 0 with a sum below 1"
        )
    if settings.at_least_train > len(rows):
        raise DataError(
            f"{len(rows)} rows, but at least {settings.at_least_train} must be trained on", where="split", remedy="collect more rows"
        )


def _units(prints: Fingerprints, settings: Split, clusters: Ints | None) -> Ints:
    """The unit of each row, numbered from 0. Rows of one cluster or one group are in one unit."""
    n = len(prints)
    if settings.by == "random":
        return np.arange(n, dtype=np.int64)
    grouped = np.flatnonzero(prints.group >= 0)
    if settings.by == "group" and len(grouped) < n:
        missing = int(np.flatnonzero(prints.group < 0)[0])
        raise DataError(
            f"{n - len(grouped)} of {n} rows have no group, the first is {prints.origins[missing]}",
            where="split.by",
            remedy="map a column: map: {group: document}",
        )
    _, first, which = np.unique(prints.group[grouped], return_index=True, return_inverse=True)
    left, right = [grouped[first][which].astype(np.int32)], [grouped.astype(np.int32)]
    if clusters is not None:
        left, right = [*left, clusters.astype(np.int32)], [*right, np.arange(n, dtype=np.int32)]
    linked = components(Pairs(np.concatenate(left), np.concatenate(right), np.zeros(0)), n)
    return np.asarray(np.unique(linked, return_inverse=True)[1], dtype=np.int64)


def _place(key: str, salt: str) -> float:
    return int.from_bytes(hashlib.blake2b(f"{salt}\n{key}".encode(), digest_size=8).digest(), "big") / 2**64


def _ranks(rows: Sequence[Row], prints: Fingerprints, unit: Ints, settings: Split) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The place of each unit: by its lowest row id (or group), or by the age of its newest row, newest first.

    Not the lowest place of its rows: of many places one is nearly always low, and large units would all be test rows."""
    n_units = int(unit.max(initial=-1)) + 1
    if settings.by == "temporal":
        order = np.full(n_units, -np.inf)
        np.maximum.at(order, unit, _times(rows, settings.time))
        return -order
    if settings.by == "random":
        return np.fromiter((_place(key.decode(), settings.salt) for key in prints.ids), np.float64, len(prints))
    lowest = _lowest_ids(prints, unit, n_units)
    for which, number in {*zip(unit[prints.group >= 0].tolist(), prints.group[prints.group >= 0].tolist(), strict=True)}:
        key = prints.groups.texts[number].encode()
        if key and (lowest[which] == _NO_KEY or key < lowest[which]):
            lowest[which] = key
    return np.array([_place(key.decode(), settings.salt) for key in lowest])


_NO_KEY = b"\xff"  # no text has this byte


def _lowest_ids(prints: Fingerprints, unit: Ints, n_units: int) -> list[bytes]:
    """The lowest id in each unit of the rows that have no group. (The order of UTF-8 bytes is that of the characters.)"""
    alone = np.flatnonzero((prints.group < 0) | np.array([not text for text in prints.groups.texts] or [False])[prints.group])
    order = alone[np.argsort(prints.ids[alone], kind="stable")][::-1]
    lowest = [_NO_KEY] * n_units
    for start in range(0, len(order), 100_000):  # a list of them all would hold every id as an object
        part = order[start : start + 100_000]
        for which, key in zip(unit[part].tolist(), prints.ids[part].tolist(), strict=True):
            lowest[which] = key
    return lowest


def _times(rows: Sequence[Row], key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The time of each row in seconds. Raises DataError naming the first row without one."""
    from datetime import datetime

    times = np.zeros(len(rows))
    for i, row in enumerate(rows):
        value = row.meta.get(key)
        try:
            times[i] = float(value) if isinstance(value, int | float) else datetime.fromisoformat(str(value)).timestamp()
        except ValueError as error:
            raise DataError(
                f"meta.{key} is {value!r}, which is no time",
                where=row.origin,
                allowed="an ISO date such as 2026-05-01, or a number",
                remedy="name the right key: split.time",
            ) from error
    return times


def _strata(prints: Fingerprints, unit: Ints) -> Ints:
    """The stratum of each unit: the label of its first row. Raises DataError when no row has a label."""
    if not (prints.label >= 0).any():
        raise DataError(
            "no row has a label to stratify by", where="split.by", remedy="map a column: map: {label: intent}, or use by: cluster"
        )
    _, first = np.unique(unit, return_index=True)
    return np.asarray(prints.label[first], dtype=np.int64)


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


def leakages(train: Sequence[Row], held_out: Mapping[str, Sequence[Row]], threshold: float = 0.8) -> dict[str, Leakage]:
    """`leakage` of several held-out parts, with one pass over the training rows."""
    rows = chained([train, *held_out.values()])
    ends = np.cumsum([len(train), *map(len, held_out.values())])
    places = {name: np.arange(start, end) for name, start, end in zip(held_out, ends[:-1].tolist(), ends[1:].tolist(), strict=True)}
    return _leakages(rows, fingerprints(rows), np.arange(len(train)), places, threshold)


def _leakages(rows: Sequence[Row], prints: Fingerprints, train: Ints, held_out: Mapping[str, Ints], threshold: float) -> dict[str, Leakage]:
    """The leakage of each part; `train` and the parts are places among the rows."""
    new = np.concatenate(list(held_out.values()))
    assert prints.sets is not None
    index, value = matches_across(prints.sets, new, train, threshold)
    repeated = _repeated(rows, prints, train, new[(value == 1.0) | (prints.sets.starts[new + 1] == prints.sets.starts[new])])
    asked, start = np.unique(prints.question[train]), 0
    measured = {}
    for name, places in held_out.items():
        own, mine, questions = value[start : start + len(places)], index[start : start + len(places)], prints.question[places]
        near, start = np.flatnonzero(mine >= 0), start + len(places)
        worst = near[np.lexsort((places[near], -own[near]))][:10].tolist()
        measured[name] = Leakage(
            rows=len(places),
            exact=int(np.isin(places, repeated).sum()),
            near=len(near),
            same_question=int((np.isin(questions, asked) & (questions != 0)).sum()),  # 0: plain text asks nothing
            threshold=threshold,
            examples=tuple((prints.origins[int(places[i])], prints.origins[int(mine[i])], round(float(own[i]), 4)) for i in worst),
        )
    return measured


def _repeated(rows: Sequence[Row], prints: Fingerprints, train: Ints, alike: Ints) -> Ints:
    """Which of the held-out rows `alike` (equal shingles, or none at all) have the same comparison text as a training row. Only then is it
    worth normalising every training text."""
    if not len(alike):
        return alike
    texts = [normalised(comparison_text(row)) for row in taken(rows, alike)]
    wanted = set(texts)
    known = {text for row in taken(rows, train) if (text := normalised(comparison_text(row))) in wanted}
    return alike[[text in known for text in texts]]


def gate_leakage(measured: Leakage, limit: float, name: str = "test") -> None:
    """Refuse (GateRefused) when more than the share `limit` of the held-out rows repeat training rows."""
    if measured.share > limit:
        pairs = "; ".join(f"{new} ≈ {old} ({value})" for new, old, value in measured.examples[:3])
        raise GateRefused(
            f"{max(measured.near, measured.exact)} of {measured.rows} {name} rows repeat a training row ({measured.share:.1%}): {pairs}",
            allowed=f"at most {limit:.1%} (max_leakage)",
            remedy="split by cluster, with near_duplicates.action cluster or drop at the same threshold",
        )
