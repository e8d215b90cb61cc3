"""Serving around the endpoints: the log's promise, draining, ports, and what monitoring reads back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from forked import Running, command, script
from tunesmith.core.errors import NotFound, StoreError, UsageError
from tunesmith.core.sketch import Sketch
from tunesmith.core.types import Answer, Interaction, Message, Prompt, Sampling
from tunesmith.deploy.router import Router, Unloaded
from tunesmith.models.base import Model
from tunesmith.models.echo import EchoModel
from tunesmith.monitor.status import ranks, status
from tunesmith.store.interactions import InteractionLog
from tunesmith.store.store import Store
from waiting import until


def interaction(number: int, **more) -> Interaction:
    fields = {
        "id": f"chatcmpl-{number}", "created": 1000.0 + number, "alias": "bot", "variant": "v1", "messages": (Message(role="user", content="hi"),),
        "answer": "yes", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 2, "first_token_s": 0.1, "total_s": 0.2,
    }  # fmt: skip
    return Interaction(**fields | more)


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    yield store
    store.close()


def write(log, rows):
    async def all_rows():
        await asyncio.gather(*(log.write(row) for row in rows))

    asyncio.run(all_rows())


def test_rows_are_written_once_however_often_they_are_sent(store):
    log = InteractionLog(store)
    write(log, [interaction(i % 10) for i in range(40)])
    assert status(store)["requests"] == 10
    log.close()
    with pytest.raises(StoreError, match="closed"):
        write(log, [interaction(1)])


def test_closing_writes_what_is_queued(store):
    log = InteractionLog(store)

    async def leave():
        tasks = [asyncio.ensure_future(log.write(interaction(i))) for i in range(300)]
        await asyncio.sleep(0)
        log.close()
        await asyncio.gather(*tasks)

    asyncio.run(leave())
    assert status(store)["requests"] == 300


def test_a_row_whose_writer_left_is_written_all_the_same(store):
    log = InteractionLog(store)

    async def leave():
        task = asyncio.ensure_future(log.write(interaction(1)))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    write(log, [interaction(2)])
    log.close()
    assert status(store)["requests"] == 2


def test_a_row_that_cannot_be_written_is_told(store):
    log = InteractionLog(store)
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE interactions")
    with pytest.raises(StoreError, match="could not be logged"):
        write(log, [interaction(1)])
    log.close()


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 1 << 64}, {"user_key": "\ud800"}])
def test_a_row_that_the_database_does_not_take_keeps_no_other_from_being_written(store, wrong):
    log = InteractionLog(store)

    async def ask():
        rows = [log.write(interaction(i, **(wrong if i == 3 else {}))) for i in range(8)]
        return await asyncio.wait_for(asyncio.gather(*rows, return_exceptions=True), 60)

    ended = asyncio.run(ask())
    assert [type(end) for end in ended] == [StoreError if i == 3 else type(None) for i in range(8)]
    assert "could not be logged" in str(ended[3])
    log.close()
    assert status(store)["requests"] == 7


def test_status_counts_by_alias_and_variant(store):
    log = InteractionLog(store)
    rows = [interaction(i, variant=f"v{i % 2}", total_s=0.1 * (i + 1), first_token_s=0.05) for i in range(20)]
    rows.append(interaction(99, status=500, error="broken", finish_reason="error"))
    write(log, rows)
    log.close()
    said = status(store)
    assert (said["requests"], said["errors"], said["prompt_tokens"], said["completion_tokens"]) == (21, 1, 63, 42)
    assert [(v["variant"], v["requests"], v["errors"]) for v in said["variants"]] == [("v0", 10, 0), ("v1", 11, 1)]
    p50 = said["total_s"]["p50"]
    assert p50["low"] < p50["value"] < p50["high"]
    assert said["tokens_per_s"] == pytest.approx(40 / 21.0)
    assert status(store, since=1030)["requests"] == 1, "from the minute that begins at 1020"
    assert status(store, since=5000)["variants"] == []


@pytest.mark.parametrize("n", [60, 1500])
def test_quantile_intervals_cover_as_promised(n):
    rng, true = np.random.default_rng(1), {0.5: np.log(2), 0.95: np.log(20)}
    hits = {0.5: 0, 0.95: 0}
    for _ in range(60):
        values = np.sort(rng.exponential(size=n))
        for q in hits:
            _, low, high = ranks(n, q)
            hits[q] += (0 if low is None else values[low]) <= true[q] <= (np.inf if high is None else values[high])
    assert min(hits.values()) >= 52  # 95 % of 60 is 57; fewer than 52 has probability 2e-4


def test_what_the_database_counts_is_what_the_rows_say(store):
    rng = np.random.default_rng(3)
    rows = [
        interaction(
            i, alias=f"a{rng.integers(2)}", variant=f"v{rng.integers(2)}", total_s=float(rng.lognormal()), first_token_s=float(1 + i % 7),
            status=int(rng.choice([200, 200, 200, 429])), completion_tokens=int(rng.integers(50)), cost_usd=0.25 if i % 3 else None,
        )
        for i in range(400)
    ]  # fmt: skip
    log = InteractionLog(store)
    write(log, rows)
    log.close()
    said = status(store, since=1079.0)
    assert said["since"] == rows[20].created == 1020.0, "whole minutes"
    told = [({"all": True}, said), *(({"alias": one["alias"], "variant": one["variant"]}, one) for one in said["variants"])]
    assert len(told) == 5
    for which, one in told:
        mine = [row for row in rows[20:] if which in ({"all": True}, {"alias": row.alias, "variant": row.variant})]
        good = [row for row in mine if row.status < 400]
        assert (one["requests"], one["errors"]) == (len(mine), len(mine) - len(good))
        assert one["completion_tokens"] == sum(row.completion_tokens for row in mine)
        assert one["cost_usd"] == sum(row.cost_usd or 0 for row in mine)
        assert one["tokens_per_s"] == pytest.approx(sum(row.completion_tokens for row in good) / sum(row.total_s for row in good))
        assert one["last"] == max(row.created for row in mine)
        for name in ("total_s", "first_token_s"):
            ordered = sorted(getattr(row, name) for row in good)
            for word, q in (("p50", 0.5), ("p95", 0.95)):
                value, low, high = (one[name][word][key] for key in ("value", "low", "high"))
                assert value == pytest.approx(ordered[int(q * len(good))], rel=0.0101, abs=1e-9)
                assert (value if low is None else low) <= value <= (value if high is None else high)


def test_an_empty_log_has_no_quantiles(store):
    said = status(store)
    assert (said["requests"], said["total_s"], said["cost_usd"], said["last"], said["variants"]) == (0, {}, None, None, [])


def test_the_columns_of_the_log_are_read_back_as_they_were_written(store):
    log = InteractionLog(store)
    written = interaction(
        1, project="p", endpoint="completions", deployment=3, model_digest="d", user_key="u", cost_usd=0.5, experiment="e", propensity=0.25,
        conversation="c",
    )  # fmt: skip
    write(log, [written])
    log.close()
    with store.reading() as connection:
        row = dict(connection.exec_driver_sql("SELECT * FROM interactions").mappings().one())
    plain = {name: getattr(written, name) for name in row if name not in ("messages", "tool_calls")}
    assert {name: row[name] for name in plain} == plain


def test_a_sketch_is_within_one_per_cent():
    rng = random.Random(2)
    values, sketch = sorted(rng.lognormvariate(-3, 1.5) for _ in range(5000)), Sketch()
    for value in values:
        sketch.add(value)
    for q in (0.0, 0.5, 0.95, 0.999):
        assert sketch.quantile(q) == pytest.approx(values[int(q * 4999)], rel=0.0101)


def test_routers_name_the_nearest(store):
    router = Router({"support": EchoModel()})
    with pytest.raises(NotFound, match="did you mean 'support'"):
        router.find("suport")
    router.put("other", EchoModel("other"))
    router.drop("support")
    assert [name for name, _ in router.listed()] == ["other"]
    router.fail("broken", NotFound("no weights"))
    with pytest.raises(Unloaded, match="no weights"):
        router.find("broken")
    router.drop("broken")
    with pytest.raises(NotFound, match="does not exist"):
        router.find("broken")
    router.fail("other", NotFound("no weights"))
    router.put("other", EchoModel("other"))  # loaded at the second try: the first is forgotten
    router.drop("other")
    with pytest.raises(NotFound, match="does not exist"):
        router.drop("other")
    router.put("other", EchoModel("other"))
    assert isinstance(router.find("other"), Model)


def test_a_taken_port_and_a_public_host_are_refused():
    from tunesmith.api.app import listen

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1"):
            listen("127.0.0.1", taken.getsockname()[1])
    for host in ("0.0.0.0", "::", "example.com", "192.168.1.1"):
        with pytest.raises(UsageError, match="keys"):
            listen(host, 0)


class Held(EchoModel):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.let = threading.Event(), threading.Event()

    def answer(self, prompts: list[Prompt], sampling: Sampling, on_answer=None) -> list[Answer]:
        self.asked.set()
        self.let.wait()
        return super().answer(prompts, sampling, on_answer)


class Broken(EchoModel):
    """Cannot answer."""

    def answer(self, prompts: list[Prompt], sampling: Sampling, on_answer=None) -> list[Answer]:
        raise ZeroDivisionError("secret detail")


BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def test_open_requests_end_before_the_server_does(store):
    from tunesmith.api.app import create_app, running

    answers, model = [], Held()

    def closed() -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex((address.host, address.port)) != 0

    def ask() -> None:
        answers.append(httpx.post(url + "/chat/completions", json=BODY, timeout=600))

    def let() -> None:
        until(closed)  # the server is about to end
        model.let.set()

    with running(create_app({"m": model}, store)) as url:
        address, threads = httpx.URL(url), [threading.Thread(target=ask), threading.Thread(target=let)]
        threads[0].start()
        until(model.asked.is_set, alive=threads[0].is_alive)
        threads[1].start()
    for thread in threads:
        thread.join()
    assert answers[0].json()["choices"][0]["message"]["content"] == "hello"
    assert status(store)["requests"] == 1


def test_a_client_that_does_not_wait_is_logged(store):
    from tunesmith.api.app import create_app, running

    model = Held()
    with running(create_app({"m": model}, store)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + "/chat/completions", json=BODY, timeout=httpx.Timeout(600, read=0.2))
        until(lambda: status(store)["requests"])
        model.let.set()
    assert (status(store)["requests"], status(store)["errors"]) == (1, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_model_tells_nothing_of_its_inside_and_is_logged(store, stream):
    from tunesmith.api.app import create_app, running

    with running(create_app({"m": Broken()}, store)) as url:
        response = httpx.post(url + "/chat/completions", json=BODY | {"stream": stream})
        assert response.status_code == (200 if stream else 500)
        assert "secret" not in response.text
        assert "server_error" in response.text
    assert status(store)["errors"] == 1


SERVER = """
import sys
from pathlib import Path
from tunesmith.api.app import ServeConfig, create_app, serve
from tunesmith.store.store import Store
from tunesmith.core.types import Answer
from tunesmith.models.echo import EchoModel
from waiting import until
class Held(EchoModel):
    def answer(self, prompts, sampling, on_answer=None):
        print("asked", flush=True)
        until(Path(sys.argv[2]).exists)
        return super().answer(prompts, sampling, on_answer)
