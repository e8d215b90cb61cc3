"""The sums over users that an experiment is judged by, added up in the database; knows nothing about how it is judged.

Each request counts for the variant that it was assigned, whoever answered it in the end. A unit is a user, else a conversation, else a
request. What was said of an answer is looked up by its id, however late it came; of several words the last counts. Every request's values
are looked up once (`offset(0)` keeps the database from putting the look-up into each sum that uses it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.core.experiment import JUDGED, Experiment, ExperimentMetric
from tunesmith.core.types import Record
from tunesmith.store.tables import feedback, quality_scores, shadow_answers
from tunesmith.store.tables import interactions as log

UNIT = sa.func.coalesce(sa.func.nullif(log.c.user_key, ""), sa.func.nullif(log.c.conversation, ""), log.c.id)
_FAILED = sa.or_(log.c.status >= 500, log.c.fallback.is_not(None))
_VALUES: dict[str, Any] = {
    "errors": sa.case((_FAILED, 1.0), else_=0.0),
    "fallbacks": sa.case((log.c.fallback.is_not(None), 1.0), else_=0.0),
    "cut": sa.case((log.c.finish_reason == "length", 1.0), else_=0.0),
    "latency": log.c.total_s,
    "first_token": log.c.first_token_s,
    "tokens": log.c.completion_tokens,
    "cost": log.c.cost_usd,
}
_COPIED = {"latency": "total_s", "tokens": "completion_tokens"}
_SLICES: dict[str, Any] = {
    "project": log.c.project,
    "endpoint": log.c.endpoint,
    "prompt": sa.case((log.c.prompt_tokens < 200, "< 200 tokens"), (log.c.prompt_tokens < 2000, "200 to 1999"), else_="2000 and more"),
}
SLICES = tuple(_SLICES)
LABELLED, OTHERS = "labelled", "others"


class ArmSums(Record, frozen=True):
    """Of one metric in one arm: `values` as `deploy.experiment.SUMS` names them, and whether every request's value is between 0 and 1."""

    metric: str
    variant: str
    values: tuple[float, ...]
    unit_scale: bool = False
    slice: str = ""


def arm_sums(connection: sa.Connection, experiment: Experiment, metric: ExperimentMetric, by: str | None = None) -> list[ArmSums]:
    """The sums of a metric in each arm, and in each part of a slice `by` which requests are told apart."""
    covariate = experiment.plan.covariate if metric.kind != "event" else None
    rows, known = _known(experiment, metric, covariate)
    where = (log.c.experiment == experiment.id,)
    middle = 0.0
    if covariate is not None:  # who has no covariate counts as the mean of the others, which moves nothing
        middle = float(connection.execute(sa.select(sa.func.avg(known)).select_from(rows).where(*where)).scalar() or 0.0)
    part = _SLICES[by] if by is not None else sa.literal("")
    return _summed(connection, metric, rows, where, (log.c.variant, part, _value(metric), sa.func.coalesce(known, middle)))


def traffic_sums(connection: sa.Connection, alias: str, metric: ExperimentMetric, since: float) -> tuple[ArmSums | None, float | None]:
    """The sums of a metric over all that was asked of a deployed name since then, whoever answered, and when the first of it came."""
    where = (log.c.alias == alias, log.c.created >= since, log.c.deployment.is_not(None))
    sums = _summed(connection, metric, log, where, (sa.literal("all"), sa.literal(""), _value(metric), sa.literal(0.0)))
    first = connection.execute(sa.select(sa.func.min(log.c.created)).where(*where)).scalar()
    return (sums[0] if sums else None), first


def pair_sums(connection: sa.Connection, experiment: Experiment, metric: ExperimentMetric) -> list[ArmSums]:
    """Of pairs (answer, copy's answer): the sums of the metric's differences and the judge's over pairs that have the metric (`LABELLED`),
    and of the judge's over the others (`OTHERS`)."""
    plan = experiment.plan
    pair = sa.and_(shadow_answers.c.interaction == log.c.id, shadow_answers.c.variant == plan.treatment)
    whole = (shadow_answers.c.skipped == "", shadow_answers.c.error == "", log.c.status < 400, log.c.experiment == experiment.id)
    judged: Any = sa.literal(0.0)
    if metric.kind == "amount":
        difference = sa.cast(shadow_answers.c[_COPIED[metric.name]], sa.Float) - _VALUES[metric.name]
    else:
        difference = _scored(*metric.said, plan.treatment)
    if plan.judge is not None:
        kind, _, name = plan.judge.partition(":")
        judged = _scored(kind, name, plan.treatment)
    columns = (UNIT.label("who"), difference.label("value"), judged.label("known"))
    pairs = sa.select(*columns).select_from(log.join(shadow_answers, pair)).where(*whole).offset(0).subquery("pairs")
    counted = pairs.c.value.is_not(None) if plan.judge is None else pairs.c.known.is_not(None)
    arm = sa.case((pairs.c.value.is_not(None), LABELLED), else_=OTHERS)
    inner = sa.select(
        arm.label("drawn"), sa.literal("").label("part"), pairs.c.who, sa.func.count().label("m"),
        sa.func.sum(sa.func.coalesce(pairs.c.value, 0.0)).label("y"), sa.func.sum(pairs.c.known).label("x"),
        sa.func.max(sa.literal(0)).label("outside"),
    )  # fmt: skip
    return _totals(connection, inner.where(counted).group_by(sa.literal_column("drawn"), pairs.c.who), metric)


