"""Batches whose server loses them to another one, or whose file goes while they run: nothing is written twice, nothing is tried for ever."""

from __future__ import annotations

import json
import threading
import time

import pytest
import sqlalchemy as sa

from api_parts import Server, running_server
from tunesmith.api.app import ServeConfig, create_app, running
from tunesmith.models.echo import EchoModel
from tunesmith.store.store import Store
from tunesmith.store.tables import batches, files
from waiting import until

pytest.importorskip("openai")


class Gate(EchoModel):
    """Echo that answers `wait …` only once its gate is open."""

    def __init__(self, name):
        super().__init__(name)
        self.reached, self.open = threading.Event(), threading.Event()

    def answer(self, prompts, sampling, on_answer=None):
        if any("wait" in prompt.messages[-1].text for prompt in prompts):
            self.reached.set()
            self.open.wait()
        return super().answer(prompts, sampling, on_answer)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request, tmp_path):
    url = request.getfixturevalue("database") if request.param == "postgresql" else None
    store = Store.open(tmp_path / "store", url=url)
    yield store
    store.close()


def begun(server: Server, texts, model="gate"):
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": {"model": model, "messages": [said]}}
        for i, said in enumerate({"role": "user", "content": text} for text in texts)
    ]
    file = server.client.files.create(file=("b.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    made = server.client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    return file.id, made.id


def ended(server: Server, number):
    return until(lambda: (batch := server.client.batches.retrieve(number)).status in ("completed", "failed", "cancelled") and batch)


def change(store, number, **values):
    with store.writing() as connection:
        connection.execute(sa.update(batches).where(batches.c.id == number).values(**values))


def answers(server: Server, file):
    return [json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] for line in
            server.client.files.content(file).text.splitlines()]  # fmt: skip


def outputs(store):
    with store.reading() as connection:
        known = set(connection.execute(sa.select(files.c.id).where(files.c.purpose == "batch_output")).scalars())
        every = set(connection.execute(sa.select(files.c.id)).scalars())
    bytes_kept = {path.name for path in (store.folder / "blobs" / "files").iterdir()}
    assert bytes_kept == every, "no bytes without a row"
    return known


@pytest.mark.slow
def test_a_batch_that_another_server_holds_is_left_to_it(store, tmp_path):
    model = Gate("gate")
    with running(create_app({"gate": model}, config=ServeConfig(), store=store)) as url:
        server = Server(url, store, tmp_path)
        _, number = begun(server, ["wait 0", "say 1"])
        assert model.reached.wait(60)
        change(store, number, lease="another", lease_until=time.time() + 3600)
        model.open.set()
        _, next_one = begun(server, ["say 2"])
        assert ended(server, next_one).status == "completed", "the server goes on with what nobody holds"
        left = server.client.batches.retrieve(number)
        assert (left.status, left.request_counts.completed, left.output_file_id) == ("in_progress", 0, None)
        change(store, number, lease=None, lease_until=None)
        done = ended(server, number)
        assert (done.status, answers(server, done.output_file_id)) == ("completed", ["wait 0", "say 1"])
    assert len(outputs(store)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_batch_whose_file_was_deleted_ends_with_what_was_answered(tmp_path, cancelled):
    """The server died after some lines; meanwhile the file went. The next one cannot go on, and says so instead of trying for ever."""
    with running_server(tmp_path) as server:
        file, number = begun(server, [f"say {i}" for i in range(3)], model="echo")
        assert ended(server, number).status == "completed"
    store = server.store
    server.store.blobs.remove(f"files/{file}")
    change(store, number, status="cancelling" if cancelled else "in_progress", output_file=None)
    with running_server(tmp_path, store=store, base=server.base) as server:
        done = ended(server, number)
        assert answers(server, done.output_file_id) == ["say 0", "say 1", "say 2"]
        if cancelled:
            assert (done.status, done.errors) == ("cancelled", None)
            return
        (error,) = done.errors.data
        assert (done.status, error.code, error.param) == ("failed", "invalid_input_file", "input_file_id")
        assert file in error.message
        assert "deleted" in error.message