store = Store.open(sys.argv[1])
serve(create_app({"m": Held()}, store), ServeConfig(port=0, notice_s=float(sys.argv[3])), on_ready=lambda url: print(url, flush=True))
"""


def server(folder: Path, *, let: Path, notice_s: float) -> tuple[Running, str]:
    """A server in a process of its own, which answers once `let` is there, and its URL."""
    process = script(SERVER, str(folder / "store"), str(let), str(notice_s))
    return process, until(lambda: process.out.partition("\n")[0] if "\n" in process.out else "", alive=process.alive)


@pytest.mark.slow
def test_sigterm_says_not_ready_first_and_finishes_what_is_open(tmp_path):
    process, url = server(tmp_path, let=tmp_path / "let", notice_s=5)
    ready, answers = url.replace("/v1", "/readyz"), []

    def ask() -> None:
        answers.append(httpx.post(url + "/chat/completions", json=BODY, timeout=600))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: process.out.count("asked") >= 5, alive=process.alive)  # as many as it has threads at least; the others wait
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: httpx.get(ready, timeout=600).status_code == 503, alive=process.alive)  # it says so while it still takes connections
    (tmp_path / "let").touch()
    for thread in threads:
        thread.join()
    assert process.wait() == 0
    assert [answer.status_code for answer in answers] == [200] * 8
    with Store.open(tmp_path / "store").engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM interactions").scalar() == 8


@pytest.mark.slow
def test_kill_loses_no_acknowledged_row(tmp_path):
    process, url = server(tmp_path, let=tmp_path, notice_s=0)
    seen = []

    def ask():
        with httpx.Client() as client:
            while True:
                try:
                    seen.append(client.post(url + "/chat/completions", json=BODY).json()["id"])
                except httpx.HTTPError:
                    return

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(seen) > 50, alive=process.alive, progress=lambda: len(seen))
    process.kill()
    for thread in threads:
        thread.join()
    with Store.open(tmp_path / "store").engine.connect() as connection:
        rows = {row[0] for row in connection.exec_driver_sql("SELECT id FROM interactions")}
    assert len(seen) > 50
    assert set(seen) <= rows


PROJECT = """
name: bot
sources: [{{path: rows.jsonl}}]
base: {base}
serve:
  workers: 0
  names: {{gpt-4o-mini: {base}}}
  upstreams:
    far: {{base_url: {upstream}, model: echo}}
