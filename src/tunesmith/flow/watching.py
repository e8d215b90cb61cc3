"""What is looked at when an alias is watched: its chats in windows against a reference, its sampled answers scored day by day. Knows
nothing about how drift or quality are measured (`monitor/` does).
"""

from __future__ import annotations

import datetime
import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, MissingExtra
from tunesmith.core.load import need
from tunesmith.core.types import Answer, Example, Interaction, Record, digest
from tunesmith.evaluate.metrics import Metric
from tunesmith.flow.datasets.vectors import at_hand, embed
from tunesmith.flow.evaluation.metrics import build
from tunesmith.flow.evaluation.run import Bench
from tunesmith.flow.scoring import Scorer, asked
from tunesmith.models.catalog import Catalog
from tunesmith.monitor.drift import LEAST, DriftReference, Vectors, WindowDrift
from tunesmith.monitor.quality import DAY_S, ChartSettings, QualityChart, ScoredAnswer, quality_chart
from tunesmith.monitor.settings import Monitor
from tunesmith.store.feedback import FeedbackLog, last_question
from tunesmith.store.interactions import Interactions
from tunesmith.store.quality import KeptScore, QualityScores

_ENCODER = "minilm-l6-v2"
_MOST_WINDOWS = 100


class Look(Record, frozen=True):
    """One window of one stream: when it began and ended, what is said of it, and which requests are least like the reference."""

    stream: str
    since: float
    until: float
    drift: WindowDrift
    requests: tuple[str, ...]


class DriftReport(Record, frozen=True):
    """The windows of an alias, stream by stream (`questions`, `answers`). `reference` says against what; `waiting` are the chats that do
    not fill a window yet."""

    alias: str
    reference: str
    looks: tuple[Look, ...]
    waiting: int
    window: int

    @property
    def alarm(self) -> bool:
        """Whether the newest window of a stream has moved, or the evidence over its windows is beyond its limit."""
        return any(look.drift.alarm or look.drift.lasting for look in self.newest)

    @property
    def newest(self) -> list[Look]:
        """The last window of each stream."""
        return list({look.stream: look for look in self.looks}.values())

    def text(self) -> str:
        """For people."""
        lines = [f"{self.alias} against {self.reference}; {self.waiting} of the next window's {self.window} chats are there"]
        for look in self.looks:
            state = "MOVED" if look.drift.alarm else "moved little by little" if look.drift.lasting else "quiet"
            moved = [
                f"{part.name} ({part.before} → {part.now}, p {part.p_adjusted:.4f})"
                for part in look.drift.properties
                if part.p_adjusted < 0.05
            ]
            lines.append(f"  {_day(look.until)}  {look.stream:<9} {state:<22} {', '.join(moved) or f'evidence {look.drift.evidence:.3g}'}")
        for look in self.newest:
            if look.drift.alarm or look.drift.lasting:
                lines += [f"  {look.stream}: {', '.join(look.drift.events)}"] if look.drift.events else []
                lines += [f"    topic '{' '.join(t.words)}': {t.before:.0%} → {t.now:.0%}" for t in look.drift.topics]
                lines.append(f"    least like it: {', '.join(look.requests[:5])}")
        return "\n".join(lines)


