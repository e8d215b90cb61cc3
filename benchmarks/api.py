"""The API layer as a logging proxy to another server, beside LiteLLM: processor time of its process for a request, and what it adds.

Both ask for a key and log each request; ours has it in its store, on disk, before the answer ends, LiteLLM's logger appends to a file when
it comes to it. Beside them a proxy of Starlette and aiohttp that does neither. Run as a program with the name of a side it does that side's
work once and prints its figures.
"""

from __future__ import annotations

import asyncio
import itertools
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

HEADLINES = ("proxy_vs_litellm", "proxy_stream_vs_litellm")
# (whole answers, streams) that each side is asked for; enough for a second of its time.
REQUESTS = {"ours": (3200, 960), "bare": (3200, 960), "litellm": (320, 96)}
CLIENTS, ALONE = 16, 60
CHUNKS, PAUSE_S = 20, 0.002
NEEDS = ("litellm[proxy]==1.106.2",)
LOGGER = """
import json
from litellm.integrations.custom_logger import CustomLogger

class Log(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        said = kwargs["standard_logging_object"]
        row = {key: said[key] for key in ("id", "model", "messages", "response", "total_tokens", "startTime", "endTime")}
        with open("%s/rows.jsonl", "a") as file:
            file.write(json.dumps(row, default=str) + "\\n")

log = Log()
"""
MESSAGES = [{"role": "user", "content": "say one two three, " + "and mind the words, " * 20}]
USAGE = {"prompt_tokens": 3, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 3}


def behind(port: int) -> None:
    """The server behind the proxy: bare ASGI, the same words each time under an id of their own."""
    import uvicorn

    numbers = itertools.count(10**24)

    def body(kind: str, **choice: Any) -> bytes:
        head = {"id": f"chatcmpl-{next(numbers)}", "object": kind, "created": 1, "model": "m"}
        return json.dumps({**head, "choices": [{"index": 0, "logprobs": None, **choice}], "usage": USAGE}).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked = b""
        while (message := await receive())["type"] == "http.request":
            asked += message.get("body", b"")
            if not message.get("more_body"):
                break
        else:
            return
        given = json.loads(asked)
        if not given.get("stream"):
            said = {"role": "assistant", "content": "one two three " * 7, "refusal": None}
            data = body("chat.completion", message=said, finish_reason="stop")
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": data})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        chunks = given.get("chunks") or CHUNKS
        for i in range(chunks):
            data = body("chat.completion.chunk", delta={"content": "word "}, finish_reason="stop" if i == chunks - 1 else None)
            await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
            await asyncio.sleep(given.get("pace_s") or PAUSE_S)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")


def ours(port: int, upstream: int, folder: str) -> None:
    """Our server in front of it."""
    from tunesmith.api.app import ServeConfig, create_app, serve
    from tunesmith.models.upstream import Upstream
    from tunesmith.store.store import Store

    models = {"m": Upstream("m", base_url=f"http://127.0.0.1:{upstream}/v1")}
    config = ServeConfig(port=port)
    serve(create_app(models, config=config, store=Store.open(folder)), config)


