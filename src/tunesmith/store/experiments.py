"""Experiments, their verdicts, and the sums over users that they are judged by, added up in the database; knows nothing about how.

Each request counts for the variant that it was assigned, whoever answered it in the end. A unit is a user, else a conversation, else a
request. What was said of an answer is joined by its id, however late it comes; of several words the last counts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec.structs import replace

from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.experiment import Experiment, ExperimentMetric, ExperimentPlan, Verdict
from tunesmith.core.types import Record
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import experiments, feedback, shadow_answers, verdicts
from tunesmith.store.tables import interactions as log

_OPEN = experiments.c.stopped.is_(None)
_ASKED = log.alias("asked")
_UNIT = sa.func.coalesce(log.c.user_key, log.c.conversation, log.c.id)
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


class ArmSums(Record, frozen=True):
    """Of one metric in one arm: `values` as `deploy.experiment.SUMS` names them, and whether every request's value is between 0 and 1;
    `first` is when the first of its requests came, where that was asked for."""

    metric: str
    variant: str
    values: tuple[float, ...]
    unit_scale: bool = False
    slice: str = ""
    first: float | None = None


class Experiments:
    """The experiments of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, alias: str, plan: ExperimentPlan, *, layer: str, share: float, reason: str, by: str) -> Experiment:
        """Begin an experiment on a free part of its layer, as large as `share`; nobody is assigned yet (`assigned_by`).

        Raises UsageError where the alias has one that runs, or the layer has no such part.
        """
        with self._store.exclusive() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("LOCK TABLE experiments IN SHARE ROW EXCLUSIVE MODE")
            taken = [_experiment(row) for row in connection.execute(sa.select(experiments).where(_OPEN)).mappings()]
            for other in taken:
                if other.alias == alias:
                    raise UsageError(
                        f"'{alias}' is under the experiment {other.id} ({other.plan.treatment} against {other.plan.control})",
                        allowed="one experiment on an alias", remedy=f"tunesmith ab stop {alias} --keep, or --promote VARIANT",
                    )  # fmt: skip
            low = _free([(other.low, other.high) for other in taken if other.layer == layer], share)
            if low is None:
                names = ", ".join(f"'{other.alias}' {other.low:g} to {other.high:g}" for other in taken if other.layer == layer)
                raise UsageError(
                    f"the layer '{layer}' has no free part of {share:g}: {names}",
                    allowed="experiments of a layer share its users", remedy="--enrol with a smaller share, or another --layer",
                )  # fmt: skip
            row: dict[str, Any] = {"id": f"exp_{secrets.token_hex(8)}", "created": time.time(), "alias": alias, "layer": layer, "low": low}
            row |= {"high": round(low + share, 4), "plan": msgspec.to_builtins(plan), "reason": reason, "by": by, "outcome": ""}
            connection.execute(sa.insert(experiments).values(**row))
        return self.find(row["id"])

    def find(self, number: str) -> Experiment:
        """The experiment with that id. Raises NotFound."""
        with self._store.reading() as connection:
            row = connection.execute(sa.select(experiments).where(experiments.c.id == number)).mappings().first()
        if row is None:
            raise NotFound(f"no experiment '{number}'", remedy="tunesmith ab status ALIAS")
        return _experiment(row)

    def of(self, alias: str) -> list[Experiment]:
        """All of an alias, the newest first."""
        query = sa.select(experiments).where(experiments.c.alias == alias).order_by(experiments.c.seq.desc())
        with self._store.reading() as connection:
            return [_experiment(row) for row in connection.execute(query).mappings()]

    def assigned_by(self, number: str, version: int) -> None:
        """Note which version of the deployment assigns."""
        with self._store.writing() as connection:
            connection.execute(sa.update(experiments).where(experiments.c.id == number).values(deployment=version))

    def drop(self, number: str) -> None:
        """Forget an experiment that never assigned anybody."""
        with self._store.writing() as connection:
            connection.execute(sa.delete(experiments).where(experiments.c.id == number, experiments.c.deployment.is_(None)))

    def close(self, number: str, outcome: str) -> None:
        """End an experiment. Raises UsageError where it has ended."""
        ended = sa.update(experiments).where(experiments.c.id == number, _OPEN).values(stopped=time.time(), outcome=outcome)
        with self._store.writing() as connection:
            if not connection.execute(ended).rowcount:
                raise UsageError(f"the experiment {number} has ended already", allowed="one that runs")

    def add(self, said: Sequence[Verdict]) -> None:
        """Write verdicts down."""
        if said:
            with self._store.writing() as connection:
                connection.execute(sa.insert(verdicts), [msgspec.to_builtins(each) | {"look": each.look} for each in said])

    def said(self, number: str) -> list[Verdict]:
        """Every verdict of an experiment, oldest first."""
        columns = [column for column in verdicts.columns if column.name != "seq"]
        query = sa.select(*columns).where(verdicts.c.experiment == number).order_by(verdicts.c.seq)
        with self._store.reading() as connection:
            return [
                msgspec.convert({str(key): value for key, value in row.items()}, Verdict) for row in connection.execute(query).mappings()
            ]

    def units(self, number: str) -> dict[str, tuple[int, int]]:
        """(units, requests) of each variant that was drawn."""
        query = sa.select(log.c.variant, sa.func.count(sa.distinct(_UNIT)), sa.func.count()).where(log.c.experiment == number)
        with self._store.reading() as connection:
            return {row[0]: (row[1], row[2]) for row in connection.execute(query.group_by(log.c.variant))}

    def mixed(self, number: str) -> int:
        """How many units have requests in both arms: who changed names on the way."""
        arms = sa.select(_UNIT.label("who")).where(log.c.experiment == number).group_by(sa.literal_column("who"))
        several = arms.having(sa.func.count(sa.distinct(log.c.variant)) > 1).subquery("several")
        with self._store.reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(several)).scalar() or 0)

    def sums(self, experiment: Experiment, metrics: Sequence[ExperimentMetric], *, by: str | None = None) -> list[ArmSums]:
        """The sums of each metric in each arm (and each part of a slice `by` which requests are told apart)."""
        known = self._covariate_mean(experiment, experiment.plan.covariate)
        with self._store.reading() as connection:
            return [each for metric in metrics for each in _summed(connection, experiment, metric, known, by)]

    def traffic(self, alias: str, metric: ExperimentMetric, since: float) -> ArmSums:
        """The sums of a metric over the units of everything that was asked of a name since then, whoever answered."""
        scope = sa.and_(_ASKED.c.alias == alias, _ASKED.c.created >= since)
        rows, value = _valued(log, metric, scope)
        where = (log.c.alias == alias, log.c.created >= since, log.c.deployment.is_not(None))
        with self._store.reading() as connection:
            of_all = _unit_sums(connection, rows, where, metric, value, sa.literal(0.0), sa.literal("all"), sa.literal(""))
            first = connection.execute(sa.select(sa.func.min(log.c.created)).where(*where)).scalar()
        return replace(of_all[0], first=first) if of_all else ArmSums(metric=metric.name, variant="all", values=(0.0,) * 11)

    def pair_sums(self, experiment: Experiment, metric: ExperimentMetric) -> list[ArmSums]:
        """Of pairs (answer, copy's answer): sums of the metric's differences and the judge's over pairs that have the metric (`labelled`),
        and of the judge's over the others (`others`)."""
        with self._store.reading() as connection:
            return _pair_sums(connection, experiment, metric)

    def _covariate_mean(self, experiment: Experiment, covariate: str | None) -> float:
        """What a request counts as whose covariate is not known: the mean of the others, so that it moves nothing."""
        if covariate is None or covariate == "earlier":
            return 0.0
        rows, value = _known(log, experiment, experiment.plan.primary, covariate)
        query = sa.select(sa.func.avg(value)).select_from(rows).where(log.c.experiment == experiment.id)
        with self._store.reading() as connection:
            return float(connection.execute(query).scalar() or 0.0)


