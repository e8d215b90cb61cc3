"""Chat completions and models, asked by the real OpenAI SDK over real sockets."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

import tiny
from api_parts import TLS
from openai_spec import assert_valid, require_spec
from tunesmith.models.echo import EchoModel
from tunesmith.store.store import Store
from waiting import until

openai = pytest.importorskip("openai")
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}


class Served:
    """A running server with the echo model and a tiny local one."""

    def __init__(self, url, engine, local):
        self.url, self.engine, self.local = url, engine, local
        self.root = url.removesuffix("/v1")
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)

    def post(self, body, path="/chat/completions", **more):
        return httpx.post(self.url + path, json=body, timeout=600, verify=TLS, **more)

    def rows(self):
        from sqlalchemy import select

        from tunesmith.store.tables import interactions

        with self.engine.connect() as connection:
            return list(connection.execute(select(interactions).order_by(interactions.c.created)).mappings())


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.local import LocalModel

    store = Store.open(tmp_path_factory.mktemp("store"))
    local = LocalModel(tiny.model(tmp_path_factory.mktemp("model")), name="tiny@1", dtype="float32")
    models = {"echo": EchoModel(), "tiny": local, "org/tiny": local}
    with running(create_app(models, store, ServeConfig(default_max_tokens=16, max_body_bytes=200_000))) as url:
        yield Served(url, store.engine, local)


def ask(content="one two three", model="echo", **more):
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


@pytest.mark.slow
def test_an_answer(served):
    answer = served.client.chat.completions.create(**ask())
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.model_dump(exclude_none=True) == {"completion_tokens": 3, "prompt_tokens": 3, "total_tokens": 6}
    row = served.rows()[-1]
    assert (row["id"], row["alias"], row["variant"], row["status"], row["answer"]) == (answer.id, "echo", "echo", 200, "one two three")
    assert json.loads(row["messages"]) == [{"role": "user", "content": "one two three"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, {"logprobs": True, "top_logprobs": 2}, {"n": 3, "temperature": 1.0}, {"stop": ["e", "\n"]}, {"max_tokens": 1}, {"tools": [TOOL]},
     {"user": "u", "metadata": {"a": "b"}, "frequency_penalty": 0, "store": False, "response_format": {"type": "text"}}],
)  # fmt: skip
@pytest.mark.parametrize("model", ["echo", "tiny"])
def test_bodies_are_valid(served, model, more):
    require_spec()
    whole = served.post(ask(model=model, temperature=0) | more)
    assert whole.status_code == 200, whole.text
    assert_valid("CreateChatCompletionResponse", whole.json())
    assert all({"message", "logprobs", "finish_reason", "index"} <= choice.keys() for choice in whole.json()["choices"])
    lines = served.post(ask(model=model, temperature=0, stream=True, stream_options={"include_usage": True}) | more).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    for chunk in chunks:
        assert_valid("CreateChatCompletionStreamResponse", chunk)
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"] == []
    if "temperature" not in more:
        assert chunks[-1]["usage"] == whole.json()["usage"]
        spoken = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
        assert spoken == (whole.json()["choices"][0]["message"]["content"] or "")


@pytest.mark.slow
def test_what_is_served_is_what_the_model_answers(served):
    from tunesmith.core.types import Message, Prompt, Sampling

    prompt = Prompt(messages=(Message(role="system", content="List the named entities."), Message(role="user", content="Who signed it?")))
    expected = served.local.answer([prompt], Sampling(max_tokens=16, top_logprobs=0))[0]
    body = {"model": "tiny", "temperature": 0, "logprobs": True, "messages": [{"role": m.role, "content": m.text} for m in prompt.messages]}
    for _ in range(2):  # the second one finds the system prompt read already
        choice = served.client.chat.completions.create(**body).choices[0]
        assert choice.message.content == expected.text
        assert [token.logprob for token in choice.logprobs.content] == pytest.approx([p["logprob"] for p in expected.logprobs], rel=1e-3)
    stream = served.client.chat.completions.create(**body, stream=True)
    chunks = [chunk for chunk in stream if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [expected.finish_reason]
    assert sum(len(c.choices[0].logprobs.content) for c in chunks if c.choices[0].logprobs) == len(expected.logprobs)


def test_keys_without_effect_are_named(served):
    more = {"frequency_penalty": -2, "presence_penalty": 0, "web_search_options": {}, "verbosity": "low", "logit_bias": {}}
    assert served.post(ask() | more).headers["x-tunesmith-ignored"] == "frequency_penalty,verbosity,web_search_options"
    assert "x-tunesmith-ignored" not in served.post(ask()).headers


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_wanted_none_shown(served, stream):
    text = served.post(ask(model="tiny", max_tokens=0, stream=stream)).text
    assert '"finish_reason":"length"' in text
    assert (
        {json.loads(part)["choices"][0]["delta"].get("content") or "" for part in text.replace("data: ", "").split("\n\n")[:-2]} <= {""}
        if stream
        else '"content":""' in text
    )


def test_older_functions_are_answered_as_they_are_asked_for(served):
    body = ask('call {"x": 1}', functions=[TOOL["function"]], function_call="auto")
    choice = served.client.chat.completions.create(**body).choices[0]
    assert (choice.message.function_call.name, choice.message.tool_calls, choice.finish_reason) == ("lookup", None, "function_call")
    deltas = [chunk.choices[0] for chunk in served.client.chat.completions.create(**body, stream=True)]
    assert [(one.delta.function_call.name, one.delta.function_call.arguments) for one in deltas if one.delta.function_call] == [
        ("lookup", '{"x": 1}')
    ]
    assert deltas[-1].finish_reason == "function_call"


@pytest.mark.slow
def test_seeds_repeat_and_choices_differ(served):
    def drawn(seed):
        answer = served.client.chat.completions.create(**ask(model="tiny", n=4, seed=seed, temperature=1.2))
        return [choice.message.content for choice in answer.choices]

    assert drawn(5) == drawn(5)
    assert len(set(drawn(5))) > 1
    assert drawn(5) != drawn(6)


@pytest.mark.slow
def test_many_clients_at_once_get_what_each_gets_alone(served):
    asked = [ask(f"{i} credit agreement {i * 7}", model="tiny", temperature=0) for i in range(12)]
    alone = [served.client.chat.completions.create(**body).choices[0].message.content for body in asked]

    async def together():
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(*(client.chat.completions.create(**body) for body in asked))
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(together()) == alone


def test_tool_calls_are_parsed_and_streamed(served):
    body = ask('call {"x": 1}', tools=[TOOL])
    choice = served.client.chat.completions.create(**body).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.tool_calls[0].function.name, choice.message.tool_calls[0].function.arguments) == ("lookup", '{"x": 1}')
    assert choice.message.content is None
    deltas = [chunk.choices[0].delta for chunk in served.client.chat.completions.create(**body, stream=True)]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "lookup")]
    assert served.client.chat.completions.create(**body, tool_choice="none").choices[0].finish_reason == "stop"
    history = [{"role": "user", "content": "x"}, choice.message.model_dump(), {"role": "tool", "tool_call_id": "call_0", "content": "42"}]
    assert served.client.chat.completions.create(model="tiny", messages=history, max_tokens=2).choices[0].finish_reason in (
        "length",
        "stop",
    )


def test_models(served):
    require_spec()
    listed = httpx.get(served.url + "/models").json()
    assert_valid("ListModelsResponse", listed)
    assert [model["id"] for model in listed["data"]] == ["echo", "tiny", "org/tiny"]
    assert served.client.models.retrieve("org/tiny").id == "org/tiny"
    assert httpx.get(served.url + "/models/org/tiny").json()["id"] == "org/tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        served.client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "status", "param", "said"),
    [
        ({"model": "ech"}, 404, "model", "ech"),
        ({"model": 3}, 400, "model", "str"),
        ({"messages": []}, 400, "messages", "empty"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role", "wizard"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "messages[0].content[0]", ""),
        ({"foo": 1}, 400, "foo", "foo"),
        ({"n": 0}, 400, "n", "0"),
        ({"n": 1000000}, 400, "n", "128"),
        ({"temperature": 3}, 400, "temperature", "3"),
        ({"temperature": "hot"}, 400, "temperature", "str"),
        ({"max_tokens": -1}, 400, "max_tokens", "-1"),
        ({"top_p": -1}, 400, "top_p", "-1"),
        ({"stop": ["a"] * 5}, 400, "stop", "5"),
        ({"top_logprobs": 3}, 400, "top_logprobs", "logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs", "21"),
        ({"tool_choice": "required"}, 400, "tool_choice", "required"),
        ({"tool_choice": "sometimes"}, 400, "tool_choice", "sometimes"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [TOOL]}, 400, "tool_choice", "no such tool"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, 400, "response_format.json_schema.schema", "Missing"),
        ({"model": "tiny", "messages": [{"role": "user", "content": "no " * 500}]}, 400, "messages", "context"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_every_fault_is_told_in_openais_shape(served, change, status, param, said, stream):
    response = served.post(ask() | change | {"stream": stream})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert said in error["message"]
    assert (error["param"] or "").startswith(param or "")
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("POST", "/chat/completions", b"{", {}, 400),
        ("POST", "/chat/completions", b"[1]", {}, 400),
        ("POST", "/chat/completions", b"\xff\xfe", {}, 400),
        ("POST", "/chat/completions", b"[" * 100_000, {}, 400),
        ("POST", "/chat/completions", b" " * 300_000, {}, 413),
        ("POST", "/chat/completions", b"{}", {"content-type": "text/plain"}, 400),
        ("POST", "/chat/completions", b"{}", {"host": "evil.example"}, 403),
        ("GET", "/chat/completions/a/b/c", b"", {}, 404),
        ("DELETE", "/chat/completions", b"", {}, 405),
        ("GET", "/nowhere", b"", {}, 404),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_the_same_shape(served, method, path, content, headers, status):
    response = httpx.request(method, served.url + path, content=content, headers={"content-type": "application/json"} | headers)
    assert response.status_code == status, response.text
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"].startswith("req_")


def test_a_body_without_a_length_is_limited_too(served):
    response = httpx.post(served.url + "/chat/completions", content=iter([b" " * 50_000] * 6), headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_request_ids_are_kept(served):
    assert httpx.get(served.root + "/healthz", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert httpx.get(served.root + "/readyz").status_code == 200


def test_a_client_that_leaves_stops_its_answer(served):
    with served.client.chat.completions.create(
        **ask("1 2 3", model="tiny", stream=True, max_tokens=200, temperature=1.5, seed=1)
    ) as stream:
        first = next(iter(stream))
    rows = until(lambda: [row for row in served.rows() if row["id"] == first.id])
    assert rows[0]["status"] in (499, 200)  # 200: the tiny model may have been faster than the goodbye
    until(lambda: "num_requests_running 0.0\n" in httpx.get(served.root + "/metrics", verify=TLS).text)


def test_metrics_count_what_was_asked(served):
    def value(name):
        lines = httpx.get(served.root + "/metrics", verify=TLS).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and 'model_name="echo"' in line)

    names = ["vllm:generation_tokens_total", "vllm:request_success_total", "vllm:e2e_request_latency_seconds_count"]
    before = [value(name) for name in names]
    served.client.chat.completions.create(**ask("a b c d"))
    assert [value(name) - old for name, old in zip(names, before, strict=True)] == [4, 1, 1]


def test_the_openai_model_asks_any_such_endpoint(served):
    from tunesmith.core.types import Message, Prompt, Sampling
    from tunesmith.models.openai_api import OpenAIModel

    model = OpenAIModel("tiny", base_url=served.url, api_key="none", retries=0)
    prompts = [Prompt(messages=(Message(role="user", content=f"Who signed {i}?"),)) for i in range(5)]
    sampling = Sampling(max_tokens=6, top_logprobs=2)
    far, near = model.answer(prompts, sampling), served.local.answer(prompts, sampling)
    assert [(a.text, a.finish_reason, a.completion_tokens) for a in far] == [(a.text, a.finish_reason, a.completion_tokens) for a in near]
    assert [len(a.logprobs) for a in far] == [len(a.logprobs) for a in near]


def test_an_endpoint_that_is_not_there_is_named(served):
    from tunesmith.core.errors import SourceUnavailable, UsageError
    from tunesmith.core.types import Message, Prompt, Sampling
    from tunesmith.models.openai_api import OpenAIModel

    prompt = Prompt(messages=(Message(role="user", content="x"),))
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:9"):
        OpenAIModel("m", base_url="http://127.0.0.1:9/v1", api_key="none", retries=0).answer([prompt], Sampling())
    with pytest.raises(UsageError, match="nobody"):
        OpenAIModel("nobody", base_url=served.url, api_key="none", retries=0).answer([prompt], Sampling())