def bare(port: int, upstream: int) -> None:
    """What is commonly written first: Starlette and aiohttp, no key, no log."""
    import aiohttp
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    sessions: list[aiohttp.ClientSession] = []

    async def passed(request: Request) -> Response:
        sessions.extend([] if sessions else [aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))])
        data, headers = await request.body(), {"content-type": "application/json"}
        answer = await sessions[0].post(f"http://127.0.0.1:{upstream}/v1/chat/completions", data=data, headers=headers)
        kind = answer.headers["content-type"]
        if kind.startswith("text/event-stream"):
            return StreamingResponse(answer.content.iter_any(), answer.status, media_type=kind)
        return Response(await answer.read(), answer.status, media_type=kind)

    app = Starlette(routes=[Route("/v1/chat/completions", passed, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def cpu_s(pid: int) -> float:
    """User and system seconds of a process and its children."""
    import psutil

    one = psutil.Process(pid)
    return float(sum(sum(p.cpu_times()[:2]) for p in [one, *one.children(recursive=True)]))


async def ask(url: str, key: str, count: int, clients: int, *, stream: bool = False) -> tuple[float, float]:
    """(median seconds until the first bytes of an answer, until its end) of `count` requests by so many clients at once."""
    import aiohttp

    data = json.dumps({"model": "m", "messages": MESSAGES, **({"stream": True} if stream else {})}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    times: list[tuple[float, float]] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in range(count // clients):
            started = time.perf_counter()
            async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers) as answer:
                said = await answer.content.readany()
                first_s = time.perf_counter() - started
                said += await answer.read()
                assert answer.status == 200, said
                assert not stream or said.count(b"word ") == CHUNKS, said
            times.append((first_s, time.perf_counter() - started))

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return median(first for first, _ in times), median(total for _, total in times)


def start(name: str, port: int, upstream: int, folder: str, *, deployments: int = 1) -> tuple[subprocess.Popen[bytes], str]:
    """(the side's server, the key that it asks for)."""
    key, environment = "sk-none", {**os.environ, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "benchmarks.api", name, str(port), str(upstream), *([folder] if name == "ours" else [])]
    if name == "ours":
        from tunesmith.store.keys import Keys
        from tunesmith.store.store import Store

        key = Keys(Store.open(folder)).create("benchmark")[1]
    elif name == "litellm":
        from benchmarks.harness import peer_python

        to = {"model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "x"}
        settings = {"general_settings": {"master_key": key}, "litellm_settings": {"callbacks": "rows.log"}}
        (Path(folder) / "config.yaml").write_text(
            json.dumps({"model_list": [{"model_name": "m", "litellm_params": to}] * deployments, **settings})
        )
        (Path(folder) / "rows.py").write_text(LOGGER % folder)
        program = Path(peer_python("litellm", NEEDS)).parent / "litellm"
        command = [str(program), "--config", f"{folder}/config.yaml", "--port", str(port), "--host", "127.0.0.1"]
    with open(f"{folder}/log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment), key


def wait(url: str, key: str, seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            asyncio.run(ask(url, key, 1, 1))
            return
        except Exception:
            if time.monotonic() > limit:
                raise
            time.sleep(0.2)


def logged(name: str, folder: str) -> int:
    """How many requests the side has in its log."""
    if name == "litellm":
        return len((Path(folder) / "rows.jsonl").read_text().splitlines())
    from tunesmith.monitor.status import status
    from tunesmith.store.store import Store

    return int(status(Store.open(folder))["requests"])


def side(name: str) -> None:
    """Start both servers, ask, print the figures."""
    upstream, port = free(), free()
    with tempfile.TemporaryDirectory() as folder:
        back = subprocess.Popen([sys.executable, "-m", "benchmarks.api", "behind", str(upstream)])
        started = time.perf_counter()
        front, key = start(name, port, upstream, folder)
        try:
            wait(url := f"http://127.0.0.1:{port}", key)
            figures: dict[str, Any] = {"up_s": time.perf_counter() - started, "peak_mb": 0.0, "versions": {}}
            asked = 1
            for shape, count in zip(("whole", "stream"), REQUESTS[name], strict=True):
                stream = shape == "stream"
                asyncio.run(ask(url, key, 4 * CLIENTS, CLIENTS, stream=stream))
                direct = asyncio.run(ask(f"http://127.0.0.1:{upstream}", key, ALONE, 1, stream=stream))
                through = asyncio.run(ask(url, key, ALONE, 1, stream=stream))
                before = cpu_s(front.pid)
                asyncio.run(ask(url, key, count, CLIENTS, stream=stream))
                time.sleep(1)  # LiteLLM's logger comes after the answers
                figures[f"{shape}_us"] = 1e6 * (cpu_s(front.pid) - before) / count
                figures[f"{shape}_first_ms"], figures[f"{shape}_ms"] = (1000 * (a - b) for a, b in zip(through, direct, strict=True))
                asked += 4 * CLIENTS + ALONE + count
            assert name == "bare" or logged(name, folder) >= asked, f"{logged(name, folder)} rows logged of {asked}"
            print(json.dumps({**figures, "cpu_s": figures["whole_us"] / 1e6, "work": 1}))
        finally:
            for process in (front, back):
                process.terminate()
            for process in (front, back):
                process.wait()


def main() -> None:
    """Run the sides alternately and write the section."""
    from benchmarks.harness import Side, alternate, ratio, table, write_section

    results = alternate([Side(name, [sys.executable, "-m", "benchmarks.api", name]) for name in REQUESTS])
    columns = ("whole_us", "stream_us", "whole_ms", "stream_first_ms", "up_s")
    rows = [[name, *(one.median(column) for column in columns)] for name, one in results.items()]
    lines = [
        ratio(headline, results["litellm"].median(column) / results["ours"].median(column))
        for headline, column in zip(HEADLINES, columns, strict=False)
    ]
    about = (
        f"Chat completions through a proxy to a bare server here, {CLIENTS} clients. Ours and {NEEDS[0].replace('[proxy]==', ' ')} check "
        "a key and log each request (ours: committed before the answer ends); 'bare' is Starlette and aiohttp without either. "
        f"A stream has {CHUNKS} chunks. What is added is the difference of medians, one client, to asking the server itself."
    )
    header = ["side", "µs CPU a request", "µs CPU a stream", "ms added (p50)", "ms added to a stream's first chunk (p50)", "s to start"]
    write_section("api", "Proxying to another server", "\n\n".join([about, table(header, rows), "\n".join(lines)]))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["behind", at]:
            behind(int(at))
        case ["ours", at, to, where]:
            ours(int(at), int(to), where)
        case ["bare", at, to]:
            bare(int(at), int(to))
        case [name]:
            side(name)
        case _:
            main()
