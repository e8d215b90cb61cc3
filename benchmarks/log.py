"""The log of requests: rows acknowledged a second, what kill -9 takes of them, and how long `monitor status` takes over ten million.

    python -m benchmarks.log rate          one part; without a word all of them, as `make bench-log`
    python -m benchmarks.log status --rows 100000

Producers are tasks that log one row after another, each waiting until its row is on disk, as requests do. The process that is killed says
on a pipe what was acknowledged to it, and is killed at a random moment; then its store is opened and every row looked for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import ROOT, machine, ratio, table

HEADLINES = ("log_rows_per_s", "status_10m_ms")
PAGE = ROOT / "docs" / "monitoring.md"
PRODUCERS, SECONDS, ROUNDS, KILLS, ROWS = 128, 5.0, 3, 100, 10_000_000
DAYS = 90
QUESTION = "How do I return a pair of shoes that I bought on the third of May, and who pays for sending them back? "
ANSWER = "You can send them back within thirty days of the day on which they came; the label is in the box. "


def row(number: int, rng: random.Random) -> Any:
    """A row as a served chat leaves it."""
    from tunesmith.core.types import Interaction, Message

    now = time.time()
    return Interaction(
        id=f"chatcmpl-{int(now * 1000):012x}{number:024x}",
        created=now,
        alias="support",
        variant=f"v{number % 2}",
        messages=(Message(role="system", content="Be brief and kind."), Message(role="user", content=QUESTION * 2)),
        answer=ANSWER * 2,
        finish_reason="stop",
        prompt_tokens=60,
        completion_tokens=44,
        first_token_s=0.02 + 0.1 * rng.random(),
        total_s=0.2 + rng.random(),
        conversation=f"conv-{time.time_ns():x}-{number}",
        project="shop",
        deployment=3,
        model_digest="d" * 64,
        user_key=f"user-{number % 997}",
        cost_usd=0.0001,
        propensity=0.5,
        strategy="split",
    )


async def produce(log: Any, seconds: float, told: Any = lambda number: None) -> tuple[int, list[float]]:
    """(rows acknowledged, seconds that each waited) of all producers."""
    waits, rng, end = list[float](), random.Random(1), time.perf_counter() + seconds

    async def one(first: int) -> None:
        number = first
        while time.perf_counter() < end:
            began, each = time.perf_counter(), row(number, rng)
            await log.write(each)
            waits.append(time.perf_counter() - began)
            told(each.id)
            number += 1

    await asyncio.gather(*(one(producer << 40) for producer in range(PRODUCERS)))
    return len(waits), waits


def rate(folder: Path, survives: str, seconds: float) -> dict[str, float]:
    """One round on a fresh store."""
    from tunesmith.store.interactions import InteractionLog
    from tunesmith.store.store import Store

    store = Store.open(folder)
    log = InteractionLog(store, at_once=survives == "power")
    began, cpu = time.perf_counter(), time.process_time()
    rows, waits = asyncio.run(produce(log, seconds))
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    log.close()
    store.close()
    waits.sort()
    return {
        "rows_per_s": rows / wall,
        "cpu_us": cpu / rows * 1e6,
        "p50_ms": 1e3 * median(waits),
        "p99_ms": 1e3 * waits[len(waits) * 99 // 100],
    }


def killed(folder: str, pipe: int) -> None:
    """Logs until it is killed; each id goes to the pipe once its row is acknowledged."""
    from tunesmith.store.interactions import InteractionLog
    from tunesmith.store.store import Store

    log = InteractionLog(Store.open(folder))
    asyncio.run(produce(log, 3600.0, lambda number: os.write(pipe, f"{number}\n".encode())))


def kill_round(folder: Path, after_s: float) -> list[str]:
    """What was acknowledged to a process that was killed so long after its first row."""
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=killed, args=(str(folder), writing))
    process.start()
    os.close(writing)
    parts = [os.read(reading, 1 << 16)]
    killer = threading.Timer(after_s, process.kill)
    killer.start()
    while part := os.read(reading, 1 << 16):
        parts.append(part)
    os.close(reading)
    killer.join()
    process.join()
    return [line for line in b"".join(parts).decode().split("\n")[:-1] if line]


def kills(folder: Path, many: int) -> dict[str, int]:
    """Rows that were acknowledged, and those of them that are lost; rows of the log, and how far the counts are from them."""
    import sqlalchemy as sa

    from tunesmith.store.counts import counts, summed
    from tunesmith.store.store import Store
    from tunesmith.store.tables import interactions

    rng, acknowledged = random.Random(7), set[str]()
    for _ in range(many):
        acknowledged.update(kill_round(folder, rng.uniform(0.0, 0.4)))
    store = Store.open(folder)
    with store.reading() as connection:
        there = set(connection.execute(sa.select(interactions.c.id)).scalars())
    counted = summed(counts(store).values()).requests
    store.close()
    return {"kills": many, "acknowledged": len(acknowledged), "lost": len(acknowledged - there), "rows": len(there), "counted": counted}


FILL = """
INSERT INTO interactions (id, created, alias, variant, status, finish_reason, prompt_tokens, completion_tokens, first_token_s, total_s,
  messages, answer, tool_calls, error, project, endpoint, deployment, model_digest, cost_usd, strategy)
WITH RECURSIVE number(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM number WHERE i + 1 < :rows)
SELECT printf('chatcmpl-%012x', i), :first + i * :step, 'model-' || (i % 3), 'v' || (i % 2), CASE WHEN i % 50 THEN 200 ELSE 503 END, 'stop',
  60, i % 80, 0.01 + (i * 7919 % 1000) / 4000.0, 0.2 + (i * 104729 % 10007) / 5000.0,
  '[{"role": "user", "content": "Where is my parcel?"}]',
  'It is on its way.', '[]', '', 'shop', 'chat.completions', 1 + i % 3, '', 0.0001, 'split' FROM number
