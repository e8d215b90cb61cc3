"""The store over a real PostgreSQL."""

from __future__ import annotations

import asyncio
import signal
from functools import partial

import pytest
from msgspec import structs

from forked import command, start
from postgres_parts import PASSWORD
from tunesmith.core.deployment import Variant
from tunesmith.core.errors import StoreError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Interaction, Message
from tunesmith.store.chats import Chats
from tunesmith.store.deployments import Deployments
from tunesmith.store.store import Store
from waiting import address, until


@pytest.mark.slow
def test_stages_deployments_and_blobs(database, tmp_path):
    store = Store.open(tmp_path, url=database)
    store.finish("d", project="p", name="s", seconds=1.0, output={"a": 1})
    store.finish("d", project="p", name="s", seconds=1.0, output={"a": 2})
    assert Store.open(tmp_path, url=database).finished("d")["output"] == {"a": 2}
    deployments = Deployments(store)
    first, second = (deployments.put("m", [Variant(name="v", model=ModelRef(base=base))], reason="r") for base in "xy")
    assert second.version > first.version
    assert deployments.in_force() == {"m": second}
    assert deployments.history("m") == [second, first]


@pytest.mark.slow
def test_rows_are_found_by_pairs_of_any_letters(database, tmp_path):
    """As a path into JSON a quote, a point or a control character in a key would mean something else, or nothing at all."""
    pairs = [('a"b', "1"), ("a.b", "2"), ("$", "x"), ("", "e"), ("\u00b2V\x06", "true"), ("k", "5"), ("k'", '"'), ("back\\slash", "\\")]
    for url in (None, database):
        kept = Chats(Store.open(tmp_path / "here", url=url) if url else Store.open(tmp_path / "here"))
        for number, (key, value) in enumerate([*pairs, ("a", "nobody asks")]):
            answered = {"id": f"chatcmpl-{number}", "model": "m"}
            kept.put(answered, project="p", created=float(number), metadata={key: value, "in": "all"}, messages=[])
        asked = {"model": None, "after": None, "limit": 20, "oldest_first": True}
        for number, (key, value) in enumerate(pairs):
            rows, _ = kept.listed("p", metadata={key: value, "in": "all"}, **asked)
            assert [row["id"] for row in rows] == [f"chatcmpl-{number}"], key
        assert kept.listed("p", metadata={"k": "6"}, **asked)[0] == kept.listed("p", metadata={"k\0": "5"}, **asked)[0] == []


@pytest.mark.slow
def test_the_log_of_requests_is_read_back_by_monitoring(database, tmp_path):
    from tunesmith.monitor.status import status
    from tunesmith.store.interactions import InteractionLog

    store = Store.open(tmp_path, url=database)
    log = InteractionLog(store)
    one = Interaction(
        id="chatcmpl-1", created=1.0, alias="a", variant="v", messages=(Message(role="user", content="q"),), answer="x",
        finish_reason="stop", prompt_tokens=3, completion_tokens=2, first_token_s=0.1, total_s=0.2,
    )  # fmt: skip
    asyncio.run(log.write(one))

    async def many(*wrong):
        rows = [structs.replace(one, id=f"chatcmpl-{i % 100}", answer="tab\t, \\N and a line\n", cost_usd=None) for i in range(150)]
        return await asyncio.gather(*map(log.write, [*rows, *wrong]), return_exceptions=True)

    asyncio.run(log.write(one))
    assert set(asyncio.run(many())) == {None}
    refused = asyncio.run(many(structs.replace(one, id="none", prompt_tokens=1 << 40)))
    assert [type(end).__name__ for end in refused if end is not None] == ["StoreError"], "it keeps no other from being written"
    log.close()
    found = status(store)
    assert (found["requests"], found["completion_tokens"]) == (100, 200), "the same request is logged once"
    with store.reading() as connection:
        assert connection.exec_driver_sql("SELECT DISTINCT answer FROM interactions WHERE id <> 'chatcmpl-1'").scalars().all() == [
            "tab\t, \\N and a line\n"
        ]


@pytest.mark.slow
def test_a_person_is_forgotten(database, tmp_path):
    from tunesmith.flow.forgetting import forget
    from tunesmith.store.chats import Chats
    from tunesmith.store.interactions import InteractionLog, Interactions

    store = Store.open(tmp_path, url=database)
    log = InteractionLog(store, at_once=False)

    async def write():
        for i, user in enumerate(("anna-4711", "bert-0815", "anna-4711")):
            await log.write(
                Interaction(
                    id=f"chatcmpl-{i:012}", created=1.0, alias="a", variant="v", messages=(Message(role="user", content=f"I am {user} {i}"),),
                    answer=f"hello {user}, nice to meet you", finish_reason="stop", prompt_tokens=3, completion_tokens=2, first_token_s=0.1,
                    total_s=0.2, user_key=user,
                )
            )  # fmt: skip

    asyncio.run(write())
    log.close()
    for i in range(2):
        turns = [{"role": "user", "content": "x"}]
        Chats(store).put({"id": f"chatcmpl-{i:012}", "model": "a"}, project="", created=1.0, metadata=None, messages=turns)
    receipt = forget(store, "anna-4711")
    assert (receipt.rows, receipt.left) == ({"chats": 1, "interactions": 2}, ())
    assert "archived write-ahead log" in receipt.backups
    assert [each.user_key for each in Interactions(store).answered({})] == ["bert-0815"]
    store.close()


