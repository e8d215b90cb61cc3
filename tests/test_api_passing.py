"""Requests passed through to another server: the same bytes, logged, not delayed."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from sqlalchemy import select

from tunesmith.core.store import Store
from tunesmith.core.tables import interactions
from tunesmith.models.echo import EchoModel

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    from tunesmith.api.app import create_app, running
    from tunesmith.deploy.upstream import Upstream

    store = Store.open(tmp_path_factory.mktemp("store"))
    with running(create_app({"echo": EchoModel()})) as behind:
        models = {"far": Upstream("echo", base_url=behind), "gone": Upstream("echo", base_url="http://127.0.0.1:9/v1")}
        with running(create_app(models, store=store)) as url:
            yield url, store


def rows(store):
    with store.engine.connect() as connection:
        return list(connection.execute(select(interactions).order_by(interactions.c.created)).mappings())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_passes_and_is_logged(servers, stream):
    url, store = servers
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    before = len(rows(store))
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = client.chat.completions.create(model="far", messages=[{"role": "user", "content": "one two three"}], **more)
    if stream:
        chunks = list(answer)
        text, number = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks[0].id
    else:
        text, number = answer.choices[0].message.content, answer.id
    assert text == "one two three"
    (row,) = rows(store)[before:]  # on disk when the client has seen the end
    assert (row["id"], row["alias"], row["variant"], row["answer"], row["completion_tokens"]) == (number, "far", "echo", "one two three", 3)
    assert json.loads(row["messages"]) == [{"role": "user", "content": "one two three"}]


def test_errors_pass_too(servers):
    url, _ = servers
    bad = httpx.post(f"{url}/chat/completions", json={"model": "far", "messages": []})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "messages")
    gone = httpx.post(f"{url}/chat/completions", json={"model": "gone", "messages": [{"role": "user", "content": "x"}]})
    assert (gone.status_code, gone.json()["error"]["code"]) == (502, "upstream_unreachable")


def test_the_first_piece_does_not_wait_for_the_next():
    import asyncio
    import threading

    from tunesmith.api.app import create_app, running
    from tunesmith.deploy.upstream import Upstream

    async def slow(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for word in ("one", "two"):
            chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            writer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(0.5)
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(slow, "127.0.0.1", 0))
    threading.Thread(target=loop.run_forever, daemon=True).start()
    port = server.sockets[0].getsockname()[1]
    with running(create_app({"slow": Upstream("m", base_url=f"http://127.0.0.1:{port}/v1")})) as url:
        times, started = [], time.perf_counter()
        with httpx.stream("POST", f"{url}/chat/completions", json={"model": "slow", "messages": [], "stream": True}, timeout=30) as answer:
            for line in answer.iter_lines():
                times += [time.perf_counter() - started] if line else []
    loop.call_soon_threadsafe(loop.stop)
    assert len(times) == 3
    assert times[0] < 0.4 < times[1] < times[2]
