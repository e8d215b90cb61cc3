"""The race: every arm is asked the same sealed rows, a shard at a time, until the decision cannot change any more or the budget is spent.
Opens the test rows, once, and writes it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.core.types import Example, digest
from tunesmith.decide.race import Dropped, Race, asking_order
from tunesmith.evaluate.openings import open_sealed, openings
from tunesmith.evaluate.run import Evaluation
from tunesmith.flow.decide.build import Built
from tunesmith.flow.decide.desk import Desk, Floats
from tunesmith.models.base import Model


@dataclass(frozen=True)
class SealedLook:
    """The one look at the sealed rows: the how-manieth it is of them, by whom, and in which log it stands."""

    number: int
    who: str
    log: str


@dataclass(frozen=True)
class Raced:
    """How the race ended. `rows` are the test rows in the order in which they were asked, `scores` each arm's values on the first of them
    (1 is the best), `evaluations` its answers; `dropped` says when and why an arm left, `stopped` why the race ended, `missing` how many
    rows no comparison counts because an arm has no score there."""

    rows: list[Example]
    clusters: dict[str, str]
    scores: dict[str, Floats]
    evaluations: dict[str, Evaluation]
    dropped: dict[str, str]
    stopped: str
    opening: SealedLook
    race: Race | None
    missing: int = 0


def run_race(desk: Desk, built: Sequence[Built], identity: str) -> Raced:
    """Ask the arms, which are in their order from the cheapest to the dearest. `identity` names the experiment:
    the same one, gone on with after an interruption, opens nothing anew."""
    rows, clusters = drawn(desk)
    opening = _opened(desk, rows, identity)
    race = _race(desk, built, [clusters[row.id] for row in rows])
    models = {one.arm.name: one.opened() for one in built}
    by_name = {one.arm.name: one for one in built}
    scores: dict[str, Floats] = {name: np.zeros(0) for name in by_name}
    missing, stopped = 0, "all rows were asked"
    for shard in race.shards(desk.plan.shard):
        began = desk.budget.taken_s
        new = {name: _shard(desk, by_name[name], models[name], rows, shard) for name in race.open}
        there = ~np.isnan(np.stack(list(new.values()))).any(axis=0)
        missing += int((~there).sum())
        new = {name: np.where(there, values, 0.0) for name, values in new.items()}  # no difference where a score is missing
        scores |= {name: np.concatenate([scores[name], values]) for name, values in new.items()}
        race.add({name: values.tolist() for name, values in new.items()})
        _tell(desk, race, shard.stop, len(rows))
        if race.decided and shard.stop < len(rows):
            stopped = f"more rows would hardly change the decision after {shard.stop} of {len(rows)}"
            break
        if shard.stop < len(rows) and (short := desk.budget.short(desk.budget.taken_s - began)):
            stopped = f"the budget was spent after {shard.stop} of {len(rows)} rows: {short}"
            break
    evaluations = {name: _whole(desk, by_name[name], models[name], rows[: len(scores[name])]) for name in by_name}
    dropped = {name: f"asked {reason.rows} rows: {reason.reason}" for name, reason in race.dropped.items()}
    return Raced(rows, clusters, scores, evaluations, dropped, stopped, opening, race if isinstance(race, Race) else None, missing)


def drawn(desk: Desk) -> tuple[list[Example], dict[str, str]]:
    """The test rows in the order in which they are asked, near-duplicate clusters whole and drawn at random, and each row's cluster."""
    rows = desk.project.questions("test")[: desk.plan.test_rows]
    known = desk.project.clusters(rows)
    clusters = {row.id: known.get(row.id, row.id) for row in rows}
    order = asking_order(len(rows), [clusters[row.id] for row in rows], desk.plan.seed)
    return [rows[i] for i in order], clusters


def _opened(desk: Desk, rows: Sequence[Example], identity: str) -> SealedLook:
    log, seal = desk.project.store.layout.openings, digest([row.id for row in desk.project.questions("test")[: desk.plan.test_rows]])
    who = f"{desk.project.project.name}: decide {identity}"
    before = [one.who for one in openings(log, seal)]
    if who in before:
        return SealedLook(before.index(who) + 1, who, str(log))
    number = open_sealed(log, seal, who=who, why="tunesmith decide")
    desk.project.progress.say(f"{len(rows)} sealed test rows: opening number {number} is logged in {log}")
    return SealedLook(number, who, str(log))


def _shard(desk: Desk, one: Built, model: Model, rows: Sequence[Example], shard: range) -> Floats:
    out = Path("arms") / folder_of(one.arm.name) / f"rows-{shard.start}"
    found = desk.evaluation(model, one.variant, rows[shard.start : shard.stop], one.sampling, out)
    return desk.values(found.scores(desk.metric.name))


def _whole(desk: Desk, one: Built, model: Model, rows: Sequence[Example]) -> Evaluation:
    """All that an arm answered as one evaluation; asks nothing that was asked."""
    return desk.evaluation(model, one.variant, rows, one.sampling, Path("arms") / folder_of(one.arm.name))


def folder_of(name: str) -> str:
    """An arm's name as the name of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)


def _tell(desk: Desk, race: Race | SideBySide, asked: int, rows: int) -> None:
    left = ", ".join(name for name in race.arms if name not in race.dropped)
    desk.project.progress.say(f"{asked} of {rows} rows: still in the race {left}")
    desk.project.progress.bar("race", asked, rows)


def _race(desk: Desk, built: Sequence[Built], clusters: Sequence[str]) -> Race | SideBySide:
    names = [one.arm.name for one in built]
    if len(names) == 1 or desk.metric.kind != "mean":  # the race bets on the means of rows' own values
        return SideBySide(names, len(clusters))
    return Race(names, margin=desk.plan.margin, alpha=desk.plan.alpha, rows=len(clusters), clusters=clusters)


class SideBySide:
    """In place of a race: every arm is asked every row. Also that of one arm."""

    def __init__(self, names: Sequence[str], rows: int) -> None:
        self.arms, self.rows, self.dropped, self.decided = list(names), rows, dict[str, Dropped](), False

    @property
    def open(self) -> list[str]:
        """All arms."""
        return self.arms

    def shards(self, size: int) -> list[range]:
        """See `Race`."""
        return [range(start, min(start + size, self.rows)) for start in range(0, self.rows, size)]

    def add(self, scores: Mapping[str, Sequence[float]]) -> None:
        """Nothing is said before the end."""
