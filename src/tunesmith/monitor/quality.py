"""The quality of answers over time: charts of scores with a stated rate of false alarms, and what a change of judge does to them. Knows
nothing about models, nor how answers are scored.

A judge is an instrument. Scores of two judges are not one series, so a chart is made of segments, one for each instrument in the order in
which they scored. What a segment is held against are the scores of the same golden answers by the same instrument: where the instrument
changes, the golden answers are scored anew, the chart shows a break, and the new segment begins at nothing. A rate that people's labels
correct takes those of its own segment only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from tunesmith.core.errors import DataError
from tunesmith.core.stats import Interval, ppi_mean
from tunesmith.core.stats.charts import Cusum
from tunesmith.core.types import Record

LEAST_GOLDEN = 30
DAY_S = 86_400.0
_LEAST_LABELS = 20


class ScoredAnswer(Record, frozen=True):
    """The score of one answer: when it was answered, by which instrument (a metric, or a judge with its weights and prompt) it was scored,
    and what a person said of it, where one did."""

    interaction: str
    created: float
    instrument: str
    value: float
    label: float | None = None


class ChartSettings(Record, frozen=True):
    """What a chart is to see: a change of the mean by `shift` toward a side; of quiet charts at most `false_share` are an alarm within
    `days` at `per_day` scores a day. A point of the chart is `point_s` long."""

    shift: float = 0.1
    per_day: int = 50
    days: int = 90
    false_share: float = 0.02
    toward: Literal["lower", "higher"] = "lower"
    point_s: float = DAY_S


class Day(Record, frozen=True):
    """The scores of one day, or of a shorter point (`start` in seconds since 1970), and where the chart stood at its end, as a share of its
    limit (1: an alarm)."""

    start: float
    n: int
    mean: float
    level: float | None


class Segment(Record, frozen=True):
    """What one instrument said. `golden` is its mean on the golden answers, `limit` the chart's (None: it scored too few golden answers, so
    no alarm can be given); `alarm` is when the chart reached it. `corrected` is the rate that people's labels correct."""

    instrument: str
    days: tuple[Day, ...]
    n: int
    mean: float
    golden: float | None = None
    limit: float | None = None
    alarm: float | None = None
    corrected: Interval | None = None
    labels: int = 0


class QualityChart(Record, frozen=True):
    """Segments, oldest first; between two of them is a break, which is no alarm."""

    segments: tuple[Segment, ...]

    @property
    def breaks(self) -> tuple[str, ...]:
        """Each change of instrument, in words."""
        return tuple(
            f"{before.instrument} → {after.instrument}" + (f": the same golden answers went from {before.golden:.3f} to {after.golden:.3f}"
            if before.golden is not None and after.golden is not None else ": the golden answers were not scored by both")
            for before, after in zip(self.segments, self.segments[1:], strict=False)
        )  # fmt: skip

    @property
    def alarm(self) -> float | None:
        """When the newest segment's chart reached its limit; None where it did not."""
        return self.segments[-1].alarm if self.segments else None


def quality_chart(
    scores: Sequence[ScoredAnswer], golden: Mapping[str, Sequence[float]], settings: ChartSettings = ChartSettings()
) -> QualityChart:
    """The chart of scores in the order of their answers. `golden` has, by instrument, its scores of the golden answers.

    Raises DataError for a score that is no number.
    """
    if any(not np.isfinite(score.value) for score in scores):
        raise DataError("a score is no number", remedy="leave out what could not be scored: missing is not 0")
    ordered = sorted(scores, key=lambda score: (score.created, score.interaction))
    runs: list[list[ScoredAnswer]] = []
    for score in ordered:
        if not runs or runs[-1][-1].instrument != score.instrument:
            runs.append([])
        runs[-1].append(score)
    return QualityChart(segments=tuple(_segment(run, golden.get(run[0].instrument, ()), settings) for run in runs))


def _segment(run: Sequence[ScoredAnswer], golden: Sequence[float], settings: ChartSettings) -> Segment:
    values = np.array([score.value for score in run])
    chart = None
    if len(golden) >= LEAST_GOLDEN:
        horizon = settings.days * settings.per_day
        chart = Cusum(golden, shift=settings.shift, horizon=horizon, false_share=settings.false_share, toward=settings.toward)
    heights = chart.add(values) if chart is not None else []
    limit = chart.limit if chart is not None else None
    reached = next((score.created for score, height in zip(run, heights, strict=False) if limit is not None and height >= limit), None)
    corrected, labels = _corrected(run)
    return Segment(
        instrument=run[0].instrument, days=_days(run, heights, limit, settings.point_s), n=len(run), mean=float(values.mean()),
        golden=float(np.mean(golden)) if len(golden) else None, limit=limit, alarm=reached, corrected=corrected, labels=labels,
    )  # fmt: skip


def _days(run: Sequence[ScoredAnswer], heights: Sequence[float], limit: float | None, point_s: float) -> tuple[Day, ...]:
    days: dict[int, list[int]] = {}
    for place, score in enumerate(run):
        days.setdefault(int(score.created // point_s), []).append(place)
    return tuple(
        Day(
            start=day * point_s, n=len(places), mean=float(np.mean([run[i].value for i in places])),
            level=heights[places[-1]] / limit if limit else None,
        )
        for day, places in days.items()
    )  # fmt: skip


def _corrected(run: Sequence[ScoredAnswer]) -> tuple[Interval | None, int]:
    """The rate of a segment that its own labels correct (PPI++); None with fewer than 20 of them."""
    labelled = [score for score in run if score.label is not None]
    others = [score.value for score in run if score.label is None]
    if len(labelled) < _LEAST_LABELS or len(others) < 2:
        return None, len(labelled)
    return ppi_mean([score.label or 0.0 for score in labelled], [score.value for score in labelled], others), len(labelled)
