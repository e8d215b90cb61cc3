"""What somebody with a key, a page, a file or a body may not do, asked as they would: over HTTP, with files. Each test is an attack."""

from __future__ import annotations

import stat
import time

import pytest

from api_parts import MODEL, Server, chat_rows, running_server
from tunesmith.store.keys import Keys
from waiting import until

openai = pytest.importorskip("openai")
DEEP = "[" * 1500


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that needs keys; `server.keys` has one of each scope, and one of another project."""
    from tunesmith.store.store import Store

    folder = tmp_path_factory.mktemp("attacked")
    store = Store.open(folder / "store")
    made = {scope: Keys(store).create(scope, scopes=[scope])[1] for scope in ("read", "train", "serve", "admin")}
    made["other"] = Keys(store).create("other", project="other", scopes=["read", "serve"])[1]
    with running_server(folder, store=store) as server:
        server.keys = made
        yield server


def asked(server: Server, key: str, method: str, path: str, **more):
    headers = {"authorization": f"Bearer {server.keys[key]}", **more.pop("headers", {})}
    return server.request(method, path, headers=headers, **more)


def uploaded(server: Server, key: str, purpose: str, data: bytes):
    return asked(server, key, "POST", "/files", files={"file": ("a.jsonl", data)}, data={"purpose": purpose})


# what a key may read


def test_a_key_that_only_asks_models_sees_nothing_of_training(server: Server):
    training = uploaded(server, "train", "fine-tune", chat_rows()).json()["id"]
    batch = uploaded(server, "serve", "batch", b"{}").json()["id"]
    weights = _weights(server)
    for number in (training, weights):
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            assert asked(server, "serve", method, f"/files/{number}{path}").status_code == 404
        assert asked(server, "read", "GET", f"/files/{number}").status_code == 200
    listed = [file["id"] for file in asked(server, "serve", "GET", "/files").json()["data"]]
    assert (batch in listed, training in listed, weights in listed) == (True, False, False)
    assert asked(server, "serve", "GET", "/files?purpose=fine-tune").json()["data"] == []
    assert asked(server, "serve", "GET", f"/files/{batch}/content").content == b"{}"
    assert uploaded(server, "serve", "fine-tune", chat_rows()).json()["error"]["code"] == "insufficient_permissions"
    begun = {"bytes": 3, "filename": "a", "mime_type": "text/plain", "purpose": "fine-tune"}
    assert asked(server, "serve", "POST", "/uploads", json=begun).status_code == 403


def _weights(server: Server) -> str:
    import io

    from sqlalchemy import insert

    from tunesmith.store.files import Files
    from tunesmith.store.tables import files

    row = Files(server.store).prepare(io.BytesIO(b"weights"), project="default", filename="w", purpose="fine-tune-results")
    with server.store.writing() as connection:
        connection.execute(insert(files).values(**row))
    return row["id"]


def test_figures_of_other_projects_are_not_shown(server: Server):
    chat = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    for key, model in (("serve", "echo"), ("other", "ours-and-secret")):
        asked(server, key, "POST", "/chat/completions", json=chat | {"model": model})
    asked(server, "other", "POST", "/chat/completions", json=chat)
    base = server.url.removesuffix("/v1")

    def page(key):
        import httpx

        return httpx.get(f"{base}/metrics", headers={"authorization": f"Bearer {server.keys[key]}"}).text

    count = 'vllm:request_success_total{finished_reason="stop",model_name="echo"} '
    assert f"{count}2.0" in page("admin")
    assert f"{count}1.0" in page("read")
    assert f"{count}1.0" in page("other")
    assert 'request_errors_total{status="404"} 1.0' in page("other")
    assert 'request_errors_total{status="404"}' not in page("read")


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:1", "https://127.0.0.1", "null", "http://[::1]:5", "file://"]
)
def test_pages_of_other_ports_may_not_ask(server: Server, origin):
    host = server.url.removesuffix("/v1")
    for method, path, more in (
        ("POST", "/files", {"files": {"file": ("a", b"x")}, "data": {"purpose": "batch"}}),
        ("POST", "/fine_tuning/jobs/x/cancel", {}),
        ("GET", "/models", {}),
    ):
        answer = asked(server, "admin", method, path, headers={"origin": origin}, **more)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "invalid_origin")
    assert asked(server, "admin", "GET", "/models", headers={"origin": host}).status_code == 200


def test_an_ended_key_stays_ended_when_the_clock_goes_back(server: Server, monkeypatch):
    keys, now = Keys(server.store), time.time()
    revoked, secret = keys.create("revoked")
    rotated, old = keys.create("rotated")
    graced, later = keys.create("graced")
    monkeypatch.setattr(time, "time", lambda: now)
    keys.revoke(revoked["id"])
    keys.rotate(rotated["id"])
    keys.rotate(graced["id"], grace_s=60)
    assert keys.recognised(later) is not None
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert keys.recognised(later) is None
    monkeypatch.setattr(time, "time", lambda: now - 1e6)
    assert [keys.recognised(one) for one in (secret, old, later)] == [None, None, None]


# what is on the disk


def test_what_is_kept_is_its_owners_alone(server: Server):
    uploaded(server, "train", "fine-tune", chat_rows())
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (server.store.folder, *server.store.folder.rglob("*"))}
    assert len([path for path in modes if path.name.startswith("tunesmith.db")]) >= 2
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


def test_an_open_store_of_an_older_version_is_closed_to_others(tmp_path):
    from tunesmith.store.store import Store

    Store.open(tmp_path / "store").close()
    (tmp_path / "store").chmod(0o755)
    (tmp_path / "store" / "tunesmith.db").chmod(0o664)
    Store.open(tmp_path / "store").close()
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "store" / "tunesmith.db").stat().st_mode) == 0o660


@pytest.mark.slow
def test_what_expires_leaves_the_disk(server: Server):
    from sqlalchemy import update

    from tunesmith.store.tables import files, uploads

    file = uploaded(server, "serve", "batch", b"{}").json()["id"]
    upload = asked(server, "serve", "POST", "/uploads", json={"bytes": 9, "filename": "a", "mime_type": "t", "purpose": "batch"}).json()[
        "id"
    ]
    asked(server, "serve", "POST", f"/uploads/{upload}/parts", files={"data": ("p", b"abc")})
    blobs = server.store.folder / "blobs"
    there = lambda: [*blobs.rglob(file), *(blobs / "uploads").glob(f"{upload}*/*")]  # noqa: E731
    assert len(there()) == 2
    with server.store.writing() as connection:
        connection.execute(update(files).where(files.c.id == file).values(expires=1.0))
        connection.execute(update(uploads).where(uploads.c.id == upload).values(expires=1.0))
    until(lambda: not there())
    assert asked(server, "serve", "POST", f"/uploads/{upload}/parts", files={"data": ("p", b"abc")}).status_code == 400


# what a body may cost


def grader(**more):
    return {"type": "string_check", "name": "c", "input": "{{ sample.output_text }}", "reference": "1", "operation": "eq"} | more


def multi(formula):
    return {"type": "multi", "name": "m", "graders": {"c": grader()}, "calculate_output": formula}


@pytest.mark.parametrize(
    ("tree", "sample", "status"),
    [
        (grader(input="{{" + " " * 6000), "x", 200),
        (grader(input="{{" * 3000), "x", 200),
        (grader(input="{{ item" + ".a" * 3000 + " }}"), "x", 200),
        (grader(input="{{ item" + "['" * 3000 + " }}"), "x", 400),
        (grader(input="{{ sample.output_json.a }}"), DEEP, 200),
        (grader(input="{{ sample.output_text }}" * 3000), "x" * 100_000, 200),
        (multi("-" * 1500 + "c"), "x", 400),
        (multi("c" + "+c" * 900), "x", 400),
        (multi("(" * 180 + "c" + ")" * 180), "x", 200),
        ({"type": "text_similarity", "name": "s", "input": "{{ sample.output_text }}", "reference": "{{ sample.output_text }}", "evaluation_metric": "fuzzy_match"}, "ab" * 500_000, 200),
        ({"type": "score_model", "name": "s", "model": "echo", "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}, DEEP, 200),
        ({"type": "score_model", "name": "s", "model": "echo", "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}, "9" * 5000, 200),
    ],
)  # fmt: skip
def test_a_grader_is_read_in_bounded_time(server: Server, tree, sample, status):
    answer = asked(server, "train", "POST", "/fine_tuning/alpha/graders/run", json={"grader": tree, "model_sample": sample, "item": {}})
    assert answer.status_code == status, answer.text[:300]


@pytest.mark.parametrize("body", ['{"grader": ' + '{"a": ' * 400 + "1" + "}" * 400 + ', "model_sample": "x"}', '{"grader": ' + "[" * 9000])
def test_a_body_that_is_nested_too_deeply_is_a_wrong_request(server: Server, body):
    headers = {"content-type": "application/json"}
    answer = asked(server, "train", "POST", "/fine_tuning/alpha/graders/run", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_batch_with_lines_that_cannot_be_read_ends_with_their_numbers(server: Server):
    line = b'{"custom_id": "%b", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": %b}}'
    lines = [
        line % (b"a", b'"x"'),
        b"",
        line % (b"\xff", b'"x"'),
        line % (b"c", b"[" * 1500 + b"]" * 1500),
        line % (b"d", b'"\\ud800"'),
        b"{",
        line % (b"e", b"[" * 300 + b"]" * 300),
    ]
    file = uploaded(server, "serve", "batch", b"\n".join(lines)).json()["id"]
    made = asked(
        server, "serve", "POST", "/batches", json={"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    )
    path = f"/batches/{made.json()['id']}"
    ended = until(lambda: (batch := asked(server, "serve", "GET", path).json())["status"] == "failed" and batch)
    assert [(error["code"], error["line"]) for error in ended["errors"]["data"]] == [("invalid_json_line", n) for n in (3, 4, 5, 6, 7)]


# a worker that was stopped


@pytest.mark.slow
def test_a_job_waits_for_a_process_that_still_holds_its_folder(server: Server):
    """A worker and its child were stopped for longer than the lease: who takes the job over finds the folder held, and that is no death."""
    from tunesmith.flow.jobs.reading import folder_of
    from tunesmith.flow.jobs.worker import Worker
    from tunesmith.flow.runner import only_one
    from tunesmith.store.jobs import Jobs

    file = uploaded(server, "train", "fine-tune", chat_rows(3)).json()["id"]  # too few: it ends without any training
    number = asked(server, "train", "POST", "/fine_tuning/jobs", json={"model": MODEL, "training_file": file}).json()["id"]
    worker, jobs = Worker(server.store, isolated=False, lease_s=0.2), Jobs(server.store)
    with only_one(folder_of(server.store, number)):
        for _ in range(4):
            until(worker.once)
    job = jobs.find(number, None)
    assert (job["tries"], job["status"]) == (0, "validating_files")
    assert any("Waiting for the process" in event["message"] for event in jobs.events(number)[0])
    until(worker.once)
    assert jobs.find(number, None)["error"]["code"] == "invalid_n_examples"
