"""The driver against our own server, through a network that fails: one job each, never a lost id; and a whole hosted run."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from api_parts import MODEL, TLS, chat_rows, running_server
from faults import faulty
from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.train.openai_job import TAG, Driver, Order, plain_text

ORDER = Order(model=MODEL, method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}})


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("driver")) as server:
        yield server


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(chat_rows())
    return path


def driver(url, out, told=None, **more):
    import openai

    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600, http_client=httpx.Client(verify=TLS))
    return Driver(client, out, (told.append if told is not None else lambda _: None), first_wait_s=0.005, **more)


def jobs_with(server, tag):
    return [job for job in server.client.fine_tuning.jobs.list(metadata={TAG: tag}) if job.status != "cancelled"]


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, 25))
def test_one_job_each_whatever_the_network_does(server, rows, tmp_path, first):
    for seed in range(first, first + 25):
        with faulty(server.url, seed) as url:
            job = driver(url, tmp_path / str(seed)).submit(ORDER, rows, rows)
        alive = jobs_with(server, job.tag)
        assert [one.id for one in alive] == [job.id], f"seed {seed}"
        kept = json.loads((tmp_path / str(seed) / "job.json").read_text())
        assert (kept["id"], kept["training_file"]) == (job.id, alive[0].training_file)
        server.client.fine_tuning.jobs.cancel(job.id)


@pytest.mark.slow
def test_a_crash_after_the_create_was_sent_finds_the_job_again(server, rows, tmp_path):
    first = driver(server.url, tmp_path / "out").submit(ORDER, rows)
    kept = json.loads((tmp_path / "out" / "job.json").read_text())
    (tmp_path / "out" / "job.json").write_text(json.dumps({**kept, "id": None}))
    again = driver(server.url, tmp_path / "out").submit(ORDER, rows)
    assert again.id == first.id
    assert len(jobs_with(server, first.tag)) == 1
    server.client.fine_tuning.jobs.cancel(first.id)


def test_a_folder_holds_one_order(server, rows, tmp_path):
    job = driver(server.url, tmp_path / "out").submit(ORDER, rows)
    with pytest.raises(ConfigError, match="another job"):
        driver(server.url, tmp_path / "out").submit(Order(model="x", method=ORDER.method), rows)
    server.client.fine_tuning.jobs.cancel(job.id)


def test_a_refused_order_says_what_the_server_said(server, rows, tmp_path):
    with pytest.raises(TrainingError, match="refused"):
        driver(server.url, tmp_path / "out").submit(Order(model="no-such-model", method=ORDER.method), rows)


@pytest.mark.slow
def test_a_job_is_followed_to_its_end_with_every_event_once_and_its_results(server, rows, tmp_path):
    told: list[dict] = []
    one = driver(server.url, tmp_path / "out", told)
    with server.worker():
        job = one.run(ORDER, rows, poll_s=0.05)
    assert job.status == "succeeded"
    assert job.fine_tuned_model.startswith("ft:")
    messages = [event["message"] for event in told if "message" in event]
    assert len(messages) == len(set(messages)) > 3
    assert one.results(job)[0].startswith("step,train_loss")
    again = driver(server.url, tmp_path / "out").run(ORDER, rows, poll_s=0.05)
    assert again.id == job.id
    said = server.client.chat.completions.create(model=job.fine_tuned_model, messages=[{"role": "user", "content": "say 1"}], max_tokens=3)
    assert said.choices[0].finish_reason in ("stop", "length")


@pytest.mark.slow
def test_a_failed_job_is_an_error_with_its_reason(server, tmp_path):
    (tmp_path / "few.jsonl").write_bytes(chat_rows(3))
    with server.worker(), pytest.raises(TrainingError, match="10 examples"):
        driver(server.url, tmp_path / "out").run(ORDER, tmp_path / "few.jsonl", poll_s=0.05)


class Closed(BaseHTTPRequestHandler):
    """A provider that still takes files and no longer takes jobs."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        made = {
            "id": "file-1",
            "object": "file",
            "bytes": 1,
            "created_at": 1,
            "filename": "f",
            "purpose": "fine-tune",
            "status": "processed",
        }
        refused = {"message": "Fine-tuning is closed", "type": "invalid_request_error", "param": None, "code": "training_not_available"}
        status, body = (200, made) if self.path.endswith("/files") else (403, {"error": refused})
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_a_provider_that_stopped_training_is_explained(rows, tmp_path):
    with HTTPServer(("127.0.0.1", 0), Closed) as provider:
        thread = threading.Thread(target=provider.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(TrainingError, match="tunesmith migrate inventory"):
            driver(f"http://127.0.0.1:{provider.server_address[1]}/v1", tmp_path / "out").submit(ORDER, rows)
        provider.shutdown()


def test_result_files_are_read_plain_and_base64():
    import base64

    text = "step,train_loss\n1,0.5\n"
    assert plain_text(text.encode()) == text
    assert plain_text(base64.b64encode(text.encode())) == text
