"""The HTTP cases of `cases`: requests that clients send to a server, and endpoints that answer oddly; knows nothing about files.

The server has the default base; the odd endpoint is a server of the standard library that echoes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

BASE = "smollm2-135m"
HELLO = {"role": "user", "content": "Say hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "depth", "arguments": "{}"}}
_stack = contextlib.ExitStack()


@contextlib.contextmanager
def parts() -> Iterator[None]:
    """Whatever the cases start is stopped at the end."""
    with _stack:
        yield
    for start in (server, endpoint):
        start.cache_clear()


@functools.cache
def server() -> str:
    """The base URL of a running server with the base."""
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.catalog import Catalog
    from tunesmith.models.local import LocalModel

    model = LocalModel(Catalog().model(BASE), name="smol")
    return _stack.enter_context(running(create_app({"smol": model}, config=ServeConfig(default_max_tokens=8))))


@functools.cache
def endpoint() -> str:
    """The base URL of an endpoint that answers as its model's name says."""
    odd = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    threading.Thread(target=odd.serve_forever, daemon=True).start()
    _stack.callback(odd.shutdown)
    return f"http://127.0.0.1:{odd.server_port}/v1"


class _Odd(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, body = _odd_answer(asked["model"], asked)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _odd_answer(mode: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    text = asked["messages"][-1]["content"]
    message: dict[str, Any] = {"role": "assistant", "content": text}
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": mode,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    refused = {"no-temperature": ("temperature",), "no-sampling": ("top_p", "temperature"), "no-seed": ("seed",)}.get(mode, ())
    for name in refused:
        if asked.get(name, 1) != 1 or (name in asked and mode != "no-temperature"):
            fault = f"Unsupported parameter: '{name}' is not supported with this model."
            return 400, {"error": {"message": fault, "type": "invalid_request_error", "param": name, "code": "unsupported_parameter"}}
    if mode == "no-choices":
        body["choices"] = []
    elif mode == "error-200":
        return 200, {"error": {"message": "overloaded", "code": 503}}
    elif mode == "list":
        message["content"] = [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]
    elif mode == "no-usage":
        del body["usage"]
    return 200, body


def ask(**body: Any) -> httpx.Response:
    return httpx.post(f"{server()}/chat/completions", json={"model": "smol", "max_tokens": 8, **body}, timeout=300)


def expect(status: int, answer: httpx.Response) -> Any:
    from benchmarks.cases import right

    right("status", (status, ""), (answer.status_code, "" if answer.status_code == status else answer.text[:300]))
    return answer.json()


def tool_history() -> None:
    expect(200, ask(messages=[HELLO, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {**_RESULT}]))


_RESULT = {"role": "tool", "tool_call_id": "c1", "content": "7"}


def defs_in_a_forced_tool() -> None:
    inner = {"type": "object", "properties": {"m": {"enum": [1]}}, "required": ["m"], "additionalProperties": False}
    schema = {
        "type": "object",
        "properties": {"at": {"$ref": "#/$defs/At"}},
        "required": ["at"],
        "additionalProperties": False,
        "$defs": {"At": inner},
    }
    tool = {"type": "function", "function": {"name": "depth", "strict": True, "parameters": schema}}
    expect(200, ask(messages=[HELLO], tools=[tool], tool_choice="required", max_tokens=64))


def functions() -> None:
    from benchmarks.cases import right

    shape = {"name": "depth", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
    message = expect(200, ask(messages=[HELLO], functions=[shape], function_call={"name": "depth"}, max_tokens=200))["choices"][0][
        "message"
    ]
    right("function_call", ("depth", None), ((message.get("function_call") or {}).get("name"), message.get("tool_calls")))


def old_history() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "depth", "arguments": "{}"}}
    expect(200, ask(messages=[HELLO, old, {"role": "function", "name": "depth", "content": "7"}]))


def fields_of_servers() -> None:
    given = {"role": "assistant", "content": "Hi", "reasoning_content": None, "refusal": None, "annotations": [], "audio": None}
    expect(200, ask(messages=[HELLO, given, HELLO]))
    expect(200, ask(messages=[{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}]))
    expect(200, ask(messages=[HELLO, {"role": "assistant", "content": None, "tool_calls": [{**CALL, "index": 0}]}, _RESULT]))


def too_long() -> None:
    from benchmarks.cases import right

    for stream in (False, True):
        error = expect(400, ask(messages=[{"role": "user", "content": "word " * 12_000}], stream=stream))["error"]
        right("code", "context_length_exceeded", error["code"])


def call_cut() -> None:
    from benchmarks.cases import right

    tool = {"type": "function", "function": {"name": "time_of_day"}}
    choice = expect(200, ask(messages=[HELLO], tools=[tool], tool_choice="required", max_tokens=3))["choices"][0]
    right("finish_reason", "length", choice["finish_reason"])
    right("markup in the text", False, "<tool" in (choice["message"]["content"] or ""))


def preflight() -> None:
    from benchmarks.cases import right

    headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    answer = httpx.request("OPTIONS", f"{server()}/chat/completions", headers=headers)
    right("a cross-origin page is let in unasked", None, answer.headers.get("access-control-allow-origin"))


def asks(mode: str, wanted: str) -> Callable[[], None]:
    """An evaluation of the endpoint: every answer right, or one clear failure a row."""

    def check() -> None:
        from benchmarks.cases import Wrong, call, right

        rows = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"q{i}"}]} for i in range(3)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        done = call("eval", f"{endpoint()}#{mode}", "--data", "rows.jsonl", "--metrics", "exact_match", "--json")
        if wanted == "right":
            right("exit code", (0, ""), (done.code, done.err[-300:] if done.code else ""))
            right("values", {"exact_match": 1.0}, json.loads(done.out)["evaluations"][0]["values"])
        elif wanted not in done.err + done.out:
            raise Wrong(f"exit code {done.code}, does not say {wanted!r}: {(done.err + done.out)[-300:]}")

    return check


CASES: dict[str, Callable[[], None]] = {
    **{
        case.__name__: case
        for case in (tool_history, defs_in_a_forced_tool, functions, old_history, fields_of_servers, too_long, call_cut, preflight)
    },
    **{f"asks {mode}": asks(mode, "right") for mode in ("list", "no-usage", "no-temperature", "no-sampling", "no-seed")},
    "asks no-choices": asks("no-choices", "choices"),
    "asks error-200": asks("error-200", "overloaded"),
}
