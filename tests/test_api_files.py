"""The Files API, asked by the real OpenAI SDK over real sockets."""

from __future__ import annotations

import socket

import pytest

from api_parts import Server, chat_rows, running_server
from openai_spec import assert_valid, require_spec

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server"), max_body_bytes=1 << 20) as server:
        yield server


def test_a_file_goes_up_and_comes_back(server: Server):
    data = chat_rows(50) + "zwölf Boxkämpfer \u2028".encode()
    made = server.client.files.create(file=("../../etc/zwölf.jsonl", data), purpose="fine-tune")
    assert (made.bytes, made.filename, made.purpose, made.status, made.expires_at) == (
        len(data),
        "zwölf.jsonl",
        "fine-tune",
        "processed",
        None,
    )
    assert server.client.files.retrieve(made.id) == made
    assert server.client.files.content(made.id).read() == data
    raw = server.request("GET", f"/files/{made.id}/content")
    assert raw.headers["content-type"] == "application/octet-stream"
    assert server.client.files.delete(made.id).deleted
    for gone in (server.client.files.retrieve, server.client.files.content, server.client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            gone(made.id)
        assert (caught.value.type, caught.value.param) == ("invalid_request_error", "id")
    assert not list((server.store.folder / "blobs").rglob(made.id))


def test_bodies_are_valid(server: Server):
    require_spec()
    made = server.request("POST", "/files", files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"}).json()
    assert_valid("OpenAIFile", made)
    assert_valid("ListFilesResponse", server.request("GET", "/files").json())
    assert_valid("ListFilesResponse", server.request("GET", "/files?purpose=vision").json())
    assert_valid("ErrorResponse", server.request("GET", "/files/file-nobody").json())
    assert_valid("DeleteFileResponse", server.request("DELETE", f"/files/{made['id']}").json())


def test_lists_are_paged_and_filtered(server: Server):
    made = [server.client.files.create(file=(f"{i}.txt", b"x"), purpose="user_data").id for i in range(7)]
    assert [file.id for file in server.client.files.list(purpose="user_data", limit=3)] == made[::-1]
    assert [file.id for file in server.client.files.list(purpose="user_data", limit=2, order="asc")] == made
    page = server.client.files.list(purpose="user_data", limit=3)
    assert (page.has_more, page.data[0].id, page.data[-1].id) == (True, made[6], made[4])
    assert server.client.files.list(after="file-nobody").data == []
    assert len(server.client.files.list(limit=0, purpose="user_data").data) == 1


def test_files_expire(server: Server):
    made = server.client.files.create(file=("a.txt", b"x"), purpose="assistants", expires_after={"anchor": "created_at", "seconds": 3600})
    assert made.expires_at == made.created_at + 3600
    from sqlalchemy import update

    from tunesmith.store.files import Files
    from tunesmith.store.tables import files

    with server.store.engine.begin() as connection:
        connection.execute(update(files).where(files.c.id == made.id).values(expires=1.0))
    with pytest.raises(openai.NotFoundError):
        server.client.files.retrieve(made.id)
    assert Files(server.store).sweep() == 1
    assert not list((server.store.folder / "blobs").rglob(made.id))


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        ({"purpose": "fine-tune"}, {"other": ("a", b"x")}, "file"),
        ({"purpose": "fine-tune", "file": "text"}, {"other": ("a", b"x")}, "file"),
        ({}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "world domination"}, {"file": ("a", b"x")}, "purpose"),
        ({"purpose": "fine-tune", "colour": "red"}, {"file": ("a", b"x")}, "colour"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "5"}, {"file": ("a", b"x")}, "expires_after"),
        ({"purpose": "batch", "expires_after[anchor]": "birth", "expires_after[seconds]": "3600"}, {"file": ("a", b"x")}, "expires_after"),
    ],
)  # fmt: skip
def test_every_fault_is_named(server: Server, data, files, param):
    answer = server.request("POST", "/files", data=data, files=files)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_body_that_is_no_form_is_told(server: Server):
    for headers, content in [({"content-type": "application/json"}, b"{}"), ({"content-type": "multipart/form-data"}, b"xx"),
                             ({"content-type": "multipart/form-data; boundary=a"}, b"--a\r\nnonsense")]:  # fmt: skip
        answer = server.request("POST", "/files", headers=headers, content=content)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["..%2f..%2ftunesmith.db", "%2e%2e", "file-x%00", "....//x", "-" * 5000])
def test_ids_are_no_paths(server: Server, name):
    for method, path in [("GET", f"/files/{name}"), ("GET", f"/files/{name}/content"), ("DELETE", f"/files/{name}")]:
        assert server.request(method, path).status_code in (404, 405)


def test_too_large_is_413(server: Server):
    host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
    head = f"POST /v1/files HTTP/1.1\r\nhost: {host}\r\ncontent-type: multipart/form-data; boundary=x\r\ncontent-length: {1 << 30}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode())
        answer = ""
        while "request_too_large" not in answer and (piece := client.recv(1 << 16)):  # before any of the body was sent
            answer += piece.decode()
    assert answer.startswith("HTTP/1.1 413")
    assert "request_too_large" in answer
    assert server.request("POST", "/fine_tuning/jobs", json={"x": "y" * (2 << 20)}).status_code == 413


def test_pages_of_other_sites_are_refused(server: Server):
    answer = server.request(
        "POST", "/files", headers={"origin": "https://evil.example"}, files={"file": ("a", b"x")}, data={"purpose": "batch"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "invalid_origin")
