"""Compares two models' scores on the same rows: by how much, how sure, won and lost where; knows no model, no file and no formula."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from msgspec.structs import replace

from tunesmith.core.errors import DataError, UsageError, nearest
from tunesmith.core.stats import (
    Difference,
    Interval,
    clipped,
    holm,
    mean_interval,
    paired_difference,
    paired_pooled,
    paired_pooled_f1,
    pooled_f1_interval,
    pooled_interval,
    smallest_detectable,
    with_run_noise,
)
from tunesmith.core.stats.records import Floats
from tunesmith.core.types import Answer, Example, Record, Score
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.metrics.base import Pool, f1_pool
from tunesmith.evaluate.run import Evaluation

Verdict = Literal["better", "worse", "different", "no difference seen", "cannot tell"]


class MetricComparison(Record, frozen=True):
    """One metric of two models over the rows that both have a score for.

    `missing_a` and `missing_b` count the rows that were left out because that model has no score. `difference` is B minus A whatever the
    good direction is; `p_adjusted` is Holm's over the metrics of the comparison; `smallest_detectable` the true difference that these rows
    show with 80 % power. Intervals are None where there were too few rows. `won` and `lost` are the ids of the rows on which B is better
    and worse (B higher and lower where neither direction is good).
    """

    metric: str
    rows: int
    missing_a: int
    missing_b: int
    verdict: Verdict
    sentence: str
    a: Interval | None = None
    b: Interval | None = None
    difference: Difference | None = None
    p_adjusted: float | None = None
    smallest_detectable: float | None = None
    won: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Comparison(Record, frozen=True):
    """B against A, metric by metric. `level` is that of the intervals and of the joint test: α = 1 − level for all metrics together."""

    a: str
    b: str
    level: float
    metrics: tuple[MetricComparison, ...]

    def metric(self, name: str) -> MetricComparison:
        """The comparison of one metric. Raises UsageError when it is not among them."""
        for measured in self.metrics:
            if measured.metric == name:
                return measured
        names = [measured.metric for measured in self.metrics]
        raise UsageError(f"metric '{name}' was not compared", allowed=", ".join(names), remedy=nearest(name, names))


def compare(
    scores_a: Sequence[Score],
    scores_b: Sequence[Score],
    *,
    metrics: Sequence[Metric | str] | None = None,
    clusters: Mapping[str, str] | None = None,
    names: tuple[str, str] = ("A", "B"),
    relevant: float = 0.05,
    level: float = 0.95,
    runs: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Comparison:
    """Is B better than A? Rows are paired by example id; a row that either model has no score for is left out and counted.

    `metrics` brings direction, bounds and pooling; a bare name (and, with None, every metric that both have) means higher is better, the
    micro F1 where every score carries three counts, else the mean, in 0…1 where every score is. `clusters` maps example ids to groups of
    rows that are not independent; an id that it lacks stands alone. Several scores of one example are averaged. `runs` has, by metric, the
    value of each run of A and of B (several seeds): their noise is then part of the difference (`with_run_noise`).

    Verdict: better or worse when Holm's p is below 1 − level and the interval excludes 0 ("different" for a metric that has no good
    direction); no difference seen when the interval stays within ± `relevant` of the metric's range (of the larger value when it has no
    range); cannot tell otherwise, and with too few rows. Raises UsageError for an unknown metric or no common one.
    """
    by_a, by_b = _by_metric(scores_a), _by_metric(scores_b)
    wanted = [_named(own, by_a, by_b) for own in (metrics if metrics is not None else [name for name in by_a if name in by_b])]
    if not wanted:
        raise UsageError(
            f"no common metric: {names[0]} has {sorted(by_a)}, {names[1]} has {sorted(by_b)}", remedy="evaluate both with the same metrics"
        )
    if not set(by_a[wanted[0].name]) & set(by_b[wanted[0].name]):
        raise UsageError(
            f"{names[0]} and {names[1]} have no row in common",
            where="compare",
            remedy="evaluate both on the same --data, then compare those",
        )
    measured = [_measure(own, by_a[own.name], by_b[own.name], clusters or {}, level) for own in wanted]
    if runs:
        measured = [
            _noisy(metric, own, runs[own.metric]) if own.metric in runs else own for metric, own in zip(wanted, measured, strict=True)
        ]
    tested = [own.difference.p_value for own in measured if own.difference is not None]
    adjusted = iter(holm(tested).tolist())
    judge = partial(_judge, names=names, relevant=relevant)
    judged = [judge(metric, own, None if own.difference is None else next(adjusted)) for metric, own in zip(wanted, measured, strict=True)]
    return Comparison(a=names[0], b=names[1], level=level, metrics=tuple(judged))


def _by_metric(scores: Sequence[Score]) -> dict[str, dict[str, Score]]:
    """Metric → example id → score, in order of appearance; several scores of one example become their mean."""
    by_metric: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        by_metric.setdefault(score.metric, {}).setdefault(score.example_id, []).append(score)
    return {metric: {example: _mean(same) for example, same in rows.items()} for metric, rows in by_metric.items()}


def _mean(scores: Sequence[Score]) -> Score:
    there = [score for score in scores if score.value is not None]
    if len(scores) == 1 or not there:
        return scores[0]
    counts = [score.counts for score in there if score.counts is not None]
    if counts and len(counts) < len(there):
        raise DataError("some scores have counts and some have none", where=f"metric '{there[0].metric}', example {there[0].example_id}")
    return Score(
        example_id=there[0].example_id,
        metric=there[0].metric,
        value=float(np.mean([score.value for score in there])),
        counts=tuple(np.mean(counts, axis=0).tolist()) if counts else None,
    )


def _named(wanted: Metric | str, by_a: Mapping[str, Mapping[str, Score]], by_b: Mapping[str, Mapping[str, Score]]) -> Metric:
    """The metric as given, or what a bare name means. Raises UsageError when a model has no scores of it."""
    name = wanted.name if isinstance(wanted, Metric) else wanted
    for side, known in (("A", by_a), ("B", by_b)):
        if name not in known:
            raise UsageError(f"model {side} has no scores of metric '{name}'", allowed=", ".join(known), remedy=nearest(name, known))
    if isinstance(wanted, Metric):
        return wanted
    scores = [score for rows in (by_a[name], by_b[name]) for score in rows.values() if score.value is not None]
    pooled = all(score.counts is not None and len(score.counts) == 3 for score in scores)
    if pooled and scores:
        return Metric(name=name, rate=_no_rate, kind="pooled", pool=f1_pool)
    shares = all(0 <= (score.value or 0.0) <= 1 for score in scores)
    return Metric(name=name, rate=_no_rate) if shares else Metric(name=name, rate=_no_rate, low=-np.inf, high=np.inf)


def _no_rate(example: Example, answer: Answer) -> None:
    """A metric known by name only rates nothing here: its scores are there already."""


def _measure(metric: Metric, a: Mapping[str, Score], b: Mapping[str, Score], clusters: Mapping[str, str], level: float) -> MetricComparison:
    """Everything but the verdict; the sentence of a comparison that could not be made is the reason."""
    ids = list(dict.fromkeys([*a, *b]))
    there_a, there_b = ({i for i in ids if i in side and side[i].value is not None} for side in (a, b))
    both = [i for i in ids if i in there_a and i in there_b]
    result = MetricComparison(
        metric=metric.name,
        rows=len(both),
        missing_a=len(ids) - len(there_a),
        missing_b=len(ids) - len(there_b),
        verdict="cannot tell",
        sentence="",
    )
    groups: list[Hashable] = [clusters.get(i, ("alone", i)) for i in both]
    try:
        first, second, difference = _intervals(metric, [a[i] for i in both], [b[i] for i in both], groups, level)
    except DataError as error:
        return replace(result, sentence=error.what)
    sign = -1 if metric.better == "lower" else 1
    gains = {i: sign * ((b[i].value or 0.0) - (a[i].value or 0.0)) for i in both}
    return replace(
        result,
        a=first,
        b=second,
        difference=difference,
        smallest_detectable=smallest_detectable(difference),
        won=tuple(i for i, gain in gains.items() if gain > 0),
        lost=tuple(i for i, gain in gains.items() if gain < 0),
    )


def _noisy(metric: Metric, measured: MetricComparison, runs: tuple[Sequence[float], Sequence[float]]) -> MetricComparison:
    if measured.difference is None:
        return measured
    difference = with_run_noise(measured.difference, *runs)
    if _bounds(metric):
        difference = clipped(difference, _span(metric))
    return replace(measured, difference=difference, smallest_detectable=smallest_detectable(difference))


def merged(evaluations: Sequence[Evaluation], metrics: Sequence[Metric]) -> Evaluation:
    """Several runs on the same rows as one: each row's scores averaged, the answers of the first, tokens and seconds of all.

    Raises UsageError for evaluations of other rows or metrics.
    """
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    if len({(run.dataset_digest, run.metrics) for run in evaluations}) > 1:
        raise UsageError(f"runs of {first.model} are of different rows or metrics", remedy="evaluate all of them on the same data")
    columns = [[_mean(same) for same in zip(*(run.scores(m.name) for run in evaluations), strict=True)] for m in metrics]
    return replace(
        first,
        metrics=tuple(m.name for m in metrics),
        rows=tuple(replace(row, scores=tuple(scores)) for row, *scores in zip(first.rows, *columns, strict=True)),
        values={m.name: m.value(column) for m, column in zip(metrics, columns, strict=True)},
        missing={m.name: sum(s.value is None for s in column) for m, column in zip(metrics, columns, strict=True)},
        asked=sum(run.asked for run in evaluations),
        failed=sum(run.failed for run in evaluations),
        prompt_tokens=sum(run.prompt_tokens for run in evaluations),
        completion_tokens=sum(run.completion_tokens for run in evaluations),
        seconds=sum(run.seconds for run in evaluations),
    )


def estimate(metric: Metric, scores: Sequence[Score], clusters: Mapping[str, str] | None = None, level: float = 0.95) -> Interval | None:
    """One model's number with its interval, over the rows that have a score; None where they are too few."""
    there = [score for score in scores if score.value is not None]
    groups: list[Hashable] = [(clusters or {}).get(score.example_id, ("alone", score.example_id)) for score in there]
    try:
        return _single(metric, there, groups, level)
    except DataError:
        return None


