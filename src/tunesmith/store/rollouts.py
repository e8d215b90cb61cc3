"""Rollouts and what the log of requests says of them, counted in the database; knows nothing about what is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from tunesmith.core.deployment import Deployment, StrategyName, Variant
from tunesmith.core.errors import UsageError
from tunesmith.core.rollout import OPEN, QUANTILES, Counts, Rollout
from tunesmith.core.types import Record
from tunesmith.store.deployments import put_version
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import feedback, quality_scores, rollouts
from tunesmith.store.tables import interactions as log

LONGEST_S = 900.0  # a request that took longer is in no count: so far back is looked for those that have just ended
_NEAR = 1e-6  # two shares that are the same
_RECENT = 500  # requests of the others that say what is usual
_ended = log.c.created + log.c.total_s
_FAILED = sa.or_(log.c.status >= 400, log.c.fallback.is_not(None))
_KEY = sa.func.coalesce(log.c.user_key, log.c.conversation, log.c.id)
_MEASURED = {"latency": log.c.total_s, "first_token": log.c.first_token_s, "cost": log.c.cost_usd, "tokens": log.c.completion_tokens}
assert set(_MEASURED) == set(QUANTILES)


class Changed(NamedTuple):
    """The version that a change of a rollout puts in force: its variants, their strategy and why."""

    variants: Sequence[Variant]
    strategy: StrategyName
    reason: str
    by: str


class Limit(NamedTuple):
    """What a guardrail on a quantile counts beyond: `others` of the others' requests, `canary` of the canary's."""

    measured: str
    others: float
    canary: float


class Side(NamedTuple):
    """One side's requests in one span of time: all, those that failed, and of each limit how many could be beyond it and how many were."""

    span: int
    canary: bool
    requests: int
    failed: int
    beyond: Mapping[str, tuple[int, int]]


class Answered(NamedTuple):
    """One answered request, as far as its form goes."""

    canary: bool
    ended: float
    key: str
    answer: str
    tool_calls: str
    finish_reason: str


class Spread(NamedTuple):
    """How one side's requests lie among users: requests, users, Σ n², bad ones, Σ bad²/n."""

    requests: float
    users: float
    squares: float
    bad: float
    bad_squares: float


class Affected(Record, frozen=True):
    """The requests that the canary was assigned, and those of them that it did not answer."""

    requests: int
    failed: int


