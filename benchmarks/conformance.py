"""openai-python's own API tests against the real application: the tests come from the package's source distribution, the store is seeded
with the placeholder ids that they use, and seeded again before each test. The product has no test mode.

    python -m benchmarks.conformance          # or: make conformance

Its seeding is a pytest plugin of its own (`benchmarks/conformance_plugin.py`), which asks this process over a port of this machine.
"""

from __future__ import annotations

import http.server
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
HEADLINES: tuple[str, ...] = ()
# What is left out: the word "md5" as a checksum, which the server says is not the checksum of what came, as it should; responses that are
# asked of no model, streamed once more or cancelled, which only background ones can be; endpoints that are not served.
NOT_MEANT = (
    "not (Uploads and test_method_complete_with_all_params) and not InputTokens "
    "and not (Responses and (create or overload_2 or cancel or compact))"
)
VERSION = "3.54.0"
NEEDS = (f"openai[aiohttp]=={VERSION}", "pytest", "pytest-asyncio", "inline-snapshot", "rich")
PARTS = ("fine_tuning", "chat", "uploads", "responses")
FILES = ("test_files", "test_uploads", "test_models", "test_completions", "test_embeddings", "test_batches", "test_responses")
JOB, CHECKPOINT = "ft-AF1WoRqd3aJAHsqc9NY7iL8F", "ft:gpt-4o-mini-2024-07-18:org:weather:B7R9VjQd"
FILE_IDS = ("file-abc123", "file_id", "input_file_id", "training_file")
RESPONSE = {"id": "resp_677efb5139a88190b512bc3fef8e535d", "object": "response", "created_at": 1, "model": "m", "output": [], "tools": []}
RESPONSE |= {"parallel_tool_calls": True, "tool_choice": "auto"}
PERMISSION, PROJECT = "cp_zc4Q7MP6XxulcVzj4MZdwsAB", "default"


def seed(store: Any, base: Path) -> None:
    """Every table as the tests expect it: a job, its files, checkpoint and permission, uploads, a chat, a batch."""
    from tunesmith.store import tables

    now = time.time()
    kinds = [t for t in tables.metadata.sorted_tables if t.name not in ("meta", "stages", "interactions", "deployments", "api_keys")]
    own = {"created": now, "project": PROJECT}
    hyper = {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0}
    job = {"model": "gpt-4o-mini", "base": str(base), "training_file": FILE_IDS[0], "seed": 1, "extras": {}, "priority": 0, "tries": 0}
    job |= {"method": {"type": "supervised", "supervised": {"hyperparameters": hyper}}, "fingerprint": "x", "result_files": [], "step": 0}
    message = {"role": "assistant", "content": "x"}  # the published type of a stored message knows no other role
    answer = {"index": 0, "message": {"role": "assistant", "content": "x", "refusal": None}, "logprobs": None, "finish_reason": "stop"}
    chat = {"id": "completion_id", "object": "chat.completion", "created": int(now), "model": "m", "choices": [answer]}
    upload = {"expires": now + 3600, "bytes": 1, "filename": "f", "purpose": "fine-tune", "status": "pending"}
    with store.engine.begin() as connection:
        for table in kinds:
            connection.execute(sa.delete(table))

        def put(table: sa.Table, **values: Any) -> None:
            connection.execute(sa.insert(table).values(**own | values if "project" in table.c else {"created": now} | values))

        for number in FILE_IDS:
            purpose = "batch" if number == "input_file_id" else "fine-tune"
            put(tables.files, id=number, bytes=1, filename="f", purpose=purpose, sha256="")
            store.blobs.put(f"files/{number}", io.BytesIO(b"x"))
        put(tables.jobs, id=JOB, status="running", lease="seed", lease_until=now + 1e6, **job)
        put(tables.job_events, id="ftevent-x", job=JOB, key="x", level="info", type="message", message="m", data={})
        for i, name in enumerate((JOB, CHECKPOINT)):
            put(tables.checkpoints, id=f"ftckpt_{i}", job=JOB, step=i, model=name, metrics={"step": i}, files=[])
            put(tables.permissions, id=PERMISSION if name == CHECKPOINT else "cp_x", checkpoint=name, project_id="other")
        put(tables.tuned_models, id="ft:gpt-4o-mini:acemeco:suffix:abc123", job=JOB, base="b", adapter="a", checkpoint=False)
        put(tables.uploads, id="upload_abc123", **upload)
        put(tables.upload_parts, id="string", upload="upload_abc123", bytes=1)
        store.blobs.put("uploads/upload_abc123/string", io.BytesIO(b"x"))
        put(tables.chats, id="completion_id", model="m", request={"messages": [message]}, response=chat)
        said = {"type": "message", "id": "msg_x", "role": "user", "status": "completed", "content": [{"type": "input_text", "text": "x"}]}
        put(tables.responses, id=RESPONSE["id"], model="m", expires=now + 1e6, items=[said], response=RESPONSE)
        put(tables.responses, id="response_id", model="m", expires=now + 1e6, items=[said], response=RESPONSE)
        batch = {"status": "in_progress", "endpoint": "/v1/embeddings", "input_file": FILE_IDS[0], "window": "24h", "times": {}, "total": 1}
        put(tables.batches, id="batch_id", lease="seed", lease_until=now + 1e6, **batch)


class Seeder:
    """Answers the plugin's POST before each test by seeding again."""

    def __init__(self, store: Any, base: Path) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seed(store, base)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing: pytest prints what matters."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"


def source(folder: Path) -> Path:
    """The tests of the source distribution, unpacked."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "openai", f"openai=={VERSION}"]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    with tarfile.open(folder / f"openai-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"openai-{VERSION}"


def main() -> int:
    """Run the tests; returns pytest's exit code."""
    import tiny
    from benchmarks.harness import ROOT, peer_python
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.echo import EchoModel
    from tunesmith.store.store import Store

    python = peer_python("openai-tests", NEEDS)
    with tempfile.TemporaryDirectory() as folder:
        base, encoder = tiny.model(Path(folder) / "base"), tiny.encoder(Path(folder) / "encoder")
        store = Store.open(Path(folder) / "store")
        # Any of OpenAI's names that the tests ask for answers with the tiny model, as an operator would map them.
        names = dict.fromkeys(("gpt-4o-mini", "gpt-6-astra", "gpt-3.5-turbo-instruct", "string", "model"), str(base))
        config = ServeConfig(names=names, encoders={"text-embedding-3-small": str(encoder)}, python_graders=True, base64_embeddings=False)
        served = {"echo": EchoModel()}
        with running(create_app(served, config=config, store=store)) as url:
            seeder, tests = Seeder(store, base), source(Path(folder))
            environment = {**os.environ, "TEST_API_BASE_URL": url, "SEED_URL": seeder.url, "PYTHONPATH": str(ROOT / "benchmarks")}
            paths = [f"tests/api_resources/{part}" for part in PARTS] + [f"tests/api_resources/{name}.py" for name in FILES]
            command = [python, "-m", "pytest", "-q", "-p", "conformance_plugin", "-o", "addopts=", "-k", NOT_MEANT, *paths]
            return subprocess.run([*command, *sys.argv[1:]], cwd=tests, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