"""


def fill(folder: Path, rows: int) -> None:
    """A log with so many rows over the last 90 days, as a Tunesmith before the counts left it: opening it counts them."""
    import sqlalchemy as sa

    from tunesmith.store import migrations
    from tunesmith.store.database import engine_of

    engine, steps = engine_of(f"sqlite:///{folder / 'tunesmith.db'}"), migrations.steps()
    old = next(number for number, name in enumerate(steps) if name.endswith("_request_counts"))
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous=OFF")
        for name in steps[:old]:
            importlib.import_module(f"{migrations.__name__}.{name}").upgrade(connection, folder)
        connection.execute(sa.text("INSERT INTO meta (key, value) VALUES ('version', :version)"), {"version": str(old)})
        step = DAYS * 86_400 / rows
        connection.execute(sa.text(FILL), {"rows": rows, "first": time.time() - rows * step, "step": step})
        connection.commit()
    engine.dispose()


def status(folder: Path, rows: int) -> dict[str, Any]:
    """Seconds to fill and to count the log, and milliseconds of the command over the last hours and over everything."""
    from tunesmith.cli import app
    from tunesmith.cli.shared import guarded
    from tunesmith.store.store import Store

    (folder / ".tunesmith").mkdir(parents=True)
    (folder / "tunesmith.yaml").write_text("name: shop\nsources: [{path: rows.jsonl}]\nbase: smollm2-135m\n")
    began = time.perf_counter()
    fill(folder / ".tunesmith", rows)
    filled = time.perf_counter()
    Store.open(folder / ".tunesmith").close()
    found: dict[str, Any] = {"rows": rows, "fill_s": filled - began, "count_s": time.perf_counter() - filled}
    for hours in (24, 24 * (DAYS + 1)):
        times = []
        for _ in range(11):
            said, began = io.StringIO(), time.perf_counter()
            with contextlib.redirect_stdout(said):
                code = guarded(app, ["monitor", "status", "--config", str(folder / "tunesmith.yaml"), "--hours", str(hours), "--json"])
            times.append(1e3 * (time.perf_counter() - began))
            assert code == 0
        requests = json.loads(said.getvalue())["requests"]
        found[f"hours_{hours}"] = {"ms": median(times[1:]), "most_ms": max(times[1:]), "requests": requests}
    assert requests == rows, (requests, rows)
    return found


def write_page(part: str, text: str) -> None:
    """Put what was measured between the marks of its part of the page."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    page = PAGE.read_text("utf-8")
    head, _, tail = page.partition(begin)
    PAGE.write_text(f"{head}{begin}\n`python -m benchmarks.log {part}`, {machine()}.\n\n{text}\n{end}{tail.partition(end)[2]}", "utf-8")


def rate_part(folder: Path, asked: argparse.Namespace) -> None:
    found = {}
    for survives in ("power", "kill"):
        rounds = [rate(folder / f"{survives}-{number}", survives, asked.seconds) for number in range(ROUNDS)]
        found[survives] = {key: median(each[key] for each in rounds) for key in rounds[0]}
        print(survives, found[survives], flush=True)
    line = ratio("log_rows_per_s", found["power"]["rows_per_s"])
    names = {"power": "power cuts (`power`)", "kill": "kill -9 (`kill`)"}
    figures = {"rows_per_s": ",.0f", "cpu_us": ".0f", "p50_ms": ".1f", "p99_ms": ".1f"}
    rows = [[names[key], *(format(one[name], how) for name, how in figures.items())] for key, one in found.items()]
    head = ["acknowledged rows survive", "rows a second", "µs of processor a row", "half wait ms", "99 % wait at most ms"]
    write_page(
        "rate", f"{PRODUCERS} producers, SQLite, medians of {ROUNDS} rounds of {asked.seconds:g} s.\n\n{table(head, rows)}\n\n`{line}`"
    )


def kills_part(folder: Path, asked: argparse.Namespace) -> None:
    found = kills(folder / "killed", asked.kills)
    print(found, flush=True)
    assert (found["lost"], found["rows"]) == (0, found["counted"]), found
    killed, told = f"{found['kills']} times killed with -9 among {PRODUCERS} producers", f"{found['acknowledged']:,} rows were acknowledged"
    write_page("kills", f"{killed}: {told}, {found['lost']} of them are lost; {found['counted']:,} rows are in the log, and were counted.")


def status_part(folder: Path, asked: argparse.Namespace) -> None:
    found = status(folder / "project", asked.rows)
    print(found, flush=True)
    whiles = {"the last 24 hours": found["hours_24"], f"all {DAYS} days": found[f"hours_{24 * (DAYS + 1)}"]}
    line = ratio("status_10m_ms", max(one["ms"] for one in whiles.values()))
    rows = [[name, f"{one['requests']:,}", f"{one['ms']:.0f}", f"{one['most_ms']:.0f}"] for name, one in whiles.items()]
    head = ["`monitor status` of", "requests", "ms (median of 10)", "most ms"]
    said = f"{found['rows']:,} rows; counting them once, when a store from before is opened, took {found['count_s']:.0f} s."
    write_page("status", f"{said} Without the start of Python.\n\n{table(head, rows)}\n\n`{line}`")


PARTS = {"rate": rate_part, "kills": kills_part, "status": status_part}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--rows", type=int, default=ROWS)
    asked = parser.parse_args(words or [])
    for name in asked.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), asked)


if __name__ == "__main__":
    main(sys.argv[1:])
