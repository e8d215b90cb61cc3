"""What each arm was found to be worth on the test rows: its quality with an interval, against simpler arms, by slice, and the tokens of a
request. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tunesmith.core.deployment import Variant
from tunesmith.core.stats import Difference, Interval
from tunesmith.core.types import Example, Record
from tunesmith.decide.arms import KINDS
from tunesmith.decide.records import MeasuredArm
from tunesmith.evaluate.compare import compare, estimate
from tunesmith.evaluate.run import Evaluation
from tunesmith.evaluate.slices import Slicer, by_cluster, by_label, by_length, by_meta
from tunesmith.flow.decide.build import Built
from tunesmith.flow.decide.deployable import variant_of
from tunesmith.flow.decide.desk import Desk
from tunesmith.flow.decide.racing import Raced
from tunesmith.flow.decide.upkeep import Upkeep, priced

_SMALLEST_SLICE, _SLICES = 8, 12


class ArmFigures(Record, frozen=True):
    """One arm's figures. `value` and `interval` are of the first metric over the rows that the arm was asked, `values` of all metrics;
    `against` is the best simpler arm and `difference` this arm minus that one over the rows of both.

    `variant` answers as the arm was measured, where a deployment can (`undeployable`: why not). `upkeep` are its times and prices.
    """

    name: str
    kind: str
    about: str
    base: str
    rows: int
    value: float | None
    interval: Interval | None
    values: dict[str, float | None]
    slices: dict[str, float | None]
    tokens_per_request: float
    prompt_tokens: int
    completion_tokens: int
    choices: dict[str, Any]
    variant: Variant | None = None
    undeployable: str = ""
    failed: int = 0
    missing: int = 0
    dropped: str = ""
    against: str = ""
    difference: Difference | None = None


def evidence_of(desk: Desk, built: Sequence[Built], raced: Raced) -> list[ArmFigures]:
    """Each arm's figures, the simplest first."""
    named = slices_of(raced.rows)
    found: list[ArmFigures] = []
    for one in built:
        evaluation = raced.evaluations[one.arm.name]
        against, difference = _against(desk, evaluation, [raced.evaluations[other.name] for other in found], found, raced)
        found.append(_figures(desk, one, raced, named, against, difference))
    return found


def measured(one: Built, upkeep: Upkeep, raced: Raced, figure: ArmFigures) -> MeasuredArm:
    """The arm as the decision reads it: scores between 0 and 1, 0 for every arm on a row that one has no score for."""
    values = raced.scores[one.arm.name]
    return msgspec.structs.replace(
        priced(one, upkeep),
        scores=tuple(values.tolist()),
        clusters=tuple(raced.clusters[row.id] for row in raced.rows[: len(values)]),
        tokens_per_request=figure.tokens_per_request,
    )


def _against(
    desk: Desk, evaluation: Evaluation, simpler: Sequence[Evaluation], figures: Sequence[ArmFigures], raced: Raced
) -> tuple[str, Difference | None]:
    """The best of the simpler arms on the rows that both were asked, and the difference to it."""
    sign = 1.0 if desk.metric.better == "higher" else -1.0
    name, own = desk.metric.name, evaluation.scores(desk.metric.name)
    valued = []
    for other, figure in zip(simpler, figures, strict=True):
        n = min(len(own), len(other.rows))
        value = desk.metric.value(other.scores(name)[:n])
        if value is not None:
            valued.append((sign * value, figure.name, other.scores(name)[:n]))
    if not valued:
        return "", None
    _, best, scores = max(valued, key=lambda one: one[0])
    clusters = {row.id: raced.clusters[row.id] for row in raced.rows[: len(scores)]}
    compared = compare(scores, own[: len(scores)], metrics=[desk.metric], clusters=clusters)
    return best, compared.metrics[0].difference


def slices_of(rows: Sequence[Example]) -> dict[str, list[int]]:
    """Named groups of the rows, by length, label and what they are about; small groups are left out."""
    slicers: dict[str, Slicer] = {"length": by_length}
    if any(row.label is not None for row in rows):
        slicers["label"] = by_label
    keys = sorted({key for row in rows for key, value in row.meta.items() if isinstance(value, str | bool | int)})
    slicers |= {key: by_meta(key) for key in keys[:2]}
    if len(rows) >= 4 * _SMALLEST_SLICE:
        slicers["topic"] = by_cluster(4)
    found: dict[str, list[int]] = {}
    for dimension, slicer in slicers.items():
        names = slicer(rows)
        groups = {name: [i for i, own in enumerate(names) if own == name] for name in sorted(set(names))}
        if 1 < len(groups) <= _SLICES:
            found |= {f"{dimension}: {name}": own for name, own in groups.items() if len(own) >= _SMALLEST_SLICE}
    return found


def _figures(
    desk: Desk, one: Built, raced: Raced, named: Mapping[str, Sequence[int]], against: str, difference: Difference | None
) -> ArmFigures:
    evaluation, metric = raced.evaluations[one.arm.name], desk.metric
    scores, n = evaluation.scores(metric.name), len(evaluation.rows)
    variant, undeployable = variant_of(desk, one)
    return ArmFigures(
        name=one.arm.name,
        kind=one.arm.kind,
        about=KINDS[one.arm.kind].about,
        base=one.arm.base,
        rows=n,
        value=evaluation.values[metric.name],
        interval=estimate(metric, scores, {row.id: raced.clusters[row.id] for row in raced.rows[:n]}),
        values=evaluation.values,
        slices={name: metric.value([scores[i] for i in own if i < n]) for name, own in named.items()},
        tokens_per_request=(evaluation.prompt_tokens + evaluation.completion_tokens) / n,
        prompt_tokens=evaluation.prompt_tokens,
        completion_tokens=evaluation.completion_tokens,
        choices=one.choices,
        variant=variant,
        undeployable=undeployable,
        failed=evaluation.failed,
        missing=evaluation.missing[metric.name],
        dropped=raced.dropped.get(one.arm.name, ""),
        against=against,
        difference=difference,
    )


def as_json(figures: Sequence[ArmFigures], upkeeps: Mapping[str, Upkeep]) -> list[dict[str, Any]]:
    """The figures as plain numbers, each arm's upkeep beside them."""
    return [
        {**msgspec.to_builtins(msgspec.structs.asdict(upkeeps[one.name])), **msgspec.to_builtins(msgspec.structs.asdict(one))}
        for one in figures
    ]
