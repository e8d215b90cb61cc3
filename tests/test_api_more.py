"""Uploads, stored chats, completions, embeddings, batches, webhooks and keys, asked by the real OpenAI SDK over real sockets."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading

import pytest

from api_parts import MODEL, Server, chat_rows, running_server
from openai_spec import assert_valid, require_spec
from tunesmith.store.keys import Keys
from waiting import until

openai = pytest.importorskip("openai")
SECRET = "whsec_" + base64.b64encode(b"a secret of our own, 32 bytes!!!").decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


# uploads


def begin(server: Server, data):
    return server.client.uploads.create(bytes=len(data), filename="big.jsonl", mime_type="application/jsonl", purpose="fine-tune")


@pytest.mark.slow
def test_parts_become_a_file(server: Server):
    data = chat_rows(100)
    upload = begin(server, data)
    second = server.client.uploads.parts.create(upload.id, data=data[1000:])
    first = server.client.uploads.parts.create(upload.id, data=data[:1000])
    md5 = hashlib.md5(data).hexdigest()
    for _ in range(2):  # a lost answer: the same again
        done = server.client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=md5)
        assert (done.status, done.file.bytes, done.file.filename) == ("completed", len(data), "big.jsonl")
    assert server.client.files.content(done.file.id).read() == data
    assert not list((server.store.folder / "blobs" / "uploads").rglob("part_*"))


def test_upload_bodies_are_valid(server: Server):
    require_spec()
    body = {"bytes": 3, "filename": "a", "mime_type": "text/plain", "purpose": "batch"}
    made = server.request("POST", "/uploads", json=body).json()
    assert_valid("Upload", made)
    part = server.request("POST", f"/uploads/{made['id']}/parts", files={"data": ("p", b"abc")}).json()
    assert_valid("UploadPart", part)
    assert_valid("Upload", server.request("POST", f"/uploads/{made['id']}/complete", json={"part_ids": [part["id"]]}).json())
    other = server.request("POST", "/uploads", json=body).json()
    assert_valid("Upload", server.request("POST", f"/uploads/{other['id']}/cancel").json())


def test_uploads_are_checked(server: Server):
    upload = begin(server, b"abcdef")
    part = server.client.uploads.parts.create(upload.id, data=b"abc")
    for more, code in [
        ({"part_ids": [part.id]}, "invalid_upload_size"),
        ({"part_ids": [part.id, part.id]}, "invalid_part_ids"),
        ({"part_ids": ["part_x"]}, "invalid_part_ids"),
        ({"part_ids": []}, "invalid_part_ids"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            server.client.uploads.complete(upload.id, **more)
        assert caught.value.code == code
    rest = server.client.uploads.parts.create(upload.id, data=b"def")
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.uploads.complete(upload.id, part_ids=[part.id, rest.id], md5="0" * 32)
    assert caught.value.code == "invalid_md5"
    assert server.client.uploads.cancel(upload.id).status == "cancelled"
    assert server.client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        server.client.uploads.parts.create(upload.id, data=b"x")
    with pytest.raises(openai.NotFoundError):
        server.client.uploads.cancel("upload_x")


# stored chats


def test_chats_are_stored_on_wish(server: Server):
    require_spec()
    chats = server.client.chat.completions
    asked = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two"}]
    made = [chats.create(model="echo", messages=asked, store=True, metadata={"n": str(i)}) for i in range(3)]
    chunks = list(chats.create(model="echo", messages=asked, store=True, stream=True, metadata={"n": "s"}))
    streamed = chunks[0].id
    chats.create(model="echo", messages=asked)
    listed = list(chats.list(limit=2))
    assert [chat.id for chat in listed] == [*(chat.id for chat in made), streamed]
    assert [chat.id for chat in chats.list(metadata={"n": "1"}, model="echo", order="desc")] == [made[1].id]
    assert chats.retrieve(streamed).choices[0].message.content == "one two"
    assert [m.content for m in chats.messages.list(made[0].id, limit=1)] == ["be brief", "one two"]
    assert_valid("ChatCompletionList", server.request("GET", "/chat/completions").json())
    shown = server.request("GET", f"/chat/completions/{made[0].id}/messages").json()
    assert [message["role"] for message in shown["data"]] == ["system", "user"]
    shown["data"] = [message | {"role": "assistant"} for message in shown["data"]]  # the description knows no other role, its examples do
    assert_valid("ChatCompletionMessageList", shown)
    assert [c.id for c in chats.list() if c.id == chats.update(made[0].id, metadata={"z": "1"}).id] == [made[0].id]
    assert [chat.id for chat in chats.list(metadata={"z": "1"})] == [made[0].id]
    assert chats.delete(made[0].id).deleted
    with pytest.raises(openai.NotFoundError):
        chats.retrieve(made[0].id)


# completions


@pytest.mark.slow
def test_completions_continue_the_text(server: Server):
    require_spec()
    body = {"model": MODEL, "prompt": ["The credit", "Who signed"], "max_tokens": 5, "temperature": 0, "logprobs": 2, "n": 2, "echo": True}
    answer = server.request("POST", "/completions", json=body).json()
    assert_valid("CreateCompletionResponse", answer)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0]["text"] == answer["choices"][1]["text"].replace("x", "x")
    assert answer["choices"][0]["text"].startswith("The credit")
    one = server.client.completions.create(model=MODEL, prompt="The credit", max_tokens=5, temperature=0)
    assert "The credit" + one.choices[0].text == answer["choices"][0]["text"]
    chunks = list(server.client.completions.create(model=MODEL, prompt="The credit", max_tokens=5, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == one.choices[0].text
    assert chunks[-1].choices[0].finish_reason == one.choices[0].finish_reason
    ids = server.client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=3, best_of=3, n=1)
    assert ids.usage.prompt_tokens == 3
    for change, param in [
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": [[10**9]]}, "prompt"),
        ({"best_of": 1, "n": 2}, "best_of"),
    ]:
        error = server.request("POST", "/completions", json={"model": MODEL, "prompt": "x"} | change)
        assert (error.status_code, error.json()["error"]["param"]) == (400, param)


# embeddings


MINILM = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
          "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}  # fmt: skip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A server with the catalogue's encoder, from a folder."""
    from tunesmith.models.catalog import Catalog

    folder = tmp_path_factory.mktemp("encoder")
    for path in Catalog().encoder().iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(MINILM))
    with running_server(tmp_path_factory.mktemp("server"), encoders={"text-embedding-3-small": str(folder)}) as server:
        yield server


