"""Simulates canaries through the rollout's own code and the gateway's own assignment, and writes the table of docs/rollouts.md.

`python -m benchmarks.live_canary [--runs 2000] [--quick]`; part of `make bench-live`. Prints `ratio canary_false_rollback X` (the share of
equal canaries that are taken back within 25 minutes), `ratio canary_requests_at_30 X` (requests of a canary with 30 % errors, 95th
percentile) and `ratio rollback_reaches_ms X` (until another server over the same store answers without the canary, 95th percentile).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.harness import ROOT, machine, ratio, table
from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.rollout import RolloutPlan
from tunesmith.deploy.rollout import Block, ByUser, Decision, advanced, begun, decide
from tunesmith.deploy.strategy import AskedState, choose
from tunesmith.flow.rollouts import correlation
from tunesmith.store.rollouts import Spread

NAMES = ("canary_false_rollback", "canary_requests_at_30", "rollback_reaches_ms")
PAGE = ROOT / "docs" / "rollouts.md"
PLAN = RolloutPlan(steps=(0.05, 1.0), step_s=1e9)  # stays at 5 %: what is measured is whether it is taken back
MINUTES, A_MINUTE, LOOK_S = 25, 1000, 5.0
LOOKS = int(MINUTES * 60 / LOOK_S)
KEYS = 100_000
BASE_ERRORS, BASE_MALFORMED, SPREAD = 0.02, 0.01, 0.5
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What a canary is like. Where `everybody` fails it is for some minutes, whoever answers; `broken_users` of few users fail always."""

    name: str
    errors: float = BASE_ERRORS
    slower: float = 1.0
    malformed: float = BASE_MALFORMED
    everybody: bool = False
    broken_users: float = 0.0


@dataclass(frozen=True)
class Requests:
    """The requests of one run in the order of their looks."""

    look: NDArray[np.int64]
    user: NDArray[np.int64]
    own: Bools
    failed: Bools
    seconds: Floats
    malformed: Bools


@cache
def assigned(share: float = 0.05) -> Bools:
    """Which of the users the gateway assigns to a canary with that share."""
    variants = (Variant(name="stable", upstream="a", weight=1 - share), Variant(name="canary", upstream="b", weight=share))
    deployment = Deployment(alias="support", version=1, strategy="split", variants=variants)
    return np.array([choose(f"user-{i}", deployment, AskedState()).variant.name == "canary" for i in range(KEYS)])


def drawn(world: World, rng: np.random.Generator, looks: int = LOOKS, share: float = 0.05) -> Requests:
    """The requests of so many looks."""
    n = int(rng.poisson(looks * A_MINUTE * LOOK_S / 60))
    look = np.sort(rng.integers(0, looks, n))
    user = rng.integers(0, KEYS, n)
    if world.broken_users:  # a few hundred users, some of whom ask very often
        weights = 1 / np.arange(1, 401)
        user = rng.permutation(KEYS)[:400][rng.choice(400, n, p=weights / weights.sum())]
    own = assigned(share)[user]
    failed = rng.random(n) < np.where(own, world.errors, BASE_ERRORS)
    if world.everybody:
        failed |= (look >= 60) & (look < 96) & (rng.random(n) < 0.3)
    if world.broken_users:
        failed |= (rng.random(KEYS) < world.broken_users)[user]
    seconds = rng.lognormal(0.0, SPREAD, n) * np.where(own, world.slower, 1.0)
    return Requests(look, user, own, failed, seconds, rng.random(n) < np.where(own, world.malformed, BASE_MALFORMED))


