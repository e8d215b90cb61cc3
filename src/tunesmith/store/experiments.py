"""Experiments and their verdicts; knows nothing about how they are judged."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tunesmith.core.deployment import Enrolment, Variant
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.experiment import Experiment, ExperimentMetric, ExperimentPlan, Verdict
from tunesmith.core.identity import IdentityReference
from tunesmith.store.deployments import put_version
from tunesmith.store.experiment_sums import UNIT, ArmSums, arm_sums, pair_sums, traffic_sums
from tunesmith.store.identities import keep_references
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import experiments, verdicts
from tunesmith.store.tables import interactions as log

_OPEN = experiments.c.stopped.is_(None)


class Assignment(NamedTuple):
    """The version of a deployment that an experiment draws users with: its variants, how it draws, why ({id}: of the experiment), the
    version that must be in force until then, and what the variants' weights answer to probes."""

    variants: Sequence[Variant]
    strategy: str
    reason: str
    after: int
    references: Mapping[str, IdentityReference]


class Experiments:
    """The experiments of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(
        self, alias: str, plan: ExperimentPlan, *, layer: str, share: float, reason: str, by: str,
        assigning: Assignment | None = None,
    ) -> Experiment:  # fmt: skip
        """Begin an experiment on a free part of its layer, as large as `share`. What draws its users comes in force in the
        same transaction: a kill leaves both or neither. Without it nobody is assigned.

        Raises UsageError where the alias has one that runs, the layer has no such part, or another version has come in between.
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
            if assigning is not None:
                enrolment = Enrolment(experiment=row["id"], layer=layer, low=low, high=row["high"], baseline=plan.asks_baseline)
                keep_references(connection, dict(assigning.references))
                why = assigning.reason.replace("{id}", row["id"])
                version = put_version(
                    connection, alias, assigning.variants, strategy=assigning.strategy, reason=why, by=by, after=assigning.after,
                    enrolment=enrolment,
                )  # fmt: skip
                row["deployment"] = version.version
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

    def listed(self) -> list[Experiment]:
        """All, the newest first."""
        with self._store.reading() as connection:
            return [_experiment(row) for row in connection.execute(sa.select(experiments).order_by(experiments.c.seq.desc())).mappings()]

    def close(self, number: str, outcome: str) -> None:
        """End an experiment. Raises UsageError where it has ended."""
        ended = sa.update(experiments).where(experiments.c.id == number, _OPEN).values(stopped=time.time(), outcome=outcome)
        with self._store.writing() as connection:
            if not connection.execute(ended).rowcount:
                raise UsageError(f"the experiment {number} has ended already", allowed="one that runs")

    def add(self, number: str, fresh: Sequence[Verdict]) -> None:
        """Write verdicts of an experiment down; what somebody else who looked at the same moment has written is not written again."""
        if not fresh:
            return
        with self._store.exclusive() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("LOCK TABLE verdicts IN SHARE ROW EXCLUSIVE MODE")
            said = _said(connection, number)
            new = [each for each in fresh if not _told(each, [other for other in said if other.metric == each.metric])]
            if new:
                connection.execute(sa.insert(verdicts), [msgspec.to_builtins(each) | {"look": each.look} for each in new])

    def said(self, number: str) -> list[Verdict]:
        """Every verdict of an experiment, oldest first."""
        with self._store.reading() as connection:
            return _said(connection, number)

    def units(self, number: str) -> dict[str, tuple[int, int]]:
        """(units, requests) of each variant that was drawn."""
        query = sa.select(log.c.variant, sa.func.count(sa.distinct(UNIT)), sa.func.count()).where(log.c.experiment == number)
        with self._store.reading() as connection:
            return {row[0]: (row[1], row[2]) for row in connection.execute(query.group_by(log.c.variant))}

    def mixed(self, number: str) -> int:
        """How many units have requests in both arms: who changed names on the way."""
        arms = sa.select(UNIT.label("who")).where(log.c.experiment == number).group_by(sa.literal_column("who"))
        several = arms.having(sa.func.count(sa.distinct(log.c.variant)) > 1).subquery("several")
        with self._store.reading() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(several)).scalar() or 0)

    def sums(self, experiment: Experiment, metrics: Sequence[ExperimentMetric], *, by: str | None = None) -> list[ArmSums]:
        """The sums of each metric in each arm (and each part of a slice `by` which requests are told apart)."""
        with self._store.reading() as connection:
            return [each for metric in metrics for each in arm_sums(connection, experiment, metric, by)]

    def traffic(self, alias: str, metric: ExperimentMetric, since: float) -> tuple[ArmSums | None, float | None]:
        """The sums of a metric over everything that was asked of a deployed name since then, and when the first of it came."""
        with self._store.reading() as connection:
            return traffic_sums(connection, alias, metric, since)

    def pair_sums(self, experiment: Experiment, metric: ExperimentMetric) -> list[ArmSums]:
        """The sums of a metric over pairs of answers."""
        with self._store.reading() as connection:
            return pair_sums(connection, experiment, metric)


def _said(connection: sa.Connection, number: str) -> list[Verdict]:
    columns = [column for column in verdicts.columns if column.name != "seq"]
    query = sa.select(*columns).where(verdicts.c.experiment == number).order_by(verdicts.c.seq)
    return [msgspec.convert({str(key): value for key, value in row.items()}, Verdict) for row in connection.execute(query).mappings()]


def _told(fresh: Verdict, said: Sequence[Verdict]) -> bool:
    """Whether a verdict repeats the last one on its metric, or a counted look is no further on the way than one that is there."""
    way = fresh.look.get("time")
    if way is not None:
        return any((each.look.get("time") or 0.0) >= way for each in said)
    return bool(said) and said[-1].verdict == fresh.verdict


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
