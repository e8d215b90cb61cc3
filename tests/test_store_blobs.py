"""Blobs through their one door: a folder, memory, and S3 as a local server has it; each whole or not there.

The S3 server is moto, in an environment of its own (.peers/moto), since its dependencies do not go with ours.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from api_parts import MODEL, chat_rows, running_server
from tunesmith.core.errors import ConfigError, StoreError, UsageError
from tunesmith.deploy.serve_config import ServeConfig
from tunesmith.store.blobs import Blobs
from tunesmith.store.store import Store
from waiting import address, until

MOTO = Path(__file__).parents[1] / ".peers" / "moto" / "bin" / "python"
SERVE = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
input()
"""
pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def s3():
    """The URL of a bucket on a server of this machine; the environment has its address and the credentials."""
    import httpx

    if not MOTO.exists():
        pytest.skip("no S3 server: python -m venv .peers/moto, then pip install 'moto[s3]' flask flask-cors in it")
    process = subprocess.Popen([MOTO, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    url = process.stdout.readline().strip()
    mine = {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    mine |= {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "h1dden"}
    before = dict(os.environ)
    os.environ.update(mine)
    httpx.put(f"{url}/bucket").raise_for_status()
    yield "s3://bucket/some/prefix"
    os.environ.clear()
    os.environ.update(before)
    process.communicate()


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def blobs(request, tmp_path):
    places = {"folder": str(tmp_path / "blobs"), "memory": "memory:///"}
    return Blobs(places[request.param] if request.param in places else f"{request.getfixturevalue('s3')}/{tmp_path.name}")


def test_what_was_put_is_read_back(blobs):
    blobs.check()
    big = os.urandom((12 << 20) + 5)  # more than one part of an upload to S3
    for name, data in (("files/a", b"abc"), ("files/empty", b""), ("files/big", big), ("files/a", b"another")):
        assert blobs.put(name, io.BytesIO(data)) == (len(data), hashlib.sha256(data).hexdigest())
        with blobs.open(name) as stream:
            assert stream.read() == data
    with blobs.open("files/big") as stream:
        assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == big
    with blobs.open("files/a") as stream:
        assert list(stream) == [b"another"]


def test_what_was_removed_is_gone_and_nothing_else(blobs):
    for name in ("uploads/a/1", "uploads/a/2", "uploads/ab/1", "files/x"):
        blobs.put(name, io.BytesIO(b"x"))
    blobs.remove_below("uploads/a")
    blobs.remove("files/x")
    blobs.remove("files/x")
    blobs.remove_below("uploads/none")
    for name in ("uploads/a/1", "uploads/a/2", "files/x", "never"):
        with pytest.raises(FileNotFoundError):
            blobs.open(name)
    assert blobs.open("uploads/ab/1").read() == b"x"


class Broken(io.RawIOBase):
    """A client that goes away in the middle."""

    left = 14

    def read(self, size=-1):
        self.left -= 1
        if self.left < 0:
            raise ConnectionResetError("the client is gone")
        return b"x" * (1 << 20)


def test_what_ends_in_the_middle_leaves_nothing(blobs):
    def too_large(size):
        if size > 13 << 20:
            raise UsageError("too large")

    with pytest.raises(UsageError, match="too large"):
        blobs.put("files/refused", io.BytesIO(b"x" * (14 << 20)), refuse=too_large)
    with pytest.raises((ConnectionResetError, StoreError)):
        blobs.put("files/broken", Broken())
    blobs.put("files/whole", io.BytesIO(b"old"))
    with pytest.raises((ConnectionResetError, StoreError)):
        blobs.put("files/whole", Broken())
    for name in ("files/refused", "files/broken"):
        with pytest.raises(FileNotFoundError):
            blobs.open(name)
    assert blobs.open("files/whole").read() == b"old"
    if "://" not in blobs.place:
        assert [path.name for path in Path(blobs.place).rglob("*") if path.is_file()] == ["whole"]


KILLED = """
import os, signal, sys
from tunesmith.store.blobs import Blobs

class Stream:
    left = 3
    def read(self, size):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return b"x" * (6 << 20)

Blobs(sys.argv[1]).put("files/a", Stream())
"""


@pytest.mark.slow
def test_a_killed_process_leaves_no_half_blob(blobs):
    if blobs.place.startswith("memory"):
        pytest.skip("memory goes with its process")
    assert subprocess.run([sys.executable, "-c", KILLED, blobs.place]).returncode == -9
    with pytest.raises(FileNotFoundError):
        blobs.open("files/a")


@pytest.mark.slow
def test_a_server_keeps_files_uploads_and_batches_in_a_bucket(tmp_path):
    store = Store.open(tmp_path / "store", blobs="memory:///")
    with running_server(tmp_path, store=store) as server:
        client = server.client
        file = server.upload(chat_rows())
        assert client.files.content(file.id).read() == chat_rows()
        upload = client.uploads.create(filename="x.jsonl", purpose="fine-tune", bytes=6, mime_type="application/jsonl")
        parts = [client.uploads.parts.create(upload.id, data=data).id for data in (b"abc", b"def")]
        done = client.uploads.complete(upload.id, part_ids=parts)
        assert client.files.content(done.file.id).read() == b"abcdef"
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
        line["body"] = {"model": "echo", "messages": [{"role": "user", "content": "one two"}]}
        asked = client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=asked.id, endpoint="/v1/chat/completions", completion_window="24h")
        ended = until(lambda: (found := client.batches.retrieve(batch.id)).status == "completed" and found)
        assert b"one two" in client.files.content(ended.output_file_id).read()
        client.files.delete(file.id)
        with pytest.raises(FileNotFoundError):
            store.blobs.open(f"files/{file.id}")
        for part in parts:
            with pytest.raises(FileNotFoundError):
                store.blobs.open(f"uploads/{upload.id}/{part}")
    assert not store.layout.blobs.exists()
    store.close()


PROJECT = "name: bot\nsources: [{{path: rows.jsonl}}]\nbase: {base}\nserve: {{workers: 1, names: {{{name}: {base}}}, blobs: {blobs}}}\n"


@pytest.mark.slow
def test_a_job_of_a_worker_process_has_its_files_in_s3(s3, tmp_path):
    openai = pytest.importorskip("openai")
    base = tiny.model(tmp_path / "base")
    (tmp_path / "tunesmith.yaml").write_text(PROJECT.format(base=base, name=MODEL, blobs=s3))
    words = [sys.executable, "-m", "tunesmith", "serve", "--config", str(tmp_path / "tunesmith.yaml"), "--json", "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        client = openai.OpenAI(base_url=next(filter(None, map(address, server.stdout))), api_key="none")
        file = client.files.create(file=("rows.jsonl", chat_rows()), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, hyperparameters={"n_epochs": 1})
        ended = ("succeeded", "failed")
        done = until(
            lambda: (found := client.fine_tuning.jobs.retrieve(job.id)).status in ended and found, alive=lambda: server.poll() is None
        )
        assert done.status == "succeeded", done.error
        weights = [number for number in done.result_files if client.files.retrieve(number).filename == "adapter_model.safetensors"]
        adapter = client.files.content(weights[0]).read()
    finally:
        server.terminate()
        assert server.wait() == 0
    assert Blobs(s3).open(f"files/{weights[0]}").read() == adapter
    store = tmp_path / ".tunesmith"
    assert not (store / "blobs").exists()
    assert b"h1dden" not in b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_said_before_the_server_starts(s3, tmp_path):
    (tmp_path / "tunesmith.yaml").write_text(PROJECT.format(base="echo", name=MODEL, blobs="s3://no-such-bucket"))
    words = [sys.executable, "-m", "tunesmith", "serve", "--config", str(tmp_path / "tunesmith.yaml"), "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "s3://no-such-bucket: the blobs cannot be written" in done.stderr
    assert "AWS_ENDPOINT_URL" in done.stderr
    assert "h1dden" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("s3://key:h1dden@bucket", "names no bucket, or has more"),
        ("s3://bucket?secret=h1dden", "names no bucket, or has more"),
        ("s3://", "names no bucket"),
        ("ftp://me:h1dden@host/x", "'blobs' begins with 'ftp://'"),
        (" ", "'blobs' is empty"),
    ],
)
def test_a_place_that_is_none_is_refused_without_its_secret(place, said):
    with pytest.raises(ConfigError, match=said) as refused:
        ServeConfig(blobs=place)
    assert "h1dden" not in str(refused.value)
    assert ServeConfig(blobs="s3://bucket/prefix").blobs == "s3://bucket/prefix"


def test_a_folder_beside_the_project_holds_the_files(tmp_path):
    from tunesmith.flow.project import load_project, open_store

    (tmp_path / "tunesmith.yaml").write_text("name: x\nsources: [{path: rows.jsonl}]\nbase: b\nserve: {blobs: kept}\n")
    store = open_store(load_project(tmp_path / "tunesmith.yaml"), tmp_path)
    store.blobs.put("files/a", io.BytesIO(b"x"))
    assert (tmp_path / "kept" / "files" / "a").read_bytes() == b"x"
    store.close()