class Rollouts:
    """The rollouts of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, rollout: Rollout, changed: Changed | None) -> Rollout:
        """Write a new rollout down, with its first version in force unless it waits. Raises UsageError where the alias has an open one, or
        was changed meanwhile."""
        with self._store.exclusive() as connection:
            if connection.dialect.name != "sqlite":
                connection.exec_driver_sql("LOCK TABLE rollouts IN SHARE ROW EXCLUSIVE MODE")
            there = sa.select(rollouts.c.id).where(rollouts.c.alias == rollout.alias, rollouts.c.status.in_(OPEN))
            if connection.execute(there).first() is not None:
                remedy = f"tunesmith deploy status {rollout.alias}, or tunesmith deploy abort {rollout.alias}"
                raise UsageError(f"'{rollout.alias}' has an open rollout", allowed="one at a time", remedy=remedy)
            if changed is not None:
                version = self._put(connection, rollout, changed, rollout.before).version
                rollout = msgspec.structs.replace(rollout, first=version, version=version)
            made = connection.execute(sa.insert(rollouts).values(**_row(rollout))).inserted_primary_key
        return msgspec.structs.replace(rollout, id=int(made[0]) if made else 0)

    def act(self, rollout: Rollout, changed: Changed | None = None) -> Rollout | None:
        """Write down how a rollout stands now, and put a version in force if it changes one; None where another server has changed the
        rollout since it was read, who then has done it. Raises UsageError where the alias has another version by now."""
        with self._store.exclusive() as connection:
            here = rollouts.c.id == rollout.id
            turn = connection.execute(sa.select(rollouts.c.turn).where(here).with_for_update()).scalar()
            if turn != rollout.turn:
                return None
            if changed is not None:
                made = self._put(connection, rollout, changed, rollout.version or rollout.before)
                rollout = msgspec.structs.replace(rollout, version=made.version, first=rollout.first or made.version)
            rollout = msgspec.structs.replace(rollout, turn=rollout.turn + 1)
            connection.execute(sa.update(rollouts).where(here).values(**_row(rollout)))
        return rollout

    def _put(self, connection: sa.Connection, rollout: Rollout, changed: Changed, after: int) -> Deployment:
        return put_version(
            connection,
            rollout.alias,
            changed.variants,
            strategy=changed.strategy,
            reason=changed.reason,
            by=changed.by,
            after=after,
        )

    def newest(self, alias: str) -> Rollout | None:
        """The newest rollout of an alias."""
        query = sa.select(rollouts).where(rollouts.c.alias == alias).order_by(rollouts.c.id.desc()).limit(1)
        with self._store.reading() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _rollout(row)

    def running(self) -> list[Rollout]:
        """Those that are looked at."""
        query = sa.select(rollouts).where(rollouts.c.status == "running").order_by(rollouts.c.id)
        with self._store.reading() as connection:
            return [_rollout(row) for row in connection.execute(query).mappings()]

    def sides(self, rollout: Rollout, since: float, until: float, span_s: float, limits: Mapping[str, Limit]) -> list[Side]:
        """The requests that ended after `since` and until `until`, counted by side and span of `span_s` seconds. Requests that somebody
        sent to a variant by its name are none of them."""
        canary = log.c.variant == rollout.canary
        columns: list[Any] = []
        for limit in limits.values():
            value, answered = _MEASURED[limit.measured], sa.not_(_FAILED)
            above = sa.or_(sa.and_(canary, value > limit.canary), sa.and_(sa.not_(canary), value > limit.others))
            columns += [_count(sa.and_(answered, value.is_not(None))), _count(sa.and_(answered, above))]
        span = self._floor((_ended - since) / span_s).label("span")
        side = sa.case((canary, 1), else_=0).label("side")
        query = sa.select(span, side, sa.func.count(), _count(_FAILED), *columns).where(*_of(rollout, since, until)).group_by(span, side)
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(span)).all()
        return [
            Side(
                int(row[0]),
                bool(row[1]),
                row[2],
                row[3],
                {name: (row[4 + 2 * i], row[5 + 2 * i]) for i, name in enumerate(limits)},
            )
            for row in rows
        ]

    def _floor(self, value: Any) -> Any:
        if self._store.engine.dialect.name == "sqlite":
            return sa.cast(value, sa.Integer)  # cuts off, and there is nothing below 0
        return sa.func.floor(value)

    def answers(self, rollout: Rollout, since: float, until: float, most: int) -> list[Answered]:
        """Answered requests of the same span, of each side the first `most`, in the order of their ends."""
        canary = log.c.variant == rollout.canary
        columns = (_ended.label("ended"), _KEY.label("key"), log.c.answer, log.c.tool_calls, log.c.finish_reason)
        found = []
        with self._store.reading() as connection:
            for own in (True, False):
                where = [*_of(rollout, since, until), sa.not_(_FAILED), canary if own else sa.not_(canary)]
                for row in connection.execute(sa.select(*columns).where(*where).order_by(_ended).limit(most)):
                    found.append(Answered(own, row.ended, row.key, row.answer, row.tool_calls, row.finish_reason))
        return sorted(found, key=lambda each: each.ended)

    def rated(
        self, rollout: Rollout, since: float, until: float, span_s: float, kind: str, name: str
    ) -> list[tuple[int, bool, int, float]]:
        """The ratings that came in after `since` and until `until` of requests of the rollout, whenever these were: (span, whether of the
        canary, how many ratings, the sum of 1 - value), values below 0 and above 1 taken as these."""
        if kind == "quality":
            came, number, interaction = quality_scores.c.scored, quality_scores.c.value, quality_scores.c.interaction
            where = [quality_scores.c.metric == name, quality_scores.c.alias == rollout.alias, quality_scores.c.golden.is_(False)]
        else:
            came, number, interaction = feedback.c.received, feedback.c.number, feedback.c.interaction
            where = [feedback.c.kind == kind, *([feedback.c.name == name] if name else [])]
        span = self._floor((came - since) / span_s).label("span")
        side = sa.case((log.c.variant == rollout.canary, 1), else_=0).label("side")
        bad = sa.func.sum(sa.case((number < 0, 1.0), (number > 1, 0.0), else_=1.0 - number))
        where += [came > since, came <= until, number.is_not(None), *_in(rollout, rollout.step + 1)]
        query = sa.select(span, side, sa.func.count(), bad).where(*where).group_by(span, side)
        with self._store.reading() as connection:
            rows = connection.execute(query.join_from(interaction.table, log, interaction == log.c.id)).all()
        return [(int(row[0]), bool(row[1]), row[2], float(row[3])) for row in rows]

    def usual_answers(self, rollout: Rollout, until: float, most: int) -> list[str]:
        """The newest answers of the others, whose words are their whole: no calls of tools."""
        where = [*_others(rollout, until), sa.not_(_FAILED), log.c.tool_calls == "[]"]
        query = sa.select(log.c.answer).where(*where).order_by(log.c.created.desc()).limit(most)
        with self._store.reading() as connection:
            return list(connection.execute(query).scalars())

    def usual_failures(self, rollout: Rollout, until: float) -> tuple[int, int]:
        """(requests, failed ones) of the newest of the others."""
        newest = sa.select(_FAILED.label("failed")).where(*_others(rollout, until)).order_by(log.c.created.desc()).limit(_RECENT).subquery()
        with self._store.reading() as connection:
            row = connection.execute(sa.select(sa.func.count(), _count(newest.c.failed))).one()
        return row[0], row[1]

    def usual_quantile(self, rollout: Rollout, measured: str, quantile: float, until: float, least: int) -> float | None:
        """The quantile of what is `measured` of the others' newest answered requests; None where fewer than `least` are known."""
        column = _MEASURED[measured]
        where = [*_others(rollout, until), sa.not_(_FAILED), column.is_not(None)]
        newest = sa.select(column.label("value")).where(*where).order_by(log.c.created.desc()).limit(_RECENT)
        with self._store.reading() as connection:
            values = sorted(connection.execute(newest).scalars())
        return float(values[int(quantile * (len(values) - 1))]) if len(values) >= least else None

    def spreads(self, rollout: Rollout, until: float, limit: Limit | None) -> tuple[Spread, Spread]:
        """How (the canary's, the others') requests since the rollout began lie among users; bad ones are those beyond the limit, without
        one those that failed."""
        users = self._users(rollout, rollout.created, until, limit)
        n, bad = users.c.n, users.c.bad
        sums = (sa.func.sum(n), sa.func.count(), sa.func.sum(n * n), sa.func.sum(bad), sa.func.sum(bad * bad * 1.0 / n))
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(users.c.side, *sums).group_by(users.c.side)).all()
        sides = {row[0]: Spread(*map(float, row[1:])) for row in rows}
        return sides.get(1, Spread(0, 0, 0, 0, 0)), sides.get(0, Spread(0, 0, 0, 0, 0))

    def weighted(self, rollout: Rollout, since: float, until: float, limit: Limit | None, correlation: float) -> Counts:
        """The counts of that time, each user's requests worth n/(1 + (n − 1)·correlation) in all."""
        users = self._users(rollout, since, until, limit)
        weight = 1.0 / (1.0 + (users.c.n - 1) * correlation)
        sums = (sa.func.sum(users.c.n * weight), sa.func.sum(users.c.bad * weight))
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(users.c.side, *sums).group_by(users.c.side)).all()
        sides = {row[0]: (float(row[1]), float(row[2])) for row in rows}
        return (*sides.get(1, (0.0, 0.0)), *sides.get(0, (0.0, 0.0)))

    def _users(self, rollout: Rollout, since: float, until: float, limit: Limit | None) -> sa.Subquery:
        """Of each side and user how many requests, and how many bad ones."""
        canary = log.c.variant == rollout.canary
        bad, where = _FAILED, _of(rollout, since, until, rollout.step + 1)
        if limit is not None:
            value = _MEASURED[limit.measured]
            bad = sa.or_(sa.and_(canary, value > limit.canary), sa.and_(sa.not_(canary), value > limit.others))
            where = [*where, sa.not_(_FAILED), value.is_not(None)]
        side = sa.case((canary, 1), else_=0).label("side")
        return sa.select(side, sa.func.count().label("n"), _count(bad).label("bad")).where(*where).group_by(side, _KEY).subquery()

    def affected(self, rollout: Rollout) -> Affected:
        """What the rollout did to requests, from the log."""
        where = [log.c.alias == rollout.alias, log.c.variant == rollout.canary, log.c.created >= rollout.created]
        where += [log.c.deployment >= rollout.first] + ([log.c.created <= rollout.ended + LONGEST_S] if rollout.ended else [])
        with self._store.reading() as connection:
            row = connection.execute(sa.select(sa.func.count(), _count(_FAILED)).where(*where)).one()
        return Affected(requests=row[0], failed=row[1])