def _experiment(row: Row) -> Experiment:
    return msgspec.convert({str(key): value for key, value in row.items() if key != "seq"}, Experiment)


def _free(taken: Sequence[tuple[float, float]], share: float) -> float | None:
    """Where the first free part of that size begins, in steps of 1/10,000 as keys are drawn."""
    begins = 0.0
    for low, high in sorted(taken):
        if low - begins >= share - 1e-9:
            return begins
        begins = max(begins, high)
    return begins if 1.0 - begins >= share - 1e-9 else None


def _last(kind: str, name: str, label: str, scope: Any) -> Any:
    """The last number that was said under a kind and a name of each request of a `scope`: a condition on the log under the name `asked`, so
    that no more of the feedback is read than is about them."""
    newest = sa.select(sa.func.max(feedback.c.seq).label("seq")).join(_ASKED, _ASKED.c.id == feedback.c.interaction)
    told = newest.where(scope, feedback.c.kind == kind, feedback.c.name == name, feedback.c.number.is_not(None))
    last = told.group_by(feedback.c.interaction).subquery(f"{label}_newest")
    return sa.select(feedback.c.interaction, feedback.c.number).join(last, last.c.seq == feedback.c.seq).subquery(label)


def _in_it(experiment: Experiment) -> Any:
    """The requests of an experiment, as a scope."""
    return _ASKED.c.experiment == experiment.id


