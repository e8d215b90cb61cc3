"""From words about answers to a version of proposed rows, and whether there are enough to train: the log, the rules of the data room,
sealed rows. Knows nothing about what a word makes of an answer (`monitor/harvest.py` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Interaction, Record
from tunesmith.data import version as versions
from tunesmith.data.text import normalised, question_of
from tunesmith.flow.datasets.versions import Datasets
from tunesmith.flow.rows import Rows
from tunesmith.flow.sources import ALL, entered
from tunesmith.monitor.harvest import Harvest, harvest
from tunesmith.monitor.settings import Monitor
from tunesmith.store.feedback import FeedbackLog
from tunesmith.store.interactions import Interactions
from tunesmith.store.quality import QualityScores
from tunesmith.store.store import Store


class Harvested(Record, frozen=True):
    """What was made: the version of rows with an answer and of questions without one (empty: none), how many rows of each kind there are,
    what was left out and why, and what cleaning lost."""

    rows: str
    questions: str
    kinds: dict[str, int]
    left: dict[str, int]
    lost: dict[str, int]

    def text(self) -> str:
        """For people, with what comes next."""
        lines = [", ".join(f"{counted(n, kind)}" for kind, n in self.kinds.items()) or "nothing is proposed"]
        lines += [f"left out: {counted(n, 'request')}: {why}" for why, n in self.left.items()]
        lines += [f"lost to {rule}: {counted(n, 'row')}" for rule, n in self.lost.items()]
        if self.rows:
            lines.append(f"next: tunesmith data review {self.rows}, then tunesmith data review {self.rows} --apply")
        if self.questions:
            lines.append(f"to be answered: tunesmith data review {self.questions} (edit gives the answer)")
        return "\n".join(lines)


def harvested(desk: Datasets, store: Store, settings: Monitor, *, since: float | None = None, drifted: Sequence[str] = ()) -> Harvested:
    """Propose rows out of what was said since then (None: ever), cleaned as the project cleans, without what sealed rows hold. Nothing
    is written where nothing is proposed."""
    made = _without(sealed_rows(desk), proposals(store, settings, since=since, drifted=drifted))
    kinds = {kind: len(made.of(kind)) for kind in ("correction", "agreed", "question")}
    rows, lost = _kept(desk, made.of("correction", "agreed"), "rows")
    questions, lost_questions = _kept(desk, made.of("question"), "questions")
    merged = {rule: lost.get(rule, 0) + lost_questions.get(rule, 0) for rule in {**lost, **lost_questions}}
    return Harvested(rows=rows, questions=questions, kinds={k: n for k, n in kinds.items() if n}, left=made.left, lost=merged)


def proposals(store: Store, settings: Monitor, *, since: float | None = None, drifted: Sequence[str] = ()) -> Harvest:
    """The proposed rows, before they are cleaned."""
    words = FeedbackLog(store).listed(since=since)[::-1]
    ids = list(dict.fromkeys([*(word.interaction for word in words), *drifted]))
    log = Interactions(store)
    requests: dict[str, Interaction] = {}
    for id in ids:
        row = log.find(id) if id else None
        if row is not None and row.id == id and row.status == 200 and row.messages:
            requests[id] = row
    return harvest(words, requests, _judged(store, settings, requests), drifted)


def _without(sealed: Sequence[Row], made: Harvest) -> Harvest:
    """The proposed rows that ask nothing that a sealed row asks, whatever its answer."""
    questions = {normalised(question_of(row)) for row in sealed}
    proposed = tuple(each for each in made.proposed if normalised(question_of(each.row)) not in questions)
    lost = len(made.proposed) - len(proposed)
    return Harvest(proposed=proposed, left={**made.left, "it asks what a sealed row asks": lost} if lost else made.left)


def _judged(store: Store, settings: Monitor, requests: dict[str, Interaction]) -> dict[str, float]:
    """What the judges of `monitor:` gave these answers. Metrics that ask nobody are no judges."""
    names = [name for name, options in settings.metrics.items() if "judge" in options]
    values: dict[str, list[float]] = {}
    for alias in {row.alias for row in requests.values()}:
        for name in names:
            for score in QualityScores(store).of(alias, name):
                if score.value is not None and score.interaction in requests:
                    values.setdefault(score.interaction, []).append(score.value)
    return {id: min(several) for id, several in values.items()}


def _kept(desk: Datasets, rows: Sequence[Example], what: str) -> tuple[str, dict[str, int]]:
    """(the version of the rows that cleaning leaves, rows lost by rule); no version where none is left."""
    if not rows:
        return "", {}
    free = Datasets(desk.folder, _ungated(desk), desk.progress, desk.catalog)
    proposed = Rows("feedback", {ALL: list(rows)}, entered({ALL: list(rows)}))
    try:
        version, _, ledger = free.cleaned(proposed, sealed_rows(desk), note=f"harvested from feedback: {what}")
    except DataError as error:
        desk.progress.say(error.what)
        return "", {"cleaning": len(rows)}
    return version.id, {rule: n for rule, n in ledger.rules().items() if n}


def _ungated(desk: Datasets) -> Any:
    """The settings without the gate on how much may be lost: what people said repeats itself, and that is no fault of a source."""
    clean = desk.settings.clean
    contamination = msgspec.structs.replace(clean.contamination, action="drop")
    return msgspec.structs.replace(desk.settings, clean=msgspec.structs.replace(clean, max_dropped=None, contamination=contamination))


def sealed_rows(desk: Datasets) -> list[Row]:
    """The test rows of every run and version: what no training row may repeat."""
    splits = [split for split in desk.splits_of_runs() if "test" in split.version.counts]
    sealed: list[Row] = [row for split in splits for row in split.rows("test")]
    for version in versions.log(desk.root):
        if "test" in version.counts:
            sealed += list(versions.rows_of(desk.root, version, "test"))
    return list({row.id: row for row in sealed}.values())