def blocks_of(requests: Requests, looks: int = LOOKS, first: int = 0, usual: Floats = np.zeros(0)) -> list[Block]:
    """What each look counts, the first of which is the `first` of the rollout; the limit of latencies is the quantile of the others' last
    500 answers before it, of which `usual` were there before."""
    answered = ~requests.failed
    others = np.concatenate([usual, requests.seconds[~requests.own & answered]])
    before = usual.size + np.searchsorted(requests.look[~requests.own & answered], np.arange(looks))
    limits = np.array([_limit(others[max(0, end - 500) : end]) for end in before])
    slow = requests.seconds > limits[requests.look] * np.where(requests.own, 1.2, 1.0)
    timed = answered & np.isfinite(limits[requests.look])
    counts = {
        "errors": _sides(requests, np.ones_like(answered), requests.failed, looks),
        "malformed": _sides(requests, answered, requests.malformed, looks),
        "latency_p95": _sides(requests, timed, slow, looks),
    }
    every = [{name: (n, bad, m, worse) for name, rows in counts.items() for n, bad, m, worse in [rows[i]]} for i in range(looks)]
    return [Block(ended=LOOK_S * (first + i + 1), requests=int(here["errors"][0]), counts=here) for i, here in enumerate(every)]


def _limit(past: Floats) -> float:
    return float(np.partition(past, at)[at]) if (at := int(0.95 * (past.size - 1))) >= 19 * 0.95 else np.inf


def _sides(requests: Requests, which: Bools, bad: Bools, looks: int) -> list[list[float]]:
    """For each look (requests of the canary, bad ones of them, requests of the others, bad ones of them), of those counted."""
    sides = (which & requests.own, which & ~requests.own)
    columns = [np.bincount(requests.look[rows], minlength=looks) for side in sides for rows in (side, side & bad)]
    counted: list[list[float]] = np.stack(columns, axis=1).astype(float).tolist()
    return counted


def decided(blocks: list[Block], by_user: ByUser | None = None) -> Decision:
    """What the rollout does after these looks."""
    state = begun(PLAN, 0.0, {"errors": (200, 200 * BASE_ERRORS)})
    state = advanced(PLAN, state, blocks, 0, LOOK_S * len(blocks))
    return decide(PLAN, state, 0, 0.0, LOOK_S * len(blocks), by_user)


def looks_until(blocks: list[Block]) -> int | None:
    """After how many looks the canary is taken back, None where it is not. It stays so once it is, so halving finds the look."""
    if decided(blocks).action != "roll_back":
        return None
    low, high = 0, len(blocks)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(blocks[:middle]).action == "roll_back" else (middle, high)
    return high


def taken_back(requests: Requests) -> tuple[int, int] | None:
    """(looks, requests of the canary) until it is taken back; None where it is not within the time."""
    blocks = blocks_of(requests)
    looks = looks_until(blocks)
    if looks is None:
        return None
    until = requests.look < looks
    if decided(blocks[:looks], lambda name: [weighted(requests, until, name)]).action != "roll_back":
        return None
    return looks, int((requests.own & until).sum())


def weighted(requests: Requests, until: Bools, name: str) -> tuple[float, float, float, float]:
    """The counts of a guardrail with each user weighted, as the store counts them."""
    bad, limit = requests.failed, float(np.quantile(requests.seconds[~requests.own], 0.95))
    if name == "latency_p95":
        bad = requests.seconds > np.where(requests.own, limit * 1.2, limit)
    elif name == "malformed":
        bad = requests.malformed
    sides = [_users(requests.user[side & until], bad[side & until]) for side in (requests.own, ~requests.own)]
    alike = correlation(*(_spread(n, wrong) for n, wrong in sides))
    own, others = ((float((n / (1 + (n - 1) * alike)).sum()), float((wrong / (1 + (n - 1) * alike)).sum())) for n, wrong in sides)
    return (*own, *others)


def _users(user: NDArray[np.int64], bad: Bools) -> tuple[Floats, Floats]:
    names, index = np.unique(user, return_inverse=True)
    return np.bincount(index, minlength=names.size).astype(float), np.bincount(index, weights=bad, minlength=names.size)