"""


@pytest.mark.slow
def test_the_section_serve_and_the_command_line_are_one_record(tmp_path):
    import tiny
    from tunesmith.api.app import create_app, running

    base = tiny.model(tmp_path / "base")
    with running(create_app({"echo": EchoModel()})) as upstream:
        (tmp_path / "tunesmith.yaml").write_text(PROJECT.format(base=base, upstream=upstream))
        process = command(["serve", "--port", "0", "--json", "--set", "requests_per_minute=7"], tmp_path)
        try:
            url = "http" + until(lambda: " at http" in process.out and process.out.split(" at http")[1].split()[0], alive=process.alive)
            far = httpx.post(f"{url}/chat/completions", json={**BODY, "model": "far"}, timeout=600)
            assert far.json()["choices"][0]["message"]["content"] == "hello"
            assert far.headers["x-ratelimit-limit-requests"] == "7"
            mapped = httpx.post(f"{url}/chat/completions", json={**BODY, "model": "gpt-4o-mini", "max_tokens": 2}, timeout=600)
            assert mapped.json()["usage"]["completion_tokens"] <= 2
        finally:
            code = process.kill(signal.SIGTERM)
        assert code == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  hots: x", "unknown key 'hots'"),
        ("  upstreams: {far: {base_url: far, model: m}}", "http://"),
        ("  requests_per_minute: 0", "1 or more"),
        ("  upstreams: {far: {base_url: 'http://x/v1', model: m, api_key_from: NO_SUCH_KEY}}", "NO_SUCH_KEY"),
    ],
)
def test_a_wrong_section_is_refused_with_its_place(tmp_path, line, said):
    from tunesmith.api.serve import serve_project
    from tunesmith.core.errors import ConfigError

    file = tmp_path / "tunesmith.yaml"
    file.write_text(f"name: bot\nsources: [{{path: rows.jsonl}}]\nbase: smollm2-135m\nserve:\n{line}\n")
    with pytest.raises((ConfigError, UsageError), match=said):
        serve_project(file)
