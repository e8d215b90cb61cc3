"""What was counted while requests were logged is what the log says, whoever wrote it, however often, and whatever failed meanwhile."""

from __future__ import annotations

import asyncio
import importlib
import random

import pytest
import sqlalchemy as sa

from tunesmith.core.errors import StoreError
from tunesmith.core.sketch import Sketch
from tunesmith.core.types import Interaction
from tunesmith.store import migrations
from tunesmith.store.counting import Count
from tunesmith.store.counts import counts, series, summed
from tunesmith.store.database import engine_of
from tunesmith.store.interactions import InteractionLog
from tunesmith.store.store import Store
from tunesmith.store.tables import interactions

DAY = 86_400.0
SUMS = ("requests", "answered", "failed", "left", "fallbacks", "prompt_tokens", "completion_tokens", "generated")


def rows(seed, many, first=20_000 * DAY + 3_000, length=3.5 * DAY):
    rng = random.Random(seed)
    for i in range(many):
        yield Interaction(
            id=f"r{seed}-{i}", created=first + rng.random() * length, alias=rng.choice("ab"), variant=rng.choice("vw"), messages=(), answer="",
            finish_reason="stop", prompt_tokens=rng.randrange(9), completion_tokens=rng.randrange(9), first_token_s=rng.lognormvariate(-2, 1),
            total_s=rng.lognormvariate(0, 1), status=rng.choice([200, 200, 200, 400, 499, 503]), project=rng.choice(["", "p"]),
            deployment=rng.choice([None, 3, 4]), cost_usd=rng.choice([None, 0.25]), fallback=rng.choice([None, None, "w"]),
        )  # fmt: skip


def write(log, some):
    async def all_rows():
        return await asyncio.gather(*(log.write(row) for row in some), return_exceptions=True)

    return asyncio.run(all_rows())


def same(count: Count, mine):
    by_hand = Count()
    for row in mine:
        by_hand.add(row)
    assert [getattr(count, name) for name in SUMS] == [getattr(by_hand, name) for name in SUMS]
    assert (count.seconds, count.cost_usd, count.last) == (pytest.approx(by_hand.seconds), by_hand.cost_usd, by_hand.last)
    assert count.total_s.buckets == by_hand.total_s.buckets
    assert count.first_token_s.buckets == by_hand.first_token_s.buckets


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """(a store, its rows), written by two processes' logs, some rows by both."""
    store, every = Store.open(tmp_path_factory.mktemp("store")), []
    for seed, log in ((1, InteractionLog(store)), (2, InteractionLog(store)), (1, InteractionLog(store))):
        every += (mine := list(rows(seed, 200))) if seed not in {int(row.id[1]) for row in every} else []
        write(log, mine if mine[0].id[1] == str(seed) else rows(seed, 200))
        log.close()
    yield store, every
    store.close()


@pytest.mark.slow
def test_any_while_adds_up_to_its_rows(logged):
    store, every = logged
    rng, first, last = random.Random(5), 20_000 * DAY, 20_004 * DAY
    whiles = [(0.0, float("inf")), (first, first + DAY), *(sorted(rng.uniform(first, last) for _ in "ab") for _ in range(12))]
    for since, until in [*whiles, (whiles[-1][0], float("inf")), (first + 3_000, first + 3_010)]:
        low, high = since // 60 * 60, until // 60 * 60 + 60 if until < float("inf") else until
        same(summed(counts(store, since, until).values()), [row for row in every if low <= row.created < high])


def test_groups_and_conditions(logged):
    store, every = logged
    found = counts(store, by=("alias", "deployment"))
    assert len(found) == 6
    for (alias, deployment), count in found.items():
        same(count, [row for row in every if (row.alias, row.deployment) == (alias, deployment)])
    (whole,) = counts(store, equal={"alias": "a", "deployment": [3, 4]}).values()
    same(whole, [row for row in every if row.alias == "a" and row.deployment])
    assert counts(store, equal={"alias": "nobody"}) == {}
    by_day = series(store, 20_001 * DAY, 20_003 * DAY, 86_400)
    assert list(by_day) == [20_001 * DAY, 20_002 * DAY]
    same(by_day[20_001 * DAY], [row for row in every if row.created // DAY == 20_001])


def test_what_could_not_be_written_is_not_counted_and_what_follows_is(tmp_path):
    store = Store.open(tmp_path)
    log, every = InteractionLog(store), list(rows(1, 30))
    write(log, every[:10])
    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TRIGGER full BEFORE INSERT ON request_counts BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    assert all(isinstance(end, StoreError) for end in write(log, every[10:20]))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
        assert connection.execute(sa.select(sa.func.count()).select_from(interactions)).scalar() == 10
    write(log, every[20:])
    log.close()
    same(summed(counts(store).values()), [*every[:10], *every[20:]])
    store.close()


@pytest.mark.slow
def test_a_log_from_before_is_counted_when_the_store_is_opened(tmp_path):
    before = engine_of(f"sqlite:///{tmp_path / 'tunesmith.db'}")
    steps = migrations.steps()
    old = next(number for number, name in enumerate(steps) if name.endswith("_request_counts"))
    every = [row for seed in (1, 2) for row in rows(seed, 150)]
    with before.begin() as connection:
        for name in steps[:old]:
            importlib.import_module(f"{migrations.__name__}.{name}").upgrade(connection, tmp_path)
        connection.execute(sa.text("INSERT INTO meta (key, value) VALUES ('version', :version)"), {"version": str(old)})
        plain = [{name: getattr(row, name) for name in Interaction.__struct_fields__ if hasattr(interactions.c, name)} for row in every]
        connection.execute(sa.insert(interactions), [row | {"messages": "[]", "tool_calls": "[]", "sources": None} for row in plain])
    store = Store.open(tmp_path)
    for since in (0.0, 20_001 * DAY + 7_777):
        same(summed(counts(store, since, by=("variant",)).values()), [row for row in every if row.created >= since // 60 * 60])
    store.close()


def test_a_sketch_packs_and_adds_up():
    parts = [Sketch() for _ in range(3)]
    for i in range(1, 3000):
        parts[i % 3].add(i / 1000)
    whole = Sketch.of(part.packed() for part in parts)
    assert whole.count == 2999
    assert whole.at(1500) == pytest.approx(1.501, rel=0.0101)
    assert (Sketch.of([]).count, Sketch.of([]).at(3)) == (0, pytest.approx(float("nan"), nan_ok=True))