def _spread(n: Floats, bad: Floats) -> Spread:
    return Spread(float(n.sum()), float(n.size), float((n**2).sum()), float(bad.sum()), float((bad**2 / n).sum()))


def z_each_minute(requests: Requests) -> bool:
    """The usual test: pooled z of all errors so far, looked at each minute, one-sided 5 %."""
    minute = requests.look // 12
    n, m = (np.cumsum(np.bincount(minute[side], minlength=MINUTES)) for side in (requests.own, ~requests.own))
    bad, worse = (np.cumsum(np.bincount(minute[side & requests.failed], minlength=MINUTES)) for side in (requests.own, ~requests.own))
    pooled = (bad + worse) / (n + m)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (bad / n - worse / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return bool((z > 1.645).any())


def threshold_each_minute(requests: Requests) -> bool:
    """Another usual rule: twice the errors that are usual, of one minute's requests."""
    minute = requests.look // 12
    n = np.bincount(minute[requests.own], minlength=MINUTES)
    bad = np.bincount(minute[requests.own & requests.failed], minlength=MINUTES)
    return bool((bad > 2 * BASE_ERRORS * n).any())


WORLDS = (
    World("the same"),
    World("the same, and 3 minutes in which 30 % fail whoever answers", everybody=True),
    World("the same, 5 % of 400 users fail always, some ask often", broken_users=0.05),
    World("6 % errors", errors=0.06),
    World("10 % errors", errors=0.10),
    World("30 % errors", errors=0.30),
    World("latency + 50 %", slower=1.5),
    World("20 % malformed", malformed=0.20),
)


def simulated(runs: int) -> tuple[list[list[Any]], dict[str, float]]:
    """The table's rows and the headlines."""
    rows, headlines = [], {}
    for number, world in enumerate(WORLDS):
        rng, many = np.random.default_rng(number), runs if number == 0 else max(20, runs // 20)
        ends, naive, crude = [], [], []
        for _ in range(many):
            requests = drawn(world, rng)
            ends.append(taken_back(requests))
            naive.append(z_each_minute(requests))
            crude.append(threshold_each_minute(requests))
        done = np.array([end for end in ends if end is not None], dtype=float).reshape(-1, 2)
        minutes = [f"{np.quantile(done[:, 0], q) * LOOK_S / 60:.1f}" for q in (0.5, 0.95)] if len(done) > many // 2 else ["", ""]
        asked = [f"{np.quantile(done[:, 1], q):.0f}" for q in (0.5, 0.95)] if len(done) > many // 2 else ["", ""]
        share = len(done) / many
        rows.append([world.name, f"{share:.3f}", *minutes, *asked, f"{np.mean(naive):.3f}", f"{np.mean(crude):.3f}", many])
        print("  " + " | ".join(map(str, rows[-1])), flush=True)
        if number == 0:
            headlines["canary_false_rollback"] = share
        if world.name == "30 % errors":
            headlines["canary_requests_at_30"] = float(np.quantile(done[:, 1], 0.95))
    return rows, headlines


# --- all steps ---------------------------------------------------------------------------------------------------------------------------

WHOLE = RolloutPlan()
RUNS_WHOLE, MOST_MINUTES = 5, 75


def grown(world: World, rng: np.random.Generator) -> tuple[str, int]:
    """(how the usual plan ends, after how many minutes): promoted, rolled back, or still on its way in the end."""
    state, step, since, usual = begun(WHOLE, 0.0, {"errors": (200, 200 * BASE_ERRORS)}), 0, 0.0, rng.lognormal(0.0, SPREAD, 500)
    for minute in range(MOST_MINUTES):
        requests, now = drawn(world, rng, 12, WHOLE.steps[step]), 60.0 * (minute + 1)
        state = advanced(WHOLE, state, blocks_of(requests, 12, 12 * minute, usual), step, now)
        usual = np.concatenate([usual, requests.seconds[~requests.own & ~requests.failed]])[-500:]
        action = decide(WHOLE, state, step, since, now).action
        if action in ("promote", "roll_back"):
            return action, minute + 1
        if action == "advance":
            state, step, since = replace(state, step_requests=0), step + 1, now
    return "hold", MOST_MINUTES


def whole(worlds: Sequence[World]) -> list[list[Any]]:
    """The table of whole rollouts."""
    rows = []
    for number, world in enumerate(worlds):
        rng = np.random.default_rng(100 + number)
        ends = [grown(world, rng) for _ in range(RUNS_WHOLE)]
        shares = [f"{np.mean([action == wanted for action, _ in ends]):.2f}" for wanted in ("promote", "roll_back", "hold")]
        rows.append([world.name, *shares, f"{np.median([minutes for _, minutes in ends]):.0f}", RUNS_WHOLE])
        print("  " + " | ".join(map(str, rows[-1])), flush=True)
    return rows


# --- a rollback on another server --------------------------------------------------------------------------------------------------------


def reached(url: str | None, times: int) -> Floats:
    """Milliseconds from the commit of a rollback until (another server has it in force, that server has answered a request that came after
    it), both servers over the store of the database at `url` (None: SQLite); a row for each time."""
    import httpx

    from tunesmith.api.app import create_app, running
    from tunesmith.models.echo import EchoModel

    behind = {name: EchoModel(name, prefix=name) for name in ("A", "B")}
    with tempfile.TemporaryDirectory() as folder, running(create_app(behind)) as there:  # type: ignore[arg-type]
        first, second = (serving(Path(folder), url, there) for _ in range(2))
        with first as (store, _, _), second as (_, router, address), httpx.Client(timeout=60) as client:
            return np.array([_reach(store, router, address, client, i) for i in range(times)])


@contextmanager
def serving(folder: Path, url: str | None, there: str) -> Iterator[tuple[Any, Any, str]]:
    """(the store, the router, the address) of a server over it, whose upstreams A and B are at `there`."""
    from tunesmith.api.app import create_app, running
    from tunesmith.api.reload import Reload
    from tunesmith.deploy.router import Router
    from tunesmith.models.catalog import Catalog
    from tunesmith.models.resolve import Models
    from tunesmith.models.upstream import Upstream
    from tunesmith.store.store import Store

    store, router = Store.open(folder, url=url), Router()
    models = Models(store, Catalog(), home=folder)
    reload = Reload(router, models, {name: Upstream(name, base_url=there) for name in ("A", "B")})
    reload.start()
    with running(create_app(router, store=store, models=models, reload=reload)) as address:
        yield store, router, address
    store.close()


def _reach(store: Any, router: Any, second: str, client: Any, number: int) -> tuple[float, float]:
    """One rollback, while a client asks. The canary has 99 %, and no request that begins after the commit may be answered by it."""
    from tunesmith.core.rollout import Rollout, RolloutState
    from tunesmith.store.deployments import Deployments
    from tunesmith.store.rollouts import Changed, Rollouts

    alias = f"live-{number}"
    before = [Variant(name="stable", upstream="A")]
    both = [Variant(name="stable", upstream="A", weight=0.01), Variant(name="canary", upstream="B", weight=0.99)]
    version = Deployments(store).put(alias, before).version
    now = time.time()
    rollout = Rollout(
        id=0, alias=alias, created=now, status="running", plan=replace(PLAN, look_s=1e6), canary="canary", variants=tuple(both),
        before=version, state=RolloutState(started=now, cut=now), looked=now,
    )  # fmt: skip
    rollout = Rollouts(store).begin(rollout, Changed(both, "split", "", ""))
    body = {"model": alias, "messages": [{"role": "user", "content": "hi"}]}

    def answer() -> str:
        return str(client.post(f"{second}/chat/completions", json=body).json()["choices"][0]["message"]["content"])

    while not answer().startswith("B"):
        pass
    ended = replace(rollout, status="rolled_back", ended=time.time())
    done = Rollouts(store).act(ended, Changed(before, "one", "taken back", "rollout"))
    assert done is not None
    committed, in_force = time.perf_counter(), []

    def watch() -> None:
        while router.deployment(alias).version != done.version:
            time.sleep(0.0002)
        in_force.append(time.perf_counter())

    watching = threading.Thread(target=watch)
    watching.start()
    first = answer()
    answered = time.perf_counter()
    watching.join()
    assert first.startswith("A"), first
    return (in_force[0] - committed) * 1000, (answered - committed) * 1000


def with_postgres(work: Callable[[str], Floats]) -> Floats | None:
    """What `work` measures with a PostgreSQL that is started for it; None where there is none."""
    sys.path.insert(0, str(ROOT / "tests"))
    import postgres_parts

    if not postgres_parts.BINARIES:
        return None
    with postgres_parts.started() as url:
        return work(url)


def simulate(runs: int = 2000, *, writes: bool = True) -> None:
    """Simulate, measure, print the headlines and write the page's section."""
    began = time.process_time()
    rows, headlines = simulated(runs)
    steps = whole((World("the same"), World("4 % errors", errors=0.04), World("latency + 30 %", slower=1.3)))
    used = time.process_time() - began
    times = {"SQLite": reached(None, 20), "PostgreSQL": with_postgres(lambda url: reached(url, 20))}
    reach = [
        [name, *(f"{value:.1f}" for way in ms.T for value in (np.median(way), way.max()))] if ms is not None else [name, "not installed"]
        for name, ms in times.items()
    ]
    known = [ms for ms in times.values() if ms is not None]
    headlines["rollback_reaches_ms"] = max(float(np.quantile(ms[:, 0], 0.95)) for ms in known)
    lines = [ratio(name, value) if name != "canary_false_rollback" else _fine_ratio(name, value) for name, value in headlines.items()]
    head = ["canary", "taken back", "minutes, median", "95 %", "its requests, median", "95 %", "z each minute", "twice the usual", "runs"]
    body = (
        "## Simulated\n\n1,000 requests a minute, 5 % of them the canary's, 2 % errors and 1 % malformed answers among the others, "
        "log-normal latencies (σ 0.5), a look each 5 seconds for 25 minutes, the usual guardrails. Beside "
        "it what two usual rules do: a z test of all "
        "errors at each minute (one-sided 5 %), and twice the usual errors in a minute.\n\n"
        + table(head, rows)
        + "\n\nThe usual plan, with all its steps and the same traffic, for 75 minutes at most:\n\n"
        + table(["canary", "answers alone", "taken back", "on its way", "minutes, median", "runs"], steps)
        + "\n\nMilliseconds from the commit of a rollback until another server over the same store has it in force, and until it has "
        "answered a request that came after it (20 times; none of these requests was answered by the canary):\n\n"
        + table(["store", "in force, median", "most", "answered, median", "most"], reach)
        + "\n\n"
        + "\n".join(f"`{line}`  " for line in lines)
        + f"\n\nMachine: {machine()}, {used:.0f} CPU-seconds for the simulation. Again: `python -m benchmarks.live_canary`."
    )
    if writes:
        write(body)


def _fine_ratio(name: str, value: float) -> str:
    line = f"ratio {name} {value:.4f}"
    print(line, flush=True)
    return line


def write(body: str) -> None:
    """Put the section into its page, in place of its earlier one."""
    page = PAGE.read_text("utf-8")
    head, _, rest = page.partition("<!-- simulated -->")
    PAGE.write_text(f"{head}<!-- simulated -->\n{body}\n<!-- /simulated -->{rest.partition('<!-- /simulated -->')[2]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs, and nothing is written")
    options = parser.parse_args()
    simulate(options.runs // 10 if options.quick else options.runs, writes=not options.quick)


if __name__ == "__main__":
    main()
