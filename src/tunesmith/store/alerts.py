"""Alerts: their state, what is to be told of them, and silences. A change of state and what is to be told of it are one transaction, so
that each is written once, whoever is killed when and however many servers look. Knows nothing about rules, nor how anything is sent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from tunesmith.store.paging import Row, new_id
from tunesmith.store.store import Store
from tunesmith.store.tables import alert_events, alert_silences, alert_states

_LEASE_S, _LONGEST_S, _GIVE_UP_S, _MOST = 60.0, 3_600.0, 86_400.0, 100


class AlertLog:
    """The alerts of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def states(self) -> dict[tuple[str, str], Row]:
        """What every alert is: (rule, alias) → its row."""
        with self._store.reading() as connection:
            return {(row["rule"], row["alias"]): row for row in connection.execute(sa.select(alert_states)).mappings()}

    def change(
        self,
        rule: str,
        alias: str,
        before: tuple[str, float] | None,
        after: str,
        value: float | None,
        tell: Mapping[str, Mapping[str, Any]],
        labels: Mapping[str, str],
    ) -> bool:
        """Put an alert from what it was (`state`, `since`; None: never looked at) to `after`, with what channels are to be told (channel →
        body). False where it is no longer what it was: another server was faster, and nothing is written."""
        try:
            return self._changed(rule, alias, before, after, value, tell, labels)
        except sa.exc.IntegrityError:  # the first look of two servers at once
            return False

    def _changed(
        self,
        rule: str,
        alias: str,
        before: tuple[str, float] | None,
        after: str,
        value: float | None,
        tell: Mapping[str, Mapping[str, Any]],
        labels: Mapping[str, str],
    ) -> bool:
        now = time.time()
        with self._store.exclusive() as connection:
            where = (alert_states.c.rule == rule, alert_states.c.alias == alias)
            query = sa.select(alert_states).where(*where)
            query = query if connection.dialect.name == "sqlite" else query.with_for_update()
            row = connection.execute(query).mappings().first()
            if (None if row is None else (row["state"], row["since"])) != before:
                return False
            values = {
                "state": after,
                "since": row["since"] if row is not None and row["state"] == after else now,
                "looked": now,
                "value": value,
            }
            if row is None:
                connection.execute(sa.insert(alert_states).values(rule=rule, alias=alias, **values))
            else:
                connection.execute(sa.update(alert_states).where(*where).values(**values))
            for channel, body in tell.items():
                kind = str(body["kind"])
                event = {"id": new_id("alert_"), "created": now, "rule": rule, "alias": alias, "kind": kind, "channel": channel, "due": now}
                event |= {"labels": dict(labels), "tries": 0, "outcome": ""}
                event["body"] = {**body, "id": event["id"], "at": now}
                connection.execute(sa.insert(alert_events).values(**event))
        return True

    def take_due(self) -> list[Row]:
        """What is to be told now, oldest first; nobody else gets it for a minute."""
        now = time.time()
        with self._store.exclusive() as connection:
            query = (
                sa.select(alert_events)
                .where(alert_events.c.done.is_(None), alert_events.c.due <= now)
                .order_by(alert_events.c.seq)
                .limit(_MOST)
            )
            query = query if connection.dialect.name == "sqlite" else query.with_for_update(skip_locked=True)
            rows = list(connection.execute(query).mappings())
            ids = [row["id"] for row in rows]
            if ids:
                connection.execute(sa.update(alert_events).where(alert_events.c.id.in_(ids)).values(due=now + _LEASE_S))
        return rows

    def told(self, row: Row, problem: str = "") -> None:
        """Record that a channel was told, or why not: then it is due again after a while that doubles; after a day it is given up."""
        now = time.time()
        over = not problem or now - row["created"] > _GIVE_UP_S
        values = {"done": now if over else None, "tries": row["tries"] + 1, "outcome": problem[:500] or "told"}
        self._update(row["id"], due=now + min(_LONGEST_S, 5.0 * 2.0 ** row["tries"]), **values)

    def wait(self, row: Row, until: float) -> None:
        """Leave it until a silence ends."""
        self._update(row["id"], due=until, outcome="silenced")

    def drop(self, row: Row) -> None:
        """It was over before its silence ended: nobody needs to be told."""
        self._update(row["id"], done=time.time(), outcome="silenced")

    def over(self, row: Row) -> bool:
        """Whether the alert that an event tells of has ended since, or the end that it tells of belongs to a beginning nobody was told."""
        table = alert_events.c
        same = (table.rule == row["rule"], table.alias == row["alias"], table.channel == row["channel"])
        with self._store.reading() as connection:
            if row["kind"] == "fired":
                return (
                    connection.execute(sa.select(table.seq).where(*same, table.kind == "resolved", table.seq > row["seq"])).first()
                    is not None
                )
            before = (
                sa.select(table.outcome).where(*same, table.kind == "fired", table.seq < row["seq"]).order_by(table.seq.desc()).limit(1)
            )
            return connection.execute(before).scalar() == "silenced"

    def events(self, limit: int = 50) -> list[Row]:
        """The last events, newest first."""
        with self._store.reading() as connection:
            return list(connection.execute(sa.select(alert_events).order_by(alert_events.c.seq.desc()).limit(limit)).mappings())

    def silence(self, labels: Mapping[str, str], until: float, *, reason: str, by: str) -> None:
        """Tell nobody of alerts with all of these labels until then."""
        values = {"created": time.time(), "until": until, "labels": dict(labels), "reason": reason, "by": by}
        with self._store.writing() as connection:
            connection.execute(sa.insert(alert_silences).values(**values))

    def end_silence(self, labels: Mapping[str, str]) -> int:
        """End the silences with exactly these labels; how many. What waited for their end is due now."""
        now = time.time()
        with self._store.exclusive() as connection:
            rows = list(connection.execute(sa.select(alert_silences).where(alert_silences.c.until > now)).mappings())
            ended = [row["seq"] for row in rows if row["labels"] == dict(labels)]
            connection.execute(sa.update(alert_silences).where(alert_silences.c.seq.in_(ended)).values(until=now))
            waiting = (alert_events.c.done.is_(None), alert_events.c.outcome == "silenced")
            connection.execute(sa.update(alert_events).where(*waiting).values(due=now))
        return len(ended)

    def silences(self) -> list[tuple[dict[str, str], float]]:
        """The silences in force: (labels, until)."""
        query = sa.select(alert_silences).where(alert_silences.c.until > time.time())
        with self._store.reading() as connection:
            return [(row["labels"], row["until"]) for row in connection.execute(query).mappings()]

    def _update(self, number: str, **values: Any) -> None:
        with self._store.writing() as connection:
            connection.execute(sa.update(alert_events).where(alert_events.c.id == number).values(**values))