def _count(condition: Any) -> Any:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def _of(rollout: Rollout, since: float, until: float, steps: int = 1) -> list[sa.ColumnElement[bool]]:
    """The requests of a rollout that ended in that time."""
    times = [log.c.created > since - LONGEST_S, log.c.created <= until, _ended > since, _ended <= until]
    return [*_in(rollout, steps), *times]


def _in(rollout: Rollout, steps: int) -> list[sa.ColumnElement[bool]]:
    """The requests that a rollout assigned, to the canary or to the others, in its last `steps` steps. A conversation stays where it was
    assigned, so those that began before a step lie more often with the others than the step has it, and they are the longer ones: only
    requests that were drawn with the same shares can be compared."""
    table, rest = log.c, sum(variant.weight for variant in rollout.variants if variant.name != rollout.canary)
    drawn = []
    for share in rollout.plan.steps[max(0, rollout.step + 1 - steps) : rollout.step + 1]:
        for variant in rollout.variants:
            own = share if variant.name == rollout.canary else variant.weight / rest * (1 - share)
            drawn.append(sa.and_(table.variant == variant.name, table.propensity > own - _NEAR, table.propensity < own + _NEAR))
    return [table.alias == rollout.alias, table.deployment >= rollout.first, sa.or_(*drawn)]


def _others(rollout: Rollout, until: float) -> list[sa.ColumnElement[bool]]:
    names = [variant.name for variant in rollout.variants if variant.name != rollout.canary]
    return [log.c.alias == rollout.alias, log.c.variant.in_(names), log.c.created <= until, log.c.deployment.is_not(None)]


def _row(rollout: Rollout) -> dict[str, Any]:
    """The rollout as its row, without the number that the database gives."""
    tree: dict[str, Any] = {name: getattr(rollout, name) for name in rollout.__struct_fields__ if name != "id"}
    return tree | {name: msgspec.to_builtins(tree[name]) for name in ("plan", "variants", "state")}


def _rollout(row: Row) -> Rollout:
    return msgspec.convert({str(key): value for key, value in row.items()}, Rollout)
