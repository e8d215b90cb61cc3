"""Sampled and golden answers scored, each once by each instrument; and whether a judge that goes by the same name is still the same.
Knows nothing about charts.

A judge elsewhere changes without a word. So every `golden_days` a judge scores the golden answers anew, from no kept answer; where the
two scores differ, by a paired interval, it counts as another instrument from then on (`NAME@DIGEST#2`), and its chart breaks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.core.stats import paired_difference
from tunesmith.core.types import Answer, Example, Interaction, digest, example_id
from tunesmith.evaluate.metrics import Metric
from tunesmith.flow.evaluation.metrics import build
from tunesmith.flow.evaluation.run import Bench
from tunesmith.monitor.settings import Monitor
from tunesmith.store.quality import KeptScore, QualityScores

_DAY_S = 86_400.0
Golden = Sequence[tuple[str, Example, Answer]]


@dataclass
class Scorer:
    """One metric over the answers of an alias."""

    name: str
    options: Mapping[str, Any]
    alias: str
    at: Bench
    settings: Monitor
    kept: QualityScores = field(init=False)

    def __post_init__(self) -> None:
        self.kept = QualityScores(self.at.store)
        weights = self.at.models.resolve(str(self.options["judge"])).digest if "judge" in self.options else ""
        self.base = f"{self.name}@{digest(self.name, self.options, weights, size=4)}"

    def score(self, golden: Golden, sampled: Sequence[Interaction]) -> int:
        """Score what is not scored yet; how many answers that were."""
        there = self.kept.of(self.alias, self.name)
        count, instrument = self._instrument(golden, there)
        there = self.kept.of(self.alias, self.name) if count else there
        scored = {score.interaction for score in there if not score.golden}
        by_this = {score.interaction for score in there if score.golden and score.instrument == instrument}
        cache = self._cache(instrument)
        count += self._put([row for row in golden if row[0] not in by_this], instrument, cache, golden=True)
        fresh = [(row.id, *asked(row)) for row in sampled if row.id not in scored]
        times = {row.id: row.created for row in sampled}
        return count + self._put(fresh, instrument, cache, golden=False, times=times)

    def _instrument(self, golden: Golden, there: Sequence[KeptScore]) -> tuple[int, str]:
        """(answers that were scored to find out, the instrument that the judge is now)."""
        mine = [score for score in there if score.golden and score.instrument.partition("#")[0] == self.base]
        if not mine:
            return 0, self.base
        newest = max(mine, key=lambda score: score.scored).instrument
        checks = [score for score in self.kept.of(self.alias, self._checked) if score.instrument.partition("#")[0] == self.base]
        last = max(score.scored for score in [*mine, *checks])
        if "judge" not in self.options or time.time() - last < self.settings.golden_days * _DAY_S:
            return 0, newest
        number = len({score.instrument for score in [*mine, *checks]}) + 1
        again = f"{self.base}#{number}"
        before = {score.interaction: score.value for score in mine if score.instrument == newest}
        rows = [row for row in golden if before.get(row[0]) is not None]
        after = self._values(rows, self._cache(again))
        pairs = [(before[id], value) for (id, _, _), value in zip(rows, after, strict=True) if value is not None]
        changed = _differs([pair[0] or 0.0 for pair in pairs], [pair[1] for pair in pairs])
        name = self.name if changed else self._checked
        self._keep(rows, after, again, golden=True, metric=name)
        return len(rows), again if changed else newest

    @property
    def _checked(self) -> str:
        """Under which name golden scores are kept that only showed that a judge is the same."""
        return f"{self.name} (checked)"

    def _cache(self, instrument: str) -> Path:
        return self.at.folder / "answers" / f"judge{instrument.partition('#')[2]}.jsonl"

    def _put(self, rows: Golden, instrument: str, cache: Path, *, golden: bool, times: Mapping[str, float] | None = None) -> int:
        self._keep(rows, self._values(rows, cache), instrument, golden=golden, metric=self.name, times=times)
        return len(rows)

    def _values(self, rows: Golden, cache: Path) -> list[float | None]:
        """The scores on a scale from 0 to 1; None where there is none."""
        metric: Metric = build(self.name, self.options, self.at.models, cache)
        scores = metric.rows([example for _, example, _ in rows], [answer for *_, answer in rows])
        span = metric.high - metric.low
        return [None if score.value is None else (score.value - metric.low) / span for score in scores]

    def _keep(
        self,
        rows: Golden,
        values: Sequence[float | None],
        instrument: str,
        *,
        golden: bool,
        metric: str,
        times: Mapping[str, float] | None = None,
    ) -> None:
        now = time.time()
        self.kept.put([
            KeptScore(
                interaction=id, instrument=instrument, alias=self.alias, metric=metric, answered=(times or {}).get(id, 0.0), scored=now,
                golden=golden, value=value,
            )
            for (id, _, _), value in zip(rows, values, strict=True)
        ])  # fmt: skip


def asked(row: Interaction) -> tuple[Example, Answer]:
    """A request as a row without a reference, and its answer."""
    example = Example(id=example_id(row.messages), messages=row.messages, reference="", origin=f"interaction:{row.id}")
    return example, Answer(text=row.answer, tool_calls=row.tool_calls, completion_tokens=row.completion_tokens, total_s=row.total_s)


def _differs(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the mean of the same answers is surely another one (99 %: it is looked at again and again)."""
    if len(before) < 2:
        return False
    difference = paired_difference(before, after, level=0.99)
    return difference.low > 0 or difference.high < 0