def _said(kind: str, name: str) -> Any:
    """The last number that was said of a request under a kind and a name, or scored (`quality`, `judged`); NULL where none was."""
    if kind in ("quality", JUDGED):
        name = name if kind == "quality" else f"{JUDGED}:{name}"
        scores = sa.select(quality_scores.c.value).where(quality_scores.c.interaction == log.c.id, quality_scores.c.metric == name)
        last = scores.where(quality_scores.c.value.is_not(None)).order_by(quality_scores.c.scored.desc()).limit(1)
        return last.correlate(log).scalar_subquery()
    words = sa.select(feedback.c.number).where(feedback.c.interaction == log.c.id, feedback.c.kind == kind, feedback.c.name == name)
    last = words.where(feedback.c.number.is_not(None)).order_by(feedback.c.seq.desc()).limit(1)
    return last.correlate(log).scalar_subquery()


def _scored(kind: str, name: str, treatment: str) -> Any:
    """The difference of both answers' numbers: `NAME@VARIANT` is what was said of a copy's answer."""
    return _said(kind, f"{name}@{treatment}") - _said(kind, name)


def _value(metric: ExperimentMetric) -> Any:
    """A metric's value of a request: NULL where it is not known."""
    if metric.kind != "feedback":
        return sa.cast(_VALUES[metric.name], sa.Float)
    number = _said(*metric.said)
    if metric.given:
        return sa.case((number.is_not(None), 1.0), else_=0.0)
    return number if metric.missing is None else sa.func.coalesce(number, metric.missing)


def _known(experiment: Experiment, metric: ExperimentMetric, covariate: str | None) -> tuple[Any, Any]:
    """(the log with what the covariate needs, its value: NULL where it is not known)."""
    if covariate is None:
        return log, sa.literal(0.0)
    if covariate == "prompt_tokens":
        return log, sa.cast(log.c.prompt_tokens, sa.Float)
    if covariate != "earlier":
        kind, _, name = covariate.partition(":")
        return log, _said(kind, name)
    where = (log.c.alias == experiment.alias, log.c.created < experiment.created)
    earlier = sa.select(UNIT.label("who"), _value(metric).label("value")).where(*where).offset(0).subquery("earlier")
    means = sa.select(earlier.c.who.label("earlier_who"), sa.func.avg(earlier.c.value).label("mean"))
    before = means.where(earlier.c.value.is_not(None)).group_by(earlier.c.who).subquery("before")
    return log.outerjoin(before, before.c.earlier_who == UNIT), before.c.mean


def _summed(
    connection: sa.Connection, metric: ExperimentMetric, rows: Any, where: Sequence[Any], columns: tuple[Any, ...]
) -> list[ArmSums]:
    """Sums over units of (arm, part, value, covariate) of the rows that fit."""
    arm, part, value, known = columns
    valued = sa.select(arm.label("drawn"), part.label("part"), UNIT.label("who"), value.label("value"), known.label("known"))
    row = valued.select_from(rows).where(*where).offset(0).subquery("valued").c
    counted = row.value.is_not(None)
    inner = sa.select(
        row.drawn, row.part, row.who, sa.func.sum(sa.case((counted, 1.0), else_=0.0)).label("m"),
        sa.func.sum(sa.func.coalesce(row.value, 0.0)).label("y"), sa.func.sum(sa.case((counted, row.known), else_=0.0)).label("x"),
        sa.func.max(sa.case((sa.and_(counted, sa.or_(row.value < 0, row.value > 1)), 1), else_=0)).label("outside"),
    )  # fmt: skip
    return _totals(connection, inner.group_by(row.drawn, row.part, row.who), metric)


def _totals(connection: sa.Connection, units: sa.Select[Any], metric: ExperimentMetric) -> list[ArmSums]:
    unit = units.subquery("units").c
    m, y, x = unit.m, unit.y, unit.x
    counts = [sa.func.sum(sa.case((condition, 1.0), else_=0.0)) for condition in (m > 0, y != 0)]
    sums = [sa.func.sum(product) for product in (m, y, x, m * m, m * y, m * x, y * y, y * x, x * x)]
    query = sa.select(unit.drawn, unit.part, sa.func.max(unit.outside), counts[0], *sums, counts[1]).group_by(unit.drawn, unit.part)
    return [
        ArmSums(metric=metric.name, variant=row[0], slice=str(row[1]), unit_scale=not row[2], values=tuple(map(_number, row[3:])))
        for row in connection.execute(query)
    ]


def _number(value: Any) -> float:
    return float(value or 0.0)
