"""Rows from an address: told apart by what they were asked for, never showing a key, and read anew by who asks for them by name."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.data.sources import public_name

YAML = "name: bot\nbase: smollm2-135m\nsources: [{path: '%s'}]\n"


@contextmanager
def serving(words: dict[str, str]):
    """A server whose rows are the words of the query's `page`; gives its address."""

    class Rows(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            said = words[parse_qs(urlsplit(self.path).query)["page"][0]]
            turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "yes"}]
            body = json.dumps({"messages": turns}).encode() + b"\n"
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rows)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/rows.jsonl"
    finally:
        server.shutdown()
        server.server_close()


def call(capsys, *words: str) -> dict:
    code = guarded(app, [*words, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out.splitlines()[-1])


@pytest.mark.slow
def test_what_is_read_of_an_address_by_name_is_as_it_is_now(tmp_path, monkeypatch, capsys):
    pytest.importorskip("fsspec")
    monkeypatch.chdir(tmp_path)
    words = {"1": "old", "2": "other"}
    with serving(words) as url:
        (tmp_path / "tunesmith.yaml").write_text(YAML % f"{url}?page=1")
        call(capsys, "data", "fetch")  # as a run keeps it
        words["1"] = "new"
        assert "new" in json.dumps(call(capsys, "data", "show", f"{url}?page=1"))
        assert "new" in json.dumps(call(capsys, "data", "show"))
        call(capsys, "data", "import", f"{url}?page=1&token=first", f"{url}?page=2", "--yes")
        rows = json.dumps(call(capsys, "data", "show"))
    assert "new" in rows
    assert "other" in rows
    origins = {word for word in rows.replace('"', " ").split() if word.startswith(url)}
    assert len(origins) == 2, "two addresses that differ in their query only"
    everything = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [data for data in everything if b"token=first" in data]


def test_the_public_name_of_an_address_tells_queries_apart_and_no_secret():
    first, second = public_name("https://u:p@host/rows.csv?page=1"), public_name("https://host/rows.csv?page=2")
    assert first != second
    assert first.startswith("https://host/rows.csv?")
    assert "page" not in first
    signed = {
        public_name(f"https://host/rows.csv?X-Amz-Expires=60&X-Amz-Signature={key}&sig={key}&se=2026&api_key={key}&access_token={key}")
        for key in "abc"
    }
    assert signed == {"https://host/rows.csv"}, "an address that is given out anew names the same rows"
    assert public_name(first) == first
    assert public_name("rows?.jsonl") == "rows?.jsonl"