def _single(metric: Metric, scores: Sequence[Score], groups: Sequence[Hashable], level: float) -> Interval:
    if metric.kind == "mean":
        interval = mean_interval(np.array([score.value for score in scores], dtype=np.float64), groups, level, _span(metric))
        # A mean of shares cannot lie above 1.
        return replace(interval, low=max(interval.low, metric.low), high=min(interval.high, metric.high))
    pool = metric.pool(scores)
    if metric.pool is f1_pool:
        return pooled_f1_interval(pool.rows, groups, level=level)
    return _allowing(metric, pool.rows, groups, pooled_interval(pool.rows, pool.value, groups, bounds=_bounds(metric), level=level), pool)


def _allowing(metric: Metric, rows: Floats, groups: Sequence[Hashable], interval: Interval, pool: Pool) -> Interval:
    """The interval, with a lower end that allows for what noise alone makes of the value."""
    if pool.noise is None:
        return interval
    least = interval.estimate - pool.noise(rows.sum(axis=0), len(set(groups)) / len(rows), interval.level)
    return replace(interval, low=max(metric.low, min(interval.low, least)))


def _span(metric: Metric) -> float:
    """The length of the metric's scale; 0 where it has no end, so that only the values say how long it is."""
    return metric.high - metric.low if _bounds(metric) else 0.0