def drift_of(alias: str, at: Bench, settings: Monitor, *, against: str = "", since: float | None = None, variant: str = "") -> DriftReport:
    """The newest hundred windows of an alias (or of one variant) against the fixed reference: the rows of `against` (else of
    `monitor.reference`), else the first chats of the log. Raises DataError where there are too few chats for both."""
    log, equal, now = Interactions(at.store), _fits(alias, variant), time.time()
    count = log.count_answered(equal, since=since, until=now)
    word, taken = against or settings.reference, 0
    if word:
        rows = at.reader.find(word).examples()
        reference = {"questions": [last_question(row.prompt) for row in rows], "answers": [row.answer for row in rows]}
        said = f"{counted(len(rows), 'row')} of {word}"
    else:
        taken = min(settings.baseline, count // 2)
        first = log.answered(equal, since=since, until=now, limit=taken, oldest=True)
        reference = {"questions": [last_question(row.messages) for row in first], "answers": [row.answer for row in first]}
        said = f"its first {counted(len(first), 'chat')}{f' ({_day(first[0].created)} to {_day(first[-1].created)})' if first else ''}"
    whole, waiting = divmod(count - taken, settings.window)
    if not whole or len(reference["questions"]) < LEAST:
        raise DataError(
            f"'{alias}' has {counted(count - taken, 'answered chat')} beside {said}",
            allowed=f"a window of {settings.window} beside {LEAST} or more",
            remedy="wait for more requests, or hold it against other rows with --against latest:train",
        )  # fmt: skip
    shown = min(whole, _MOST_WINDOWS)
    chats = log.answered(equal, since=since, until=now, limit=shown * settings.window + waiting)
    windows = [chats[i * settings.window : (i + 1) * settings.window] for i in range(shown)]
    looks = [look for stream in reference for look in _looks(stream, reference[stream], windows, at, settings)]
    return DriftReport(alias=alias, reference=said, looks=tuple(looks), waiting=waiting, window=settings.window)


def _fits(alias: str, variant: str) -> dict[str, str]:
    """What the requests of an alias, or of one of its variants, have in their columns."""
    return {"alias": alias} | ({"variant": variant} if variant else {})


def moved_requests(alias: str, at: Bench, settings: Monitor) -> list[str]:
    """The requests that are least like the reference, of the newest windows that have moved. Raises as `drift_of`."""
    newest = drift_of(alias, at, settings).newest
    return [number for look in newest if look.drift.alarm or look.drift.lasting for number in look.requests]


def _looks(stream: str, reference: Sequence[str], windows: Sequence[Sequence[Interaction]], at: Bench, settings: Monitor) -> list[Look]:
    texts = [[last_question(row.messages) if stream == "questions" else row.answer for row in window] for window in windows]
    everything = [*reference, *(text for window in texts for text in window)]
    alpha = settings.alpha / 2  # two streams
    drift = DriftReference(list(reference), _vectors(everything, at.reader.catalog, settings), language_of(), alpha=alpha)
    looks = []
    for window, words in zip(windows, texts, strict=True):
        seen = drift.look(words)
        requests = tuple(window[i].id for i in seen.rows)
        looks.append(Look(stream=stream, since=window[0].created, until=window[-1].created, drift=seen, requests=requests))
    return looks


def _vectors(texts: Sequence[str], catalog: Catalog, settings: Monitor) -> Vectors | None:
    """By the encoder, all at once; None: by words."""
    if settings.vectors == "words" or (settings.vectors == "auto" and at_hand(catalog, _ENCODER)):
        return None
    distinct = list(dict.fromkeys(texts))
    places, vectors = {text: i for i, text in enumerate(distinct)}, embed(distinct, catalog, _ENCODER)
    return lambda asked: np.asarray(vectors[[places[text] for text in asked]])


def language_of() -> Callable[[str], str] | None:
    """What names a text's language, where the package is there (texts of fewer than 30 letters: `short`); None: the script counts."""
    try:
        langid = need("py3langid", extra="data")
    except MissingExtra:
        return None

    def named(text: str) -> str:
        return str(langid.classify(text[:500])[0]) if sum(c.isalpha() for c in text[:200]) >= 30 else "short"

    return named


# --- quality -----------------------------------------------------------------------------------------------------------------------------


class QualityReport(Record, frozen=True):
    """The charts of an alias by metric; `fresh` counts the answers that were scored now."""

    alias: str
    charts: dict[str, QualityChart]
    fresh: int

    @property
    def alarm(self) -> bool:
        """Whether a chart is at its limit."""
        return any(chart.alarm is not None for chart in self.charts.values())

    def text(self) -> str:
        """For people."""
        lines = [f"{self.alias}: {counted(self.fresh, 'score')} given now"]
        for name, chart in self.charts.items():
            for segment in chart.segments:
                held = f"golden answers {segment.golden:.3f}" if segment.golden is not None else "no golden answers"
                state = f"FELL on {_day(segment.alarm)}" if segment.alarm else "steady" if segment.limit else "no alarm can be given yet"
                level = f", at {segment.days[-1].level:.0%} of its limit" if segment.days[-1].level is not None else ""
                lines.append(f"  {name} by {segment.instrument}: mean {segment.mean:.3f} of {segment.n}, {held}: {state}{level}")
                if segment.corrected is not None:
                    right = segment.corrected
                    lines.append(f"    by {segment.labels} labels of this time: {right.estimate:.3f} ({right.low:.3f} to {right.high:.3f})")
            lines += [f"  BREAK {words}" for words in chart.breaks]
        return "\n".join(lines)


def quality_of(alias: str, at: Bench, settings: Monitor, *, score: bool = True, variant: str = "", point_s: float = DAY_S) -> QualityReport:
    """The charts of an alias (or of one variant), a point each `point_s`; with `score`, answers of the daily sample that no instrument has
    scored are scored first, and golden answers by each instrument. Raises NotFound for a metric or judge that is not there."""
    log, fits = Interactions(at.store), _fits(alias, variant)
    golden, sampled = _golden(log.named(sample(log.times_answered(fits), settings.sample)), at, settings) if score else ([], [])
    kept, charts, fresh = QualityScores(at.store), {}, 0
    mine = {id for id, _ in log.times_answered(fits)} if variant else None
    for name, options in settings.metrics.items():
        if score:
            fresh += Scorer(name, options, alias, at, settings).score(golden, sampled)
        there = [each for each in kept.of(alias, name) if each.golden or mine is None or each.interaction in mine]
        labels = _labels(at, [each.interaction for each in there if not each.golden])
        charts[name] = _chart(there, labels, _settings(build(name, options), settings, point_s))
    return QualityReport(alias=alias, charts=charts, fresh=fresh)


def sample(chats: Iterable[tuple[str, float]], per_day: int) -> list[str]:
    """The ids of at most so many chats of each day, drawn by them: the same ones at every look. `chats` are (id, when), oldest first; no
    more of a day than are drawn are held."""
    days = itertools.groupby(chats, key=lambda chat: int(chat[1] // 86_400))
    return [id for _, day in days for id, _ in heapq.nsmallest(per_day, day, key=lambda chat: digest(chat[0]))]


def _golden(sampled: list[Interaction], at: Bench, settings: Monitor) -> tuple[list[tuple[str, Example, Answer]], list[Interaction]]:
    """(the golden answers, the sampled answers that are charted)."""
    if settings.golden:
        rows = at.reader.find(settings.golden).examples()
        return [(row.id, row, Answer(text=row.answer)) for row in rows], sampled
    taken = min(settings.baseline, len(sampled) // 2)
    return [(row.id, *asked(row)) for row in sampled[:taken]], sampled[taken:]


def _settings(metric: Metric, settings: Monitor, point_s: float) -> ChartSettings:
    return ChartSettings(
        shift=settings.shift, per_day=settings.sample, days=settings.days, false_share=settings.false_share,
        toward="higher" if metric.better == "lower" else "lower", point_s=point_s,
    )  # fmt: skip


def _chart(there: Sequence[KeptScore], labels: Mapping[str, float], settings: ChartSettings) -> QualityChart:
    golden: dict[str, list[float]] = {}
    for score in there:
        if score.golden and score.value is not None:
            golden.setdefault(score.instrument, []).append(score.value)
    scored = [
        ScoredAnswer(interaction=s.interaction, created=s.answered, instrument=s.instrument, value=s.value, label=labels.get(s.interaction))
        for s in there
        if not s.golden and s.value is not None
    ]
    return quality_chart(scored, golden, settings)


def _labels(at: Bench, ids: Sequence[str]) -> dict[str, float]:
    """What people said of answers, as a number from 0 to 1: the last word of thumbs, a score or an outcome."""
    labels = {}
    for id, words in FeedbackLog(at.store).about(ids).items():
        values = [word.value for word in words if word.kind != "correction" and isinstance(word.value, float) and 0 <= word.value <= 1]
        if values:
            labels[id] = values[-1]
    return labels


def _day(seconds: float | None) -> str:
    return datetime.datetime.fromtimestamp(seconds or 0).isoformat(" ", "minutes")


def plain(report: DriftReport | QualityReport) -> dict[str, Any]:
    """A report as JSON has it, with whether it is an alarm."""
    tree: dict[str, Any] = msgspec.to_builtins(report)
    return tree | {"alarm": report.alarm}
