"""What the gateway adds to a request, beside LiteLLM and a bare proxy: `make bench-gateway`.

Ours answers a name under a running rollout: a key is checked, a variant drawn and remembered, guardrails are counted, the answer is hidden
(no client sees its arm), and the row is committed before the last bytes leave; once surviving a power cut, once a kill of the process.
LiteLLM checks a key, draws between two deployments of a name and logs to a file; the bare proxy is Starlette and httpx, and does none of
it.

Run as a program with the name of a side it does that side's work once and prints its figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from statistics import median
from typing import Any

from benchmarks import api
from benchmarks.harness import Side, alternate, ratio, table, write_section

HEADLINES = ("gateway_added_p50_ms", "gateway_added_p99_ms", "gateway_cpu_us", "proxy_vs_litellm")
SIDES = ("power", "kill", "bare", "litellm")
"""Ours by what a row survives, and the others."""
ALONE = {"power": 1000, "kill": 1000, "bare": 1000, "litellm": 200}  # requests of one client
BUSY = {"power": 3200, "kill": 3200, "bare": 1600, "litellm": 320}  # of sixteen, for the processor time
STREAMS, CHUNKS, PACE_S, STALL_S = 256, 40, 0.1, 0.25
"""Streams at once, their chunks, the pause between two, and what more than it is a stall."""


def bare(port: int, upstream: int) -> None:
    """A proxy of a few lines: Starlette and httpx."""
    import httpx
    import uvicorn
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None), timeout=600)

    async def passed(request: Request) -> StreamingResponse:
        data, url = await request.body(), f"http://127.0.0.1:{upstream}/v1/chat/completions"
        asked = client.build_request("POST", url, content=data, headers={"content-type": "application/json"})
        answer = await client.send(asked, stream=True)
        kind = answer.headers["content-type"]
        return StreamingResponse(answer.aiter_raw(), answer.status_code, media_type=kind, background=BackgroundTask(answer.aclose))

    app = Starlette(routes=[Route("/v1/chat/completions", passed, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def ours(survives: str, port: int, upstream: int, folder: str) -> None:
    """Our server: the name `m` under a rollout from one upstream to another."""
    from tunesmith.api.app import ServeConfig, create_app, serve
    from tunesmith.api.reload import Reload
    from tunesmith.core.deployment import Variant
    from tunesmith.core.rollout import RolloutPlan
    from tunesmith.deploy.router import Router
    from tunesmith.deploy.serve_config import LogConfig
    from tunesmith.flow.rollouts import canary
    from tunesmith.models.catalog import Catalog
    from tunesmith.models.resolve import Models
    from tunesmith.models.upstream import Upstream
    from tunesmith.store.deployments import Deployments
    from tunesmith.store.store import Store

    store = Store.open(folder)
    upstreams = {name: Upstream(name, base_url=f"http://127.0.0.1:{upstream}/v1") for name in ("a", "b")}
    models, router = Models(store, Catalog(), upstreams={name: lambda: upstreams["a"] for name in upstreams}), Router()
    Deployments(store).put("m", [Variant(name="a", upstream="a")], strategy="one")
    canary("m", "b", models, store, RolloutPlan(steps=(0.5, 1.0), step_s=1e6))
    reload = Reload(router, models, upstreams)
    reload.start()
    config = ServeConfig(port=port, log=LogConfig(survives="power" if survives == "power" else "kill"))
    serve(create_app(router, config=config, store=store, models=models, reload=reload), config)


def start(side: str, port: int, upstream: int, folder: str) -> tuple[subprocess.Popen[bytes], str]:
    """(the side's server, the key that it asks for)."""
    if side == "litellm":
        return api.start("litellm", port, upstream, folder, deployments=2)
    key = "sk-none"
    if side != "bare":
        from tunesmith.store.keys import Keys
        from tunesmith.store.store import Store

        key = Keys(Store.open(folder)).create("benchmark")[1]
    command = [sys.executable, "-m", "benchmarks.gateway", "--server", side, str(port), str(upstream), folder]
    with open(f"{folder}/log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "NO_COLOR": "1"}), key


async def pieces(port: int, key: str, *, chunks: int = 0, pace_s: float = 0.0) -> AsyncIterator[bytes]:
    """What comes of one stream over a connection of its own, as it comes: a client that costs little beside what is measured."""
    body = json.dumps({"model": "m", "stream": True, "messages": api.MESSAGES, "chunks": chunks, "pace_s": pace_s}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: localhost", f"authorization: Bearer {key}", "content-type: application/json"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body)
        tail = b""
        while b"[DONE]" not in tail:
            if not (piece := await reader.read(1 << 16)):
                raise ConnectionError(f"the stream ended early: {tail!r}")
            tail = tail[-16:] + piece
            yield piece
    finally:
        writer.close()


async def paced(port: int, key: str) -> dict[str, float]:
    """Streams at once that another server paces: the longest pause between two chunks beyond the pace, and how many were stalls."""
    late: list[float] = []

    async def stream(number: int) -> None:
        await asyncio.sleep(PACE_S * number / STREAMS)
        last = 0.0
        async for piece in pieces(port, key, chunks=CHUNKS, pace_s=PACE_S):
            if b"word" in piece:
                now = time.perf_counter()
                late.extend([now - last - PACE_S] if last else [])
                last = now

    await asyncio.gather(*(stream(i) for i in range(STREAMS)))
    late.sort()
    return {
        "stalls": float(sum(each > STALL_S for each in late)),
        "late_p99_ms": 1000 * late[int(0.99 * len(late))],
        "late_ms": 1000 * late[-1],
    }


async def alone(urls: Sequence[str], key: str, count: int, *, stream: bool) -> list[list[float]]:
    """Seconds to the first bytes of an answer (of a stream), else to its end, of one client that asks each URL in turn."""
    import aiohttp

    data = json.dumps({"model": "m", "messages": api.MESSAGES, **({"stream": True} if stream else {})}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    times: list[list[float]] = [[] for _ in urls]
    async with aiohttp.ClientSession() as session:
        for number in range(count + 20):
            for url, own in zip(urls, times, strict=True):
                started = time.perf_counter()
                async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers) as answer:
                    first = await answer.content.readany()
                    took = time.perf_counter() - started
                    whole = first + await answer.read()
                    took = took if stream else time.perf_counter() - started
                    assert answer.status == 200, whole
                if number >= 20:
                    own.append(took)
    return [sorted(each) for each in times]


def added(side: str, front: int, back: int, key: str, *, stream: bool) -> tuple[float, float]:
    """Milliseconds that the side adds at the median and at the 99th percentile; the two servers are asked in turn."""
    urls = [f"http://127.0.0.1:{port}" for port in (front, back)]
    through, direct = asyncio.run(alone(urls, key, ALONE[side] // (4 if stream else 1), stream=stream))
    return 1000 * (median(through) - median(direct)), 1000 * (_p99(through) - _p99(direct))


def _p99(values: Sequence[float]) -> float:
    return values[int(0.99 * (len(values) - 1))]


def side(name: str) -> None:
    """Start both servers, ask, print the figures."""
    upstream, port = api.free(), api.free()
    with tempfile.TemporaryDirectory() as folder:
        back = subprocess.Popen([sys.executable, "-m", "benchmarks.api", "behind", str(upstream)])
        front, key = start(name, port, upstream, folder)
        try:
            api.wait(url := f"http://127.0.0.1:{port}", key)
            asyncio.run(api.ask(url, key, 64, api.CLIENTS))
            figures: dict[str, Any] = {}
            figures["added_ms"], figures["added_p99_ms"] = added(name, port, upstream, key, stream=False)
            figures["first_ms"], _ = added(name, port, upstream, key, stream=True)
            before = api.cpu_s(front.pid)
            asyncio.run(api.ask(url, key, BUSY[name], api.CLIENTS))
            time.sleep(1)  # LiteLLM's logger comes after the answers
            figures["cpu_us"] = 1e6 * (api.cpu_s(front.pid) - before) / BUSY[name]
            figures |= asyncio.run(paced(port, key))
            asked = 1 + 64 + 20 + ALONE[name] + 20 + ALONE[name] // 4 + BUSY[name] + STREAMS
            if name in ("power", "kill"):
                assert api.logged(name, folder) >= asked, f"{api.logged(name, folder)} rows logged of {asked}"
            print(json.dumps({**figures, "cpu_s": figures["cpu_us"] / 1e6, "work": 1}))
        finally:
            for process in (front, back):
                process.terminate()
            for process in (front, back):
                process.wait()


def main(rounds: int = 3) -> None:
    """Run the sides alternately and write the section."""
    results = alternate([Side(name, [sys.executable, "-m", "benchmarks.gateway", name]) for name in SIDES], rounds)
    columns = ("added_ms", "added_p99_ms", "first_ms", "cpu_us", "late_p99_ms", "late_ms", "stalls")
    words = {"power": "ours, survives a power cut", "kill": "ours, survives kill -9", "bare": "Starlette and httpx"}
    rows = [[words.get(name, name), *(of_it.median(column) for column in columns)] for name, of_it in results.items()]
    mine = results["kill"]
    figures = [mine.median("added_ms"), mine.median("added_p99_ms"), mine.median("cpu_us")]
    figures.append(results["litellm"].median("cpu_us") / mine.median("cpu_us"))
    lines = [ratio(name, value) for name, value in zip(HEADLINES, figures, strict=True)]
    about = (
        "A name under a rollout, half of the requests the canary's: each request is checked (key), drawn, counted for guardrails, hidden "
        f"and logged in the store before its last bytes leave. LiteLLM {api.NEEDS[0].partition('==')[2]} draws between two deployments and "
        "logs to a file; 'Starlette and httpx' does none of it. What is added is against the server behind, asked in turn by the same "
        f"client. Processor time with {api.CLIENTS} clients. {STREAMS} streams at once, a chunk each {PACE_S:g} s, all processes on this "
        f"machine; a stall is {STALL_S:g} s more than the pace. The ratios are of rows that survive kill -9 (`serve.log.survives: kill`)."
    )
    header = ["side", "ms added, p50", "p99", "ms to a stream's first words, p50", "µs CPU a request", "ms late, p99", "most", "stalls"]
    write_section("gateway", "The gateway", "\n\n".join([about, table(header, rows), "\n".join(lines)]), again="make bench-gateway")


def command() -> None:
    """What the words of the command line ask for."""
    words = argparse.ArgumentParser()
    words.add_argument("side", nargs="?", choices=SIDES)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--server", nargs=4, metavar=("SIDE", "PORT", "UPSTREAM", "FOLDER"))
    asked = words.parse_args()
    if asked.server:
        name, port, upstream, folder = asked.server
        if name == "bare":
            bare(int(port), int(upstream))
        else:
            ours(name, int(port), int(upstream), folder)
    elif asked.side:
        side(asked.side)
    else:
        main(asked.rounds)


if __name__ == "__main__":
    command()