def test_a_database_that_is_not_there_is_one_clear_error(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(tmp_path, url="postgresql+psycopg://nobody@127.0.0.1:9/none")


@pytest.mark.parametrize("words", [["status"], ["forget", "somebody", "--yes"]])
def test_monitoring_says_that_the_database_is_away(tmp_path, capsys, words):
    pytest.importorskip("psycopg")
    from tunesmith.cli import app
    from tunesmith.cli.shared import guarded

    database = f"postgresql+psycopg://tester:{PASSWORD}@127.0.0.1:9/none"
    (tmp_path / "tunesmith.yaml").write_text(PROJECT.format(base="echo", database=database))
    assert guarded(app, ["monitor", *words, "--config", str(tmp_path / "tunesmith.yaml")]) == 1
    said = capsys.readouterr().err
    assert "the store cannot be opened" in said
    assert "look whether the database runs" in said
    assert "Traceback" not in said
    assert PASSWORD not in said


def worker(store, folder):
    """A worker as it is started beside a server, with a process for each job."""
    from tunesmith.deploy.processes import start
    from tunesmith.flow.jobs import worker as module

    words = [*module.place(store), "--lease", "2", "--threads", "1"]
    return start(module.MODULE, words, folder / "worker.log", stdin=store.url)


def running(process):
    """Whether it runs still; one that ended may be waited for by nobody."""
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def told_worker(words, url):
    """The same in a process that has imported what is heavy."""
    from tunesmith.flow.jobs.worker import main

    main(words, url=url)


def ended(client, number):
    """A job once it has ended."""
    return until(lambda: (job := client.fine_tuning.jobs.retrieve(number)).status in ("succeeded", "failed") and job)


def told(client, number):
    return [event.message for event in client.fine_tuning.jobs.list_events(number, limit=100)]


@pytest.mark.slow
def test_server_jobs_and_batches_with_a_worker_process(database, tmp_path):
    pytest.importorskip("openai")
    import json

    from api_parts import MODEL, chat_rows, running_server

    store = Store.open(tmp_path / "store", url=database)
    with running_server(tmp_path, store=store) as server:
        words = ["--store", str(store.folder), "--database", "-", "--lease", "2", "--threads", "1"]
        workers = [start(told_worker, words, store.url) for _ in range(2)]
        try:
            client, hyper = server.client, {"n_epochs": 1, "batch_size": 4}
            files = [server.upload(chat_rows(first=20 * i)).id for i in range(2)]
            jobs = [client.fine_tuning.jobs.create(model=MODEL, training_file=file, hyperparameters=hyper) for file in files]
            line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
            line["body"] = {"model": "echo", "messages": [{"role": "user", "content": "one two"}]}
            asked = client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
            batch = client.batches.create(input_file_id=asked.id, endpoint="/v1/chat/completions", completion_window="24h")
            done = [ended(client, job.id) for job in jobs]
        finally:
            for one in workers:
                one.kill()
        assert [job.status for job in done] == ["succeeded", "succeeded"], [job.error for job in done]
        for job in done:
            said = told(client, job.id)
            assert len(said) == len(set(said)), "each event once, though two workers were there"
            assert client.chat.completions.create(model=job.fine_tuned_model, messages=[{"role": "user", "content": "x"}], max_tokens=2)
        batch = client.batches.retrieve(batch.id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 1)
        assert b"one two" in client.files.content(batch.output_file_id).read()
    store.close()


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(database, tmp_path):
    """Two jobs that ask for the same; the worker of the second is killed in the middle, and another goes on to the same weights."""
    pytest.importorskip("openai")
    import psutil

    from api_parts import MODEL, chat_rows, running_server

    store = Store.open(tmp_path / "store", url=database)
    with running_server(tmp_path, store=store) as server:
        client, alive = server.client, worker(store, tmp_path)
        asked = {"model": MODEL, "training_file": server.upload(chat_rows(24)).id, "seed": 1}
        jobs = client.fine_tuning.jobs
        try:
            first, second = (jobs.create(**asked, hyperparameters={"n_epochs": 4, "batch_size": 2}).id for _ in range(2))
            until(lambda: any("Step 10/" in message for message in told(client, second)))
            before, family = told(client, second), [psutil.Process(alive.pid), *psutil.Process(alive.pid).children()]
            assert len(family) == 2, "a job has a process of its own"
            assert not any(PASSWORD in word for one in family for word in one.cmdline())
            alive.kill()
            alive.wait()
            until(lambda: not any(running(process) for process in family))
            assert jobs.retrieve(second).status == "running"
            alive = start(told_worker, ["--store", str(store.folder), "--database", "-", "--lease", "2", "--threads", "1"], store.url)
            undisturbed, killed = ended(client, first), ended(client, second)
        finally:
            alive.kill()
            alive.wait()
        assert (undisturbed.status, killed.status) == ("succeeded", "succeeded"), (tmp_path / "worker.log").read_text()
        for mine, other in zip(undisturbed.result_files, killed.result_files, strict=True):
            name = client.files.retrieve(mine).filename
            assert name == client.files.retrieve(other).filename
            if name != "adapter_config.json":  # peft writes a set there, in whatever order
                assert client.files.content(mine).read() == client.files.content(other).read(), name
        said = told(client, second)
        assert set(before) <= set(said)
        assert [message for message in said if message.startswith("Step")] == [m for m in told(client, first) if m.startswith("Step")]
    assert PASSWORD not in (tmp_path / "worker.log").read_text()
    store.close()


PROJECT = """
name: bot
sources: [{{path: rows.jsonl}}]
base: {base}
serve: {{workers: 1, names: {{gpt-4o-mini-2024-07-18: {base}}}, database: "{database}"}}
"""


@pytest.mark.slow
def test_serve_and_jobs_work_on_the_database_of_the_project(database, tmp_path):
    openai = pytest.importorskip("openai")
    import json

    import tiny
    from api_parts import MODEL, chat_rows

    (tmp_path / "tunesmith.yaml").write_text(PROJECT.format(base=tiny.model(tmp_path / "base"), database=database))
    server = command(["serve", "--port", "0", "--json"], tmp_path)
    try:
        url = until(lambda: address(server.out), alive=server.alive)
        client = openai.OpenAI(base_url=url, api_key="none")
        file = client.files.create(file=("rows.jsonl", chat_rows()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, hyperparameters={"n_epochs": 1})
        done = ended(client, job.id)
        assert done.status == "succeeded", done.error
        listed = command(["jobs", "list", "--json"], tmp_path)
        assert listed.wait() == 0, listed.err
        assert job.id in [row["id"] for row in json.loads(listed.out)["jobs"]]
    finally:
        code = server.kill(signal.SIGTERM)
    assert code == 0
    assert not (tmp_path / ".tunesmith" / "tunesmith.db").exists()


def test_a_database_that_is_none_is_refused_without_its_password():
    from tunesmith.core.errors import ConfigError
    from tunesmith.deploy.serve_config import ServeConfig

    with pytest.raises(ConfigError, match=r"begins with 'mysql'\s+allowed: postgresql\+psycopg://") as said:
        ServeConfig(database=f"mysql://tester:{PASSWORD}@127.0.0.1/x")
    assert PASSWORD not in str(said.value)


@pytest.mark.slow
def test_experiments_are_added_up_there_too(database, tmp_path):
    from test_experiments import check_sums

    store = Store.open(tmp_path, url=database)
    check_sums(store)
    store.close()


@pytest.mark.slow
def test_a_rollout_counts_and_is_taken_back_by_one_of_two_servers(database, tmp_path):
    from tunesmith.core.rollout import RolloutPlan
    from tunesmith.flow.rollouts import canary, look, status
    from tunesmith.models.catalog import Catalog
    from tunesmith.models.resolve import Models
    from tunesmith.models.upstream import Upstream
    from tunesmith.store.rollouts import Rollouts
    from tunesmith.store.tables import interactions

    stores = [Store.open(tmp_path, url=database) for _ in range(2)]
    models = Models(stores[0], Catalog(), home=tmp_path)
    models.upstreams = {name: partial(Upstream, name, base_url="http://127.0.0.1:9") for name in "ab"}
    before = Deployments(stores[0]).put("bot", [Variant(name="a", upstream="a")])
    guardrails = {"errors": 0.01, "latency_p95": 0.2, "malformed": 0.02, "thumbs": 0.1}
    rollout = canary("bot", "b", models, stores[0], RolloutPlan(steps=(0.2, 1.0), guardrails=guardrails), by="anna")
    row = {"alias": "bot", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1, "first_token_s": 0.1, "messages": "[]"}
    rows = [
        {**row, "id": f"r{i}", "created": rollout.looked + i / 20, "total_s": 0.2, "answer": "yes", "deployment": rollout.version,
         "status": 500 if i % 5 == 0 else 200, "variant": "canary" if i % 5 == 0 else "a", "propensity": 0.2 if i % 5 == 0 else 0.8}
        for i in range(400)
    ]  # fmt: skip
    with stores[0].writing() as connection:
        connection.execute(interactions.insert(), rows)
    seen = [Rollouts(store).newest("bot") for store in stores]
    ends = [look(each, store, rollout.looked + 30) for each, store in zip(seen, stores, strict=True)]
    assert (ends[0].status, ends[1]) == ("rolled_back", None)
    assert "errors 80 of 80 against 0 of 320" in ends[0].outcome
    in_force = Deployments(stores[1]).in_force()["bot"]
    assert (in_force.variants, in_force.by, in_force.version > before.version) == (before.variants, "rollout", True)
    assert status("bot", stores[1]).affected.failed == 80