@pytest.mark.slow
def test_embeddings(encoders: Server):
    require_spec()
    import numpy as np

    texts = ["A bank lends money.", "The lender grants a loan.", "Cats sleep on warm roofs."]
    made = encoders.client.embeddings.create(model="text-embedding-3-small", input=texts)  # the SDK asks for base64
    vectors = np.array([one.embedding for one in made.data])
    assert vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    near = vectors @ vectors.T
    assert near[0, 1] > 0.5 > near[0, 2]
    raw = encoders.request("POST", "/embeddings", json={"model": "text-embedding-3-small", "input": texts[0], "dimensions": 16}).json()
    assert_valid("CreateEmbeddingResponse", raw)
    assert len(raw["data"][0]["embedding"]) == 16
    assert np.dot(raw["data"][0]["embedding"], vectors[0, :16] / np.linalg.norm(vectors[0, :16])) == pytest.approx(1, abs=1e-4)
    for change, param in [({"input": []}, "input"), ({"input": [""]}, "input"), ({"input": [[-1]]}, "input"), ({"model": "echo"}, "model"),
                          ({"input": [15339, 1917]}, "input"), ({"dimensions": 385}, "dimensions")]:  # fmt: skip
        error = encoders.request("POST", "/embeddings", json={"model": "text-embedding-3-small", "input": "x"} | change)
        assert (error.status_code, error.json()["error"]["param"]) == (400, param)


# batches