def _bounds(metric: Metric) -> tuple[float, float] | None:
    return (metric.low, metric.high) if np.isfinite([metric.low, metric.high]).all() else None


def _intervals(
    metric: Metric, a: Sequence[Score], b: Sequence[Score], groups: Sequence[Hashable], level: float
) -> tuple[Interval, Interval, Difference]:
    """The interval of each model and of the difference, as fits the metric. Raises DataError for too few rows or clusters."""
    if metric.kind == "mean":
        x, y = (np.array([score.value for score in side], dtype=np.float64) for side in (a, b))
        return _single(metric, a, groups, level), _single(metric, b, groups, level), paired_difference(x, y, groups, level, _span(metric))
    sides, value = metric.pools(a, b)
    if metric.pool is f1_pool:
        first, second = (pooled_f1_interval(rows, groups, level=level) for rows in sides)
        return first, second, paired_pooled_f1(sides[0], sides[1], groups, level=level)
    bounds = _bounds(metric)
    first, second = (
        _allowing(metric, rows, groups, pooled_interval(rows, value, groups, bounds=bounds, level=level), metric.pool(side))
        for rows, side in zip(sides, (a, b), strict=True)
    )
    span = bounds[1] - bounds[0] if bounds else max(1.0, abs(first.estimate), abs(second.estimate))
    difference = paired_pooled(sides[0], sides[1], value, groups, span=span, bounded=bounds is not None, level=level)
    return first, second, difference