def _valued(rows: Any, metric: ExperimentMetric, scope: Any) -> tuple[Any, Any]:
    """(the rows with what the metric needs, its value: NULL where it is not known)."""
    if metric.kind != "feedback":
        return rows, sa.cast(_VALUES[metric.name], sa.Float)
    words = _last(*metric.said, "said", scope)
    if metric.given:
        return rows.outerjoin(words, words.c.interaction == log.c.id), sa.case((words.c.number.is_not(None), 1.0), else_=0.0)
    value = words.c.number if metric.missing is None else sa.func.coalesce(words.c.number, metric.missing)
    return rows.outerjoin(words, words.c.interaction == log.c.id), value


def _known(rows: Any, experiment: Experiment, metric: ExperimentMetric, covariate: str | None) -> tuple[Any, Any]:
    """(rows with what the covariate needs, its value: NULL where it is not known)."""
    if covariate is None:
        return rows, sa.literal(0.0)
    if covariate == "prompt_tokens":
        return rows, sa.cast(log.c.prompt_tokens, sa.Float)
    if covariate == "earlier":
        before = _before(experiment, metric)
        return rows.outerjoin(before, before.c.unit == _UNIT), before.c.value
    kind, _, name = covariate.partition(":")
    words = _last(kind, name, "known", _in_it(experiment))
    return rows.outerjoin(words, words.c.interaction == log.c.id), words.c.number


def _before(experiment: Experiment, metric: ExperimentMetric) -> Any:
    """Each unit's mean of the metric before the experiment began, less the mean of all units, so that who is new counts as 0."""
    earlier = log.alias("earlier")
    unit = sa.func.coalesce(earlier.c.user_key, earlier.c.conversation, earlier.c.id)
    rows, value = _valued(log, metric, sa.and_(_ASKED.c.alias == experiment.alias, _ASKED.c.created < experiment.created))
    inner = sa.select(log.c.id.label("id"), value.label("value")).select_from(rows)
    valued = inner.where(log.c.alias == experiment.alias, log.c.created < experiment.created).subquery("valued")
    means = sa.select(unit.label("unit"), sa.func.avg(valued.c.value).label("value")).join(valued, valued.c.id == earlier.c.id)
    each = means.where(valued.c.value.is_not(None)).group_by(unit).subquery("each_unit")
    middle = sa.select(sa.func.avg(each.c.value)).scalar_subquery()
    return sa.select(each.c.unit, (each.c.value - middle).label("value")).subquery("before")


def _summed(connection: sa.Connection, experiment: Experiment, metric: ExperimentMetric, middle: float, by: str | None) -> list[ArmSums]:
    rows, value = _valued(log, metric, _in_it(experiment))
    rows, known = _known(rows, experiment, metric, experiment.plan.covariate if metric.kind != "event" else None)
    part = _SLICES[by] if by is not None else sa.literal("")
    where = (log.c.experiment == experiment.id,)
    return _unit_sums(connection, rows, where, metric, value, sa.func.coalesce(known, middle), log.c.variant, part)