def batch_file(server: Server, bodies, url="/v1/chat/completions"):
    lines = [{"custom_id": f"r{i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies)]
    return server.client.files.create(file=("b.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch").id


@pytest.mark.slow
def test_a_batch_is_answered(server: Server):
    require_spec()
    bodies = [{"model": "echo" if i % 10 else "nobody", "messages": [{"role": "user", "content": f"say {i}"}]} for i in range(40)]
    made = server.client.batches.create(
        input_file_id=batch_file(server, bodies), endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    done = until(lambda: (found := server.client.batches.retrieve(made.id)).status == "completed" and found)
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (40, 36, 4)
    assert done.usage.output_tokens == 72
    lines = [json.loads(line) for line in server.client.files.content(done.output_file_id).text.splitlines()]
    assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(40) if i % 10]
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"] == "say 1"
    failed = [json.loads(line) for line in server.client.files.content(done.error_file_id).text.splitlines()]
    assert {line["response"]["status_code"] for line in failed} == {404}
    assert_valid("Batch", server.request("GET", f"/batches/{made.id}").json())
    assert_valid("ListBatchesResponse", server.request("GET", "/batches").json())


@pytest.mark.slow
def test_a_batch_of_responses_is_answered(server: Server):
    bodies = [{"model": "echo", "input": "say one"}, {"model": "echo", "input": []}]
    path = "/v1/responses"
    made = server.client.batches.create(input_file_id=batch_file(server, bodies, path), endpoint=path, completion_window="24h")
    done = until(lambda: (found := server.client.batches.retrieve(made.id)).status == "completed" and found)
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
    assert (done.usage.input_tokens, done.usage.output_tokens) == (2, 2)
    (line,) = server.client.files.content(done.output_file_id).text.splitlines()
    body = json.loads(line)["response"]["body"]
    assert body["output"][0]["content"][0]["text"] == "say one"
    assert server.client.responses.retrieve(body["id"]).status == "completed"


@pytest.mark.slow
def test_batches_are_checked_and_cancelled(server: Server):
    create = server.client.batches.create
    bad = server.client.files.create(
        file=("b.jsonl", b'{"x": 1}\n{"custom_id": "a", "method": "GET", "url": "/v1/files", "body": {}}'), purpose="batch"
    )
    made = create(input_file_id=bad.id, endpoint="/v1/embeddings", completion_window="24h")
    done = until(lambda: (found := server.client.batches.retrieve(made.id)).status == "failed" and found)
    assert [(error.code, error.line) for error in done.errors.data] == [("invalid_json_line", 1), ("mismatched_endpoint", 2)]
    with pytest.raises(openai.BadRequestError, match="is failed"):
        server.client.batches.cancel(made.id)
    with pytest.raises(openai.BadRequestError, match="another purpose"):
        create(input_file_id=server.upload().id, endpoint="/v1/embeddings", completion_window="24h")
    with pytest.raises(openai.NotFoundError):
        create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
    slow = [{"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": f"say {i}"}]} for i in range(2000)]
    made = create(input_file_id=batch_file(server, slow), endpoint="/v1/chat/completions", completion_window="24h")
    assert server.client.batches.cancel(made.id).status in ("cancelling", "cancelled")
    done = until(lambda: (found := server.client.batches.retrieve(made.id)).status == "cancelled" and found)
    assert done.request_counts.completed < 2000


# webhooks


@pytest.mark.slow
def test_webhooks_are_signed_as_openai_signs_them(tmp_path):
    from tunesmith.api.webhooks import Webhook

    came, answers = [], [500, 200, 200, 200]

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            came.append((self.rfile.read(int(self.headers["content-length"])), dict(self.headers.items())))
            self.send_response(answers[min(len(came), 4) - 1])
            self.end_headers()

        def log_message(self, *_):
            pass

    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    hook = Webhook(url=f"http://127.0.0.1:{receiver.server_port}/hook", secret=SECRET)
    with running_server(tmp_path, webhooks=(hook,)) as server:
        job = server.client.fine_tuning.jobs.create(model=MODEL, training_file=server.upload(chat_rows(5)).id)
        server.work()
        other = server.client.fine_tuning.jobs.create(model=MODEL, training_file=server.upload(chat_rows(5)).id)
        server.client.fine_tuning.jobs.cancel(other.id)
        until(lambda: len(came) == 3)  # the first one failed and came again
        events = [server.client.webhooks.unwrap(body, headers, secret=SECRET) for body, headers in came]
        with pytest.raises(openai.InvalidWebhookSignatureError):
            server.client.webhooks.unwrap(came[0][0] + b" ", came[0][1], secret=SECRET)
    receiver.shutdown()
    assert {(event.type, event.data.id) for event in events} == {
        ("fine_tuning.job.failed", job.id),
        ("fine_tuning.job.cancelled", other.id),
    }
    assert len({event.id for event in events}) == 2


# keys


@pytest.mark.slow
def test_keys_open_what_their_scopes_say(tmp_path):
    with running_server(tmp_path) as server:
        keys = Keys(server.store)
        row, secret = keys.create("all")
        scoped = {scope: keys.create(scope, scopes=[scope])[1] for scope in ("read", "train", "serve", "admin")}
        other = keys.create("other", project="other")[1]

        def status(method, path, key, **more):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            answer = server.request(method, path, headers=headers, **more)
            if answer.status_code >= 400:
                assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
            return answer.status_code

        # What the server believes about keys is 2 s old at most.
        until(
            lambda: (
                status("GET", "/models", None) == 401
                and all(status("GET", "/models", one) != 401 for one in (secret, other, *scoped.values()))
            )
        )
        assert status("GET", "/models", "sk-tunesmith-wrong") == 401
        assert status("GET", "/../metrics", None) == 401
        assert server.request("GET", "/../healthz").status_code == 200
        chat = {"json": {"model": "echo", "messages": [{"role": "user", "content": "x"}]}}
        expected = {
            ("GET", "/models"): "read train serve admin",
            ("GET", "/files"): "read train serve admin",
            ("GET", "/fine_tuning/jobs"): "read train admin",
            ("POST", "/fine_tuning/jobs"): "train admin",
            ("POST", "/chat/completions"): "serve admin",
            ("GET", "/fine_tuning/checkpoints/x/permissions"): "admin",
            ("GET", "/nothing"): "admin",
        }
        for (method, path), scopes in expected.items():
            for scope, key in scoped.items():
                found = status(method, path, key, **(chat if "chat" in path else {"json": {}} if method == "POST" else {}))
                assert (found != 403) == (scope in scopes.split()), (method, path, scope, found)
        mine = openai.OpenAI(base_url=server.url, api_key=secret, max_retries=0)
        file = mine.files.create(file=("a.jsonl", chat_rows()), purpose="fine-tune")
        job = mine.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
        theirs = openai.OpenAI(base_url=server.url, api_key=other, max_retries=0)
        assert list(theirs.files.list()) == list(theirs.fine_tuning.jobs.list()) == []
        for ask in (
            lambda: theirs.files.content(file.id),
            lambda: theirs.fine_tuning.jobs.cancel(job.id),
            lambda: theirs.files.delete(file.id),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        with pytest.raises(openai.BadRequestError, match="does not exist"):
            theirs.fine_tuning.jobs.create(model=MODEL, training_file=file.id)
        fresh = keys.rotate(row["id"])[1]
        until(lambda: (status("GET", "/models", secret), status("GET", "/models", fresh)) == (401, 200))
        with server.store.engine.connect() as connection:
            everything = "\n".join(connection.connection.driver_connection.iterdump())
        assert fresh not in everything
        for one in keys.listed():
            keys.revoke(one["id"])
        until(lambda: status("GET", "/models", fresh) == 401)
        assert status("GET", "/models", None) == 401, "without a key in force nobody gets in"


@pytest.mark.slow
def test_limits_say_when_to_come_again(tmp_path):
    with running_server(tmp_path, requests_per_minute=3) as server:
        answers = [server.request("GET", "/models") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
        assert 15 <= int(answers[3].headers["retry-after"]) <= 21
        assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"


def test_listening_beyond_loopback_wants_a_key(tmp_path):
    from tunesmith.api.app import listen
    from tunesmith.core.errors import UsageError

    with pytest.raises(UsageError, match="no API keys"):
        listen("0.0.0.0", 0)
    listen("0.0.0.0", 0, keyed=True).close()
