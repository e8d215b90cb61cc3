"""A logging proxy to another server, ours and LiteLLM's: requests per CPU-second of the proxy's process, and the time it adds.

Run as a program with the name of a side it does that side's work once and prints its figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HEADLINES = ("proxy_vs_litellm",)
REQUESTS = {"ours": 3000, "litellm": 150}
CLIENTS, ALONE = 8, 100
# Neither side asks for a key: LiteLLM calls that so, and means a server that others can reach; this one is on loopback.
_OPEN = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
NEEDS = ("litellm[proxy]",)
MESSAGE = {"role": "assistant", "content": "one two three", "refusal": None}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
}
BODY = {"messages": [{"role": "user", "content": "say one two three, " + "and mind the words, " * 20}]}


def behind(port: int) -> None:
    """The server behind the proxy: bare ASGI, one answer."""
    import uvicorn

    data = json.dumps(ANSWER).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")


def ours(port: int, upstream: int, folder: str) -> None:
    """Our server in front of it; each request is logged to a store on disk."""
    from tunesmith.api.app import ServeConfig, create_app, serve
    from tunesmith.core.store import Store
    from tunesmith.deploy.upstream import Upstream

    models = {"m": Upstream("m", base_url=f"http://127.0.0.1:{upstream}/v1")}
    serve(create_app(models, Store.open(folder).engine), ServeConfig(port=port))


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def cpu_s(pid: int) -> float:
    """User and system seconds of a process and its children."""
    import psutil

    one = psutil.Process(pid)
    return float(sum(sum(p.cpu_times()[:2]) for p in [one, *one.children(recursive=True)]))


async def ask(url: str, count: int, clients: int) -> list[float]:
    """Seconds of each of `count` requests by so many clients at once."""
    import aiohttp

    times: list[float] = []
    data = json.dumps({"model": "m", **BODY}).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer sk-none"}

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in range(count // clients):
            started = time.perf_counter()
            async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers) as answer:
                said = await answer.read()
                assert answer.status == 200, said
            times.append(time.perf_counter() - started)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return times


def wait(url: str, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            asyncio.run(ask(url, 1, 1))
            return
        except Exception:
            if time.monotonic() > limit:
                raise
            time.sleep(0.2)


def side(name: str) -> None:
    """Start both servers, ask, print the figures."""
    from benchmarks.harness import peer_python

    upstream, port = free(), free()
    with tempfile.TemporaryDirectory() as folder:
        back = subprocess.Popen([sys.executable, "-m", "benchmarks.proxy", "behind", str(upstream)])
        if name == "ours":
            command = [sys.executable, "-m", "benchmarks.proxy", "front", str(port), str(upstream), folder]
        else:
            entry = {
                "model_name": "m",
                "litellm_params": {"model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "x"},
            }
            (Path(folder) / "config.yaml").write_text(json.dumps({"model_list": [entry]}))
            program = Path(peer_python("litellm", NEEDS)).parent / "litellm"
            command = [str(program), "--config", f"{folder}/config.yaml", "--port", str(port), "--host", "127.0.0.1"]
        started = time.perf_counter()
        with open(f"{folder}/log", "wb") as log:
            front = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "NO_COLOR": "1", **_OPEN})
        try:
            wait(url := f"http://127.0.0.1:{port}")
            up_s = time.perf_counter() - started
            asyncio.run(ask(url, 40, CLIENTS))
            direct = median(asyncio.run(ask(f"http://127.0.0.1:{upstream}", ALONE, 1)))
            alone = median(asyncio.run(ask(url, ALONE, 1)))
            before, wall = cpu_s(front.pid), time.perf_counter()
            count = len(asyncio.run(ask(url, REQUESTS[name], CLIENTS)))
            figures = {"work": count, "cpu_s": cpu_s(front.pid) - before, "wall_s": time.perf_counter() - wall}
            print(json.dumps({**figures, "peak_mb": 0.0, "up_s": up_s, "added_ms": 1000 * (alone - direct), "versions": {}}))
        finally:
            for process in (front, back):
                process.terminate()
            for process in (front, back):
                process.wait()


def main() -> None:
    """Run the sides alternately and write the section."""
    from benchmarks.harness import Side, alternate, ratio, table, write_section

    results = alternate([Side(name, [sys.executable, "-m", "benchmarks.proxy", name]) for name in REQUESTS])
    rows = [
        [name, 1e6 / one.per_cpu_s, one.median("work") / one.median("wall_s"), one.median("added_ms"), one.median("up_s")]
        for name, one in results.items()
    ]
    line = ratio(HEADLINES[0], results["ours"].per_cpu_s / results["litellm"].per_cpu_s)
    about = "A chat completion through a proxy to a bare server here; ours has each request in its log, on disk, before it answers."
    body = table(["side", "µs CPU a request", "requests/s (8 clients)", "ms added (p50, one client)", "s to start"], rows)
    write_section("proxy", "Proxying to another server", "\n\n".join([about, body, line]))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["behind", port]:
            behind(int(port))
        case ["front", port, upstream, folder]:
            ours(int(port), int(upstream), folder)
        case [name]:
            side(name)
        case _:
            main()