def _judge(metric: Metric, own: MetricComparison, p_adjusted: float | None, *, names: tuple[str, str], relevant: float) -> MetricComparison:
    """The comparison with its verdict and a sentence of it."""
    left_out = f" Left out: {own.missing_a} row(s) without a score of {names[0]}, {own.missing_b} of {names[1]}."
    left_out = left_out if own.missing_a + own.missing_b else ""
    a, b, d = own.a, own.b, own.difference
    if a is None or b is None or d is None or p_adjusted is None:
        return replace(own, sentence=f"Cannot tell {names[1]} from {names[0]} on {metric.name}: {own.sentence}.{left_out}")
    bounds = _bounds(metric)
    tolerance = relevant * (bounds[1] - bounds[0] if bounds else max(abs(a.estimate), abs(b.estimate)))
    verdict = _verdict(metric, d, p_adjusted, tolerance)
    p = "p < 0.001" if p_adjusted < 0.001 else f"p = {p_adjusted:.3f}"
    clusters = f" in {d.clusters} clusters" if d.clusters is not None else ""
    interval = f"{100 * d.level:.3g}% interval {d.low:+.3g} to {d.high:+.3g}, {p}"
    numbers = f"{b.estimate:.3g} against {a.estimate:.3g}, difference {d.estimate:+.3g} ({interval}) over {own.rows} rows{clusters}."
    head, tail = {
        "better": (f"{names[1]} is better than {names[0]}", ""),
        "worse": (f"{names[1]} is worse than {names[0]}", ""),
        "different": (f"{names[1]} differs from {names[0]}", ""),
        "no difference seen": (f"No difference seen between {names[1]} and {names[0]}", f" One above {tolerance:.3g} is ruled out."),
        "cannot tell": (
            f"Cannot tell {names[1]} from {names[0]}",
            f" These rows show a true difference from {own.smallest_detectable:.3g} on (80 % power).",
        ),
    }[verdict]
    return replace(own, verdict=verdict, sentence=f"{head} on {metric.name}: {numbers}{tail}{left_out}", p_adjusted=p_adjusted)


def _verdict(metric: Metric, d: Difference, p_adjusted: float, tolerance: float) -> Verdict:
    if p_adjusted < 1 - d.level and not d.low <= 0 <= d.high:
        if metric.better == "neither":
            return "different"
        return "better" if (d.estimate > 0) == (metric.better == "higher") else "worse"
    return "no difference seen" if max(-d.low, d.high) <= tolerance else "cannot tell"