def _unit_sums(
    connection: sa.Connection, rows: Any, where: tuple[Any, ...], metric: ExperimentMetric, value: Any, known: Any, arm: Any, part: Any
) -> list[ArmSums]:
    counted = value.is_not(None)
    outside = sa.case((sa.and_(counted, sa.or_(value < 0, value > 1)), 1), else_=0)
    columns = (
        arm.label("drawn"), part.label("slice"), _UNIT.label("who"),
        sa.func.sum(sa.case((counted, 1.0), else_=0.0)).label("m"),
        sa.func.sum(sa.func.coalesce(value, 0.0)).label("y"),
        sa.func.sum(sa.case((counted, known), else_=0.0)).label("x"),
        sa.func.max(outside).label("outside"),
    )  # fmt: skip
    groups: tuple[Any, ...] = tuple(sa.literal_column(name) for name in ("drawn", "slice", "who"))
    return _totals(connection, sa.select(*columns).select_from(rows).where(*where).group_by(*groups).subquery("units"), metric)


def _totals(connection: sa.Connection, unit: Any, metric: ExperimentMetric) -> list[ArmSums]:
    m, y, x = unit.c.m, unit.c.y, unit.c.x
    counts = [sa.func.sum(sa.case((condition, 1.0), else_=0.0)) for condition in (m > 0, y != 0)]
    sums = [sa.func.sum(product) for product in (m, y, x, m * m, m * y, m * x, y * y, y * x, x * x)]
    query = sa.select(unit.c.drawn, unit.c.slice, sa.func.max(unit.c.outside), counts[0], *sums, counts[1])
    return [
        ArmSums(
            metric=metric.name,
            variant=row[0],
            slice=str(row[1]),
            unit_scale=not row[2],
            values=tuple(float(each or 0.0) for each in row[3:]),
        )
        for row in connection.execute(query.group_by(unit.c.drawn, unit.c.slice))
    ]


def _pair_sums(connection: sa.Connection, experiment: Experiment, metric: ExperimentMetric) -> list[ArmSums]:
    plan = experiment.plan
    rows = log.join(shadow_answers, sa.and_(shadow_answers.c.interaction == log.c.id, shadow_answers.c.variant == plan.treatment))
    if metric.kind == "amount":
        difference = sa.cast(shadow_answers.c[_COPIED[metric.name]], sa.Float) - _VALUES[metric.name]
    else:
        rows, difference = _scored_pair(rows, *metric.said, experiment, "said")
    judged: Any = sa.literal(0.0)
    if plan.judge is not None:
        kind, _, name = plan.judge.partition(":")
        rows, judged = _scored_pair(rows, kind, name, experiment, "judged")
    counted = difference.is_not(None) if plan.judge is None else judged.is_not(None)
    arm = sa.case((difference.is_not(None), "labelled"), else_="others")
    inner = sa.select(
        arm.label("drawn"), sa.literal("").label("slice"), _UNIT.label("who"), sa.func.count().label("m"),
        sa.func.sum(sa.func.coalesce(difference, 0.0)).label("y"), sa.func.sum(sa.func.coalesce(judged, 0.0)).label("x"),
        sa.func.max(sa.literal(0)).label("outside"),
    ).select_from(rows).where(
        log.c.experiment == experiment.id, shadow_answers.c.skipped == "", shadow_answers.c.error == "", log.c.status < 400, counted
    )  # fmt: skip
    units = inner.group_by(sa.literal_column("drawn"), sa.literal_column("who")).subquery("units")
    return _totals(connection, units, metric)


def _scored_pair(rows: Any, kind: str, name: str, experiment: Experiment, label: str) -> tuple[Any, Any]:
    """The rows with both answers' numbers, and their difference: `NAME@VARIANT` is what was said of a copy's answer."""
    scope = _in_it(experiment)
    shown = _last(kind, name, f"{label}_shown", scope)
    copied = _last(kind, f"{name}@{experiment.plan.treatment}", f"{label}_copied", scope)
    joined = rows.outerjoin(shown, shown.c.interaction == log.c.id).outerjoin(copied, copied.c.interaction == log.c.id)
    return joined, copied.c.number - shown.c.number
