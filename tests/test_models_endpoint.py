"""Endpoints as they are found: errors with status 200, no choices, lists for text, models that refuse to be told how to draw."""

from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tunesmith.core.errors import SourceUnavailable, UsageError
from tunesmith.core.types import Message, Prompt, Sampling

pytest.importorskip("openai")
PROMPT = Prompt(messages=(Message(role="user", content="hi"),))


def completion(message, **more):
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more}  # fmt: skip


def refusal(param, message, code="unsupported_value", status=400):
    return status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def said(text="hi", **more):
    return completion({"role": "assistant", "content": text, **more})


def answers(body):
    """What the endpoint of a model's name answers: (status, body as an object or bytes)."""
    mode, drawn = body["model"], {"temperature", "top_p"} & body.keys()
    if mode == "picky" and drawn:
        key = sorted(drawn)[0]
        return refusal(key, f"Unsupported value: '{key}' does not support {body[key]} with this model.")
    if mode == "older" and "max_completion_tokens" in body:
        return 422, {
            "detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}]
        }
    if mode == "low" and body["temperature"] < 1:
        return refusal("temperature", "temperature must be at least 1", "invalid_value")
    return 200, {
        "picky": said(json.dumps(sorted(body))),
        "older": said(str(body.get("max_tokens"))),
        "empty": {**said(), "choices": []},
        "missing": {"ok": True},
        "error": {"error": {"message": "overloaded", "code": 503}},
        "wrapped": {**said(), "choices": None, "error": "no such deployment"},
        "page": b"<html>sign in</html>",
        "number": b"7",
        "parts": said([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "h"}, {"type": "text", "text": "i"}]),
        "silent": said(None, reasoning_content="Hm."),
        "object": said(None, tool_calls=[{"id": None, "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]),
        "function": said(None, function_call={"name": "f", "arguments": "{}"}),
    }[mode]


@pytest.fixture(scope="module")
def url():
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_POST(self):
            status, body = answers(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def model(url, name):
    from tunesmith.models.openai_api import OpenAIModel

    return OpenAIModel(name, base_url=url, api_key="none", retries=0)


def asked(url, name, times=1):
    return model(url, name).answer([PROMPT] * times, Sampling(max_tokens=7))[-1]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("empty", "without choices"),
        ("missing", "without choices"),
        ("error", "overloaded"),
        ("wrapped", "no such deployment"),
        ("page", "<html>sign in"),
        ("number", "JSON int"),
    ],
)
def test_no_answer_is_one_clear_error(url, name, what):
    with pytest.raises(SourceUnavailable, match=what) as caught:
        asked(url, name)
    assert url in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("parts", "hi"), ("silent", "")])
def test_words_are_read_whatever_their_shape(url, name, text):
    assert asked(url, name).text == text


@pytest.mark.parametrize(("name", "arguments"), [("object", '{"a": 1}'), ("function", "{}")])
def test_calls_are_read_whatever_their_shape(url, name, arguments):
    answer = asked(url, name)
    assert [(call.function.name, call.function.arguments) for call in answer.tool_calls] == [("f", arguments)]
    assert answer.tool_calls[0].id


def test_a_model_that_refuses_to_be_told_how_to_draw_is_asked_without(url, caplog):
    with caplog.at_level(logging.WARNING, "tunesmith.models"):
        answer = asked(url, "picky", times=3)
    assert not {"temperature", "top_p"} & set(json.loads(answer.text))
    assert sorted(record.args[1] for record in caplog.records) == ["temperature", "top_p"]


def test_a_server_that_knows_the_older_limit_gets_it(url):
    assert asked(url, "older").text == "7"


def test_a_value_that_is_refused_is_not_left_out(url):
    with pytest.raises(UsageError, match="at least 1"):
        asked(url, "low")
