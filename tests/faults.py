"""A proxy that fails as networks do, seeded: it drops requests before or after the server saw them, delays, repeats and answers 500."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("drop_before", "drop_after", "repeat", "error", "delay")


@contextmanager
def faulty(url: str, seed: int, rate: float = 0.4, methods: tuple[str, ...] = ("GET", "POST", "DELETE")) -> Iterator[str]:
    """A base URL in front of `url` at which a share `rate` of the requests of those methods goes wrong."""
    upstream, rng, lock = urlsplit(url), random.Random(seed), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=600)
            headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "content-length", "connection")}
            connection.request(self.command, self.path, body, {**headers, "Host": f"127.0.0.1:{upstream.port}"})
            answer = connection.getresponse()
            found = answer.status, answer.getheaders(), answer.read()
            connection.close()
            return found

        def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response(status)
            for key, value in headers:
                if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def handle_one(self) -> None:
            body = self.body()
            with lock:
                wrong = rng.choice(FAULTS) if self.command in methods and rng.random() < rate else ""
            if wrong == "drop_before":
                self.close_connection = True
                self.connection.close()
                return
            if wrong == "error":
                self.reply(
                    500,
                    [("Content-Type", "application/json")],
                    b'{"error": {"message": "planted", "type": "server_error", "param": null, "code": null}}',
                )
                return
            if wrong == "delay":
                time.sleep(0.02)
            if wrong == "repeat":
                self.forward(body)
            answer = self.forward(body)
            if wrong == "drop_after":
                self.close_connection = True
                self.connection.close()
                return
            self.reply(*answer)

        do_GET = do_POST = do_DELETE = handle_one

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that went away is what this is about
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)  # how soon it sees that it is to end
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{upstream.path}"
    finally:
        server.shutdown()
        server.server_close()
