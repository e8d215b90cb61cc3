"""The store over a real PostgreSQL, started for these tests in a folder of its own."""

from __future__ import annotations

import asyncio
import glob
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tunesmith.core.errors import StoreError
from tunesmith.core.store import Store
from tunesmith.core.types import Interaction, Message

BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin"))


def _as_owner(folder):
    """PostgreSQL refuses root: where we are root, it runs as the user that its package made."""
    if os.getuid() != 0:
        return []
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("running as root and there is no user 'postgres'")
    shutil.chown(folder, "postgres")
    return ["runuser", "-u", "postgres", "--"]


@pytest.fixture(scope="module")
def database():
    if not BINARIES:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # pytest's own folders are closed to other users
    owner, binaries = _as_owner(folder), BINARIES[-1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run([*owner, f"{binaries}/initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "tester"], check=True, capture_output=True)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([*owner, f"{binaries}/pg_ctl", "-D", f"{folder}/data", "-o", options, "-w", "-l", f"{folder}/log", "start"], check=True)
    yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    subprocess.run([*owner, f"{binaries}/pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop"], check=True, capture_output=True)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_stages_deployments_and_blobs(database, tmp_path):
    store = Store.open(tmp_path, url=database)
    store.finish("d", project="p", name="s", seconds=1.0, output={"a": 1})
    store.finish("d", project="p", name="s", seconds=1.0, output={"a": 2})
    assert Store.open(tmp_path, url=database).finished("d")["output"] == {"a": 2}
    first, second = store.deploy("m", {"base": "x"}, reason="r"), store.deploy("m", {"base": "y"}, reason="r")
    assert second > first
    assert store.deployed()["m"]["base"] == "y"


@pytest.mark.slow
def test_the_log_of_requests_is_read_back_by_monitoring(database, tmp_path):
    from tunesmith.monitor.log import InteractionLog
    from tunesmith.monitor.status import status

    store = Store.open(tmp_path, url=database)
    log = InteractionLog(store.engine)
    one = Interaction(
        id="chatcmpl-1", created=1.0, alias="a", variant="v", messages=(Message(role="user", content="q"),), answer="x",
        finish_reason="stop", prompt_tokens=3, completion_tokens=2, first_token_s=0.1, total_s=0.2,
    )  # fmt: skip
    asyncio.run(log.write(one))
    asyncio.run(log.write(one))
    log.close()
    found = status(store.engine)
    assert (found["requests"], found["completion_tokens"]) == (1, 2), "the same request is logged once"


def test_a_database_that_is_not_there_is_one_clear_error(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(tmp_path, url="postgresql+psycopg://nobody@127.0.0.1:9/none")


WORKER = """
import sys
from tunesmith.core.store import Store
from tunesmith.flow.jobs.worker import Worker
Worker(Store.open(sys.argv[1], url=sys.argv[2]), isolated=False, lease_s=10, poll_s=0.1).run()
"""


@pytest.mark.slow
def test_server_jobs_and_batches_with_a_worker_process(database, tmp_path):
    pytest.importorskip("openai")
    import json

    from api_parts import MODEL, chat_rows, running_server

    store = Store.open(tmp_path / "store", url=database)
    command = [sys.executable, "-c", WORKER, str(tmp_path / "store"), database]
    with running_server(tmp_path, store=store) as server:
        workers = [subprocess.Popen(command) for _ in range(2)]
        try:
            client, hyper = server.client, {"n_epochs": 1, "batch_size": 4}
            files = [server.upload(chat_rows(first=20 * i)).id for i in range(2)]
            jobs = [client.fine_tuning.jobs.create(model=MODEL, training_file=file, hyperparameters=hyper) for file in files]
            line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
            line["body"] = {"model": "echo", "messages": [{"role": "user", "content": "one two"}]}
            asked = client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
            batch = client.batches.create(input_file_id=asked.id, endpoint="/v1/chat/completions", completion_window="24h")
            limit = time.monotonic() + 180
            while not all(client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed") for job in jobs):
                assert time.monotonic() < limit, [client.fine_tuning.jobs.retrieve(job.id).status for job in jobs]
                time.sleep(0.3)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        done = [client.fine_tuning.jobs.retrieve(job.id) for job in jobs]
        assert [job.status for job in done] == ["succeeded", "succeeded"], [job.error for job in done]
        for job in done:
            told = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)]
            assert len(told) == len(set(told)), "each event once, though two workers were there"
            assert client.chat.completions.create(model=job.fine_tuned_model, messages=[{"role": "user", "content": "x"}], max_tokens=2)
        batch = client.batches.retrieve(batch.id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 1)
        assert b"one two" in client.files.content(batch.output_file_id).read()
    store.close()
