"""The one place where a request ends, and who answers it: every kind of request leaves one row that leads back to what answered."""

from __future__ import annotations

import bisect
import contextlib
import json
import random
import threading

import httpx
import pytest
from sqlalchemy import select

import tiny
from api_parts import TLS, running_server
from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import ConfigError, NotFound
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.sketch import Sketch
from tunesmith.core.types import Answer, Message, Prompt, Sampling
from tunesmith.deploy.conversations import Conversations, History
from tunesmith.deploy.engine import Overloaded
from tunesmith.deploy.router import Router
from tunesmith.deploy.serve_config import Elsewhere, TokenPrice
from tunesmith.models.echo import EchoModel
from tunesmith.monitor.metrics import DURATION
from tunesmith.store.keys import Keys
from tunesmith.store.store import Store
from tunesmith.store.tables import interactions


def deployment(version=3, **more) -> Deployment:
    variants = more.pop("variants", (variant("a"), variant("b")))
    return Deployment(alias="bot", version=version, variants=variants, **more)


def variant(name, **more) -> Variant:
    return Variant(name=name, model=ModelRef(base="echo"), **more)


def test_an_alias_leads_to_its_deployment_variant_and_model():
    router, first = Router({"echo": EchoModel()}), EchoModel("first")
    router.deploy(deployment(), {"a": first, "b": EchoModel("second")})
    target = router.target("bot", "somebody")
    assert (target.variant.name, target.deployment, target.propensity, target.model) == ("a", 3, 1.0, first)
    assert (router.target("echo").deployment, router.target("echo").propensity) == (None, None)
    with pytest.raises(NotFound, match="did you mean 'bot'"):
        router.target("bob")
    router.deploy(deployment(4, variants=(variant("b"),)), {"b": EchoModel()})
    assert (router.target("bot").deployment, router.target("bot").variant.name) == (4, "b")
    with pytest.raises(ConfigError, match="comes with models for"):
        router.deploy(deployment(5), {"a": first})


def test_a_variant_brings_its_instruction():
    router = Router()
    router.deploy(deployment(variants=(variant("a", instruction="be brief"),)), {"a": EchoModel()})
    asked = tuple(Message(role=role, content=role) for role in ("system", "user", "assistant", "developer", "user"))
    told = router.target("bot").instructed(asked)
    assert [(m.role, m.content) for m in told] == [("system", "be brief"), ("user", "user"), ("assistant", "assistant"), ("user", "user")]
    with pytest.raises(ConfigError, match="max_tokens, temperature, top_p"):
        variant("a", sampling={"temprature": 1.0})


class Held(EchoModel):
    """Answers when it is let."""

    def __init__(self):
        super().__init__("held")
        self.asked, self.let = threading.Event(), threading.Event()

    def answer(self, prompts: list[Prompt], sampling: Sampling, on_answer=None) -> list[Answer]:
        self.asked.set()
        assert self.let.wait(600)
        return super().answer(prompts, sampling, on_answer)


class Broken(EchoModel):
    """Cannot answer."""

    def answer(self, prompts: list[Prompt], sampling: Sampling, on_answer=None) -> list[Answer]:
        raise ZeroDivisionError("a secret")


class Served:
    """A running server; `post` asks it, `rows` are the rows of its log in their order."""

    def __init__(self, url, store):
        self.url, self.store = url, store

    def post(self, path, body, headers=None, timeout=600):
        return httpx.post(f"{self.url}/{path}", json=body, headers=headers, timeout=timeout, verify=TLS)

    def chat(self, *turns, model="echo", headers=None, **more):
        """Ask with turns of user and assistant by turns."""
        messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
        return self.post("chat/completions", {"model": model, "messages": messages, **more}, headers)

    def rows(self):
        with self.store.engine.connect() as connection:
            return list(connection.execute(select(interactions).order_by(interactions.c.created)).mappings())

    def last(self):
        return self.rows()[-1]

    def errors(self, status):
        text = httpx.get(self.url.removesuffix("/v1") + "/metrics").text
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if f'errors_total{{status="{status}"}}' in line), 0.0)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(a tiny model, an encoder), as folders."""
    return tiny.model(tmp_path_factory.mktemp("model")), tiny.encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def served(tmp_path_factory, bases):
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.local import LocalModel

    store = Store.open(tmp_path_factory.mktemp("store"))
    local = LocalModel(bases[0], name="tiny", dtype="float32")
    router = Router({"echo": EchoModel(), "tiny": local, "broken": Broken("broken"), "paid": EchoModel("paid")})
    router.deploy(deployment(variants=(variant("first", instruction="be brief", sampling={"max_tokens": 2}),)), {"first": EchoModel()})
    config = ServeConfig(
        encoders={"encoder": str(bases[1])}, names={"gpt-4o-mini": "echo"}, prices={"paid": TokenPrice(input=1.0, output=10.0)}
    )
    with running(create_app(router, config=config, store=store)) as url:
        yield Served(url, store)
    store.close()


LOCAL = {
    "chat.completions": ("chat/completions", {"messages": [{"role": "user", "content": "1 2 3"}], "max_tokens": 3}),
    "completions": ("completions", {"prompt": "1 2 3", "max_tokens": 3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", LOCAL)
@pytest.mark.parametrize("alias", ["echo", "tiny"])
def test_every_answer_leaves_one_row(served, endpoint, alias, stream):
    path, body = LOCAL[endpoint]
    before = len(served.rows())
    answer = served.post(path, {"model": alias, "user": "anna", "stream": stream, "temperature": 0, **body})
    (row,) = served.rows()[before:]  # on disk when the client has seen the end
    whole = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.json()]
    choices = [choice for part in whole for choice in part["choices"]]
    texts = [choice["text"] if "text" in choice else (choice.get("message") or choice["delta"]).get("content") or "" for choice in choices]
    assert (row["id"], row["endpoint"], row["alias"], row["variant"], row["project"]) == (whole[0]["id"], endpoint, alias, alias, "default")
    assert (row["answer"], row["status"], row["user_key"], row["cost_usd"]) == ("".join(texts), 200, "anna", 0.0)
    assert json.loads(row["messages"]) == [{"role": "user", "content": "1 2 3"}]
    assert row["prompt_tokens"] > 0 < row["completion_tokens"]
    assert 0 < row["first_token_s"] <= row["total_s"]
    assert len(row["model_digest"]) > 5
    assert bool(row["conversation"]) == (endpoint == "chat.completions")


def test_several_completions_are_one_row(served):
    answer = served.post("completions", {"model": "tiny", "prompt": ["1 2", "3 4"], "n": 2, "best_of": 3, "max_tokens": 4}).json()
    row = served.last()
    assert (row["prompt_tokens"], row["completion_tokens"]) == (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])
    text = answer["choices"][0]["text"].replace("\0", "\ufffd")  # a database takes no null character, and these texts are drawn at random
    assert (row["answer"], json.loads(row["messages"])) == (text, [{"role": "user", "content": "1 2\n3 4"}])


def test_token_ids_are_logged_as_their_text(served):
    served.post("completions", {"model": "tiny", "prompt": [70, 71], "max_tokens": 1})
    assert json.loads(served.last()["messages"])[0]["content"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([5, 6], []),
        (["one two three four five six seven eight nine ten " * 2] * 700, []),
    ],
)
def test_embeddings_leave_a_row_without_vectors(served, given, logged):
    answer = served.post("embeddings", {"model": "encoder", "input": given, "user": "u"})
    assert answer.status_code == 200, answer.text
    row = served.last()
    assert (row["endpoint"], row["alias"], row["answer"], row["user_key"], row["conversation"]) == ("embeddings", "encoder", "", "u", None)
    assert [message["content"] for message in json.loads(row["messages"])] == logged
    assert row["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert row["model_digest"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("chat/completions", {"messages": []}, 400),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": 9}, 400),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "hots": 1}, 400),
        ("completions", {"prompt": "x", "logprobs": 9}, 400),
        ("completions", {"prompt": [[10**9]]}, 400),
    ],
)
def test_a_body_that_cannot_be_served_leaves_a_row(served, path, body, status):
    before, counted = len(served.rows()), served.errors(status)
    answer = served.post(path, {"model": "tiny", **body})
    (row,) = served.rows()[before:]
    assert (answer.status_code, row["status"], row["finish_reason"], row["alias"], row["variant"]) == (
        status,
        status,
        "error",
        "tiny",
        "tiny",
    )
    assert row["error"] == answer.json()["error"]["message"]
    assert (row["model_digest"] != "", row["answer"], served.errors(status)) == (True, "", counted + 1)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_an_unknown_model_leaves_a_row_without_the_prompt(served, path):
    before = len(served.rows())
    answer = served.post(path, {"model": "nobody", **LOCAL[path.replace("/", ".")][1]})
    (row,) = served.rows()[before:]
    assert (answer.status_code, row["status"], row["alias"], row["variant"], row["messages"]) == (404, 404, "nobody", "", "[]")
    assert row["cost_usd"] is None


def test_an_encoder_that_is_none_leaves_a_row(served):
    before = len(served.rows())
    answer = served.post("embeddings", {"model": "echo", "input": "x"})
    assert [(row["status"], row["endpoint"]) for row in served.rows()[before:]] == [(answer.status_code, "embeddings")]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": 7, "messages": []}', b'{"messages": []}'])
def test_what_names_no_model_is_counted_only(served, content):
    before, counted = len(served.rows()), served.errors(400)
    answer = httpx.post(f"{served.url}/chat/completions", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, len(served.rows()), served.errors(400)) == (400, before, counted + 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", LOCAL)
def test_a_model_that_fails_leaves_a_row(served, endpoint, stream):
    path, body = LOCAL[endpoint]
    before = len(served.rows())
    answer = served.post(path, {"model": "broken", "stream": stream, **body})
    (row,) = served.rows()[before:]
    assert (row["status"], row["finish_reason"], row["alias"], row["error"][:16]) == (500, "error", "broken", "The server had a")
    assert json.loads(row["messages"]) == [{"role": "user", "content": "1 2 3"}]
    assert "server_error" in answer.text
    assert "secret" not in answer.text + row["error"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", LOCAL)
def test_a_client_that_leaves_is_logged(tmp_path, endpoint, stream):
    from tunesmith.api.app import create_app, running

    path, body = LOCAL[endpoint]
    model, store = Held(), Store.open(tmp_path)
    with running(create_app({"held": model}, store=store)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/{path}", json={"model": "held", "stream": stream, **body}, timeout=httpx.Timeout(600, read=0.3))
        served = Served(url, store)
        while not (rows := served.rows()):
            httpx.get(url.replace("/v1", "/healthz"), verify=TLS)
        model.let.set()
    store.close()
    (row,) = rows
    assert (row["status"], row["error"], row["finish_reason"], row["endpoint"]) == (499, "the client left", "cancelled", endpoint)


class Full(EchoModel):
    """Has too many waiting."""

    def answer(self, prompts: list[Prompt], sampling: Sampling, on_answer=None) -> list[Answer]:
        raise Overloaded(512)


def test_what_waits_in_vain_leaves_a_row_without_its_prompt_and_the_guard_refuses_without_one(tmp_path):
    from tunesmith.api.app import ServeConfig, create_app, running

    with contextlib.closing(Store.open(tmp_path)) as store:
        key = Keys(store).create("somebody", project="shop")[1]
        with running(create_app({"full": Full("full")}, config=ServeConfig(requests_per_minute=2), store=store)) as url:
            served, headers = Served(url, store), {"authorization": f"Bearer {key}"}
            statuses = [served.chat("x", model="full", headers=headers).status_code for _ in range(4)]
            statuses.append(served.chat("x", model="full").status_code)
            rows = served.rows()
    assert statuses == [429, 429, 429, 429, 401]  # the model twice, the guard twice
    assert [(row["status"], row["messages"], row["variant"], row["project"]) for row in rows] == [(429, "[]", "full", "shop")] * 2


def test_refusals_of_the_guard_are_counted(served):
    counted = served.errors(400)
    answer = httpx.post(f"{served.url}/chat/completions", content=b"x", headers={"content-type": "text/plain"})
    assert (answer.status_code, served.errors(400)) == (400, counted + 1)


@pytest.mark.slow
def test_lines_of_a_batch_are_rows(tmp_path):
    with running_server(tmp_path) as server:
        body = {"model": "echo", "messages": [{"role": "user", "content": "one"}], "user": "u"}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        file = server.client.files.create(file=("b.jsonl", json.dumps(line).encode()), purpose="batch")
        made = server.client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        while server.client.batches.retrieve(made.id).status not in ("completed", "failed"):
            pass
        (row,) = Served(server.url, server.store).rows()
    assert (row["alias"], row["answer"], row["project"], row["user_key"], row["status"]) == ("echo", "one", "default", "u", 200)


def test_a_deployment_is_named_and_brings_its_instruction_and_sampling(served):
    answer = served.chat("one two three four", model="bot").json()
    row = served.last()
    assert (row["deployment"], row["variant"], row["propensity"]) == (3, "first", 1.0)
    assert (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) == ("one two", "length")
    assert answer["usage"]["prompt_tokens"] == 6  # with "be brief"
    assert json.loads(row["messages"]) == [{"role": "user", "content": "one two three four"}]  # as the client sent it
    assert served.chat("one two three", model="bot", max_tokens=3).json()["choices"][0]["message"]["content"] == "one two three"


def test_a_mapped_name_is_logged_as_asked(served):
    served.chat("x", model="gpt-4o-mini")
    assert (served.last()["alias"], served.last()["variant"], served.last()["cost_usd"]) == ("gpt-4o-mini", "echo", 0.0)


def test_a_configured_price_makes_the_cost(served):
    served.chat("one two three", model="paid")
    assert served.last()["cost_usd"] == pytest.approx((3 * 1.0 + 3 * 10.0) / 1e6)


# conversations and users


def test_a_history_that_was_answered_here_is_gone_on_with(served):
    def conversation(*turns, **more):
        answer = served.chat(*turns, **more)
        return served.last()["conversation"], answer.json()["choices"][0]["message"]["content"]

    first, answer = conversation("hello there")
    assert conversation("hello there", answer, "and now")[0] == first
    assert conversation("hello there", answer, "and now", "and now", "once more")[0] == first
    assert conversation("hello there", "another answer", "and now")[0] != first  # nobody answered so here
    assert conversation("hello there", answer, "and now", user="anna")[0] != first
    examples = ("one", "1", "two", "2")  # before every question
    assert len({conversation(*examples, f"question {i}")[0] for i in range(3)}) == 3
    new, answer = conversation(*examples, "question 0")
    assert conversation(*examples, "question 0", answer, "go on")[0] == new


def test_system_messages_join_and_part_no_conversation():
    seen, ask = Conversations(), Message(role="user", content="hi")
    first = History("p", None, (Message(role="system", content="it is Monday"), ask))
    conversation = seen.of(first)
    seen.remember(conversation, first, "hello", ())
    later = (Message(role="system", content="it is Tuesday"), ask, Message(role="assistant", content="hello"), ask)
    assert seen.of(History("p", None, later)) == conversation
    assert seen.of(History("q", None, later)) != conversation


def test_what_is_remembered_has_an_end():
    seen = Conversations(remembered=2)
    for i in range(3):
        history = History("p", None, (Message(role="user", content=str(i)),))
        seen.remember(f"c{i}", history, "yes", ())
    asked = [(Message(role="user", content=str(i)), Message(role="assistant", content="yes")) for i in range(3)]
    assert [seen.of(History("p", None, turns)) in ("c0", "c1", "c2") for turns in asked] == [False, True, True]


@pytest.mark.parametrize(
    ("more", "headers"),
    [
        ({"metadata": {"conversation": "c-7"}}, {}),
        ({"metadata": {"conversation_id": "c-7"}}, {"x-conversation-id": "c-8"}),
        ({}, {"x-conversation-id": "c-7"}),
    ],
)
def test_a_client_may_name_its_conversation(served, more, headers):
    served.chat("hi", headers=headers, **more)
    assert served.last()["conversation"] == "c-7"


def test_safety_identifier_is_the_later_word_for_user(served):
    served.chat("hi", user="anna", safety_identifier="5d41", prompt_cache_key="k")
    assert served.last()["user_key"] == "5d41"


# what is passed through


@pytest.fixture(scope="module")
def far(tmp_path_factory, served):
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.upstream import Upstream

    store = Store.open(tmp_path_factory.mktemp("far"))
    upstreams = {"far": Upstream("echo", base_url=served.url), "gpt": Upstream("gpt-4o-mini", base_url=served.url)}
    elsewhere = {"priced": Elsewhere(base_url=served.url, model="echo", price=TokenPrice(input=2.0, output=4.0))}
    router = Router({**upstreams, "priced": Upstream("echo", base_url=served.url)})
    terse = Variant(name="terse", upstream="far", instruction="be brief", sampling={"max_tokens": 2})
    router.deploy(Deployment(alias="bot", version=8, variants=(terse,)), {"terse": upstreams["far"]})
    with running(create_app(router, config=ServeConfig(upstreams=elsewhere), store=store)) as url:
        yield Served(url, store)
    store.close()


@pytest.mark.parametrize("stream", [False, True])
def test_passed_requests_leave_the_same_row(far, stream):
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    far.chat("a", "b", "one two", model="priced", user="anna", headers={"x-conversation-id": "c"}, **more)
    row = far.last()
    assert (row["endpoint"], row["alias"], row["variant"], row["project"]) == ("chat.completions", "priced", "echo", "default")
    assert (row["answer"], row["user_key"], row["conversation"], row["deployment"]) == ("one two", "anna", "c", None)
    assert row["cost_usd"] == pytest.approx((4 * 2.0 + 2 * 4.0) / 1e6)
    assert row["model_digest"]


def test_what_nobody_counted_costs_nobody_knows_what(far):
    far.chat("one two", model="priced", stream=True)
    assert (far.last()["cost_usd"], far.last()["answer"]) == (None, "one two")
    far.chat("one two", model="far")
    assert far.last()["cost_usd"] is None  # no price
    far.chat("one two", model="gpt")
    assert far.last()["cost_usd"] == pytest.approx((2 * 0.3 + 2 * 1.2) / 1e6)  # the shipped list's


@pytest.mark.parametrize("stream", [False, True])
def test_passed_tool_calls_are_logged(far, stream):
    tool = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}
    answer = far.chat('call {"x": 1}', model="far", tools=[tool], stream=stream)
    (call,) = json.loads(far.last()["tool_calls"])
    assert call["function"] == {"name": "lookup", "arguments": '{"x": 1}'}
    assert call["id"] in answer.text
    assert far.last()["finish_reason"] == "tool_calls"


def test_a_passed_conversation_goes_on(far):
    answer = far.chat("good morning", model="far").json()["choices"][0]["message"]["content"]
    first = far.last()["conversation"]
    far.chat("good morning", answer, "and now", model="far", stream=True)
    assert far.last()["conversation"] == first


def test_a_passed_deployment_brings_its_instruction_and_sampling(far):
    answer = far.chat("one two three", model="bot").json()
    row = far.last()
    assert (row["deployment"], row["variant"], row["propensity"], row["answer"]) == (8, "terse", 1.0, "one two")
    assert answer["usage"]["prompt_tokens"] == 5


def test_what_the_upstream_refuses_is_logged_in_its_words(far):
    answer = far.post("chat/completions", {"model": "far", "messages": []})
    assert (answer.status_code, far.last()["status"]) == (400, 400)
    assert far.last()["error"] == answer.json()["error"]["message"]


# what is counted


def test_the_page_of_metrics_names_operations(served):
    served.post("completions", {"model": "echo", "prompt": "a b"})
    served.chat("a b")
    text = httpx.get(served.url.removesuffix("/v1") + "/metrics").text
    for operation in ("chat", "text_completion"):
        assert f'gen_ai_server_request_duration_seconds_count{{gen_ai_operation_name="{operation}",gen_ai_provider_name="tunesmith"' in text
    assert 'vllm:e2e_request_latency_seconds_quantile{model_name="echo",quantile="0.95"}' in text
    assert "_created" not in text


def test_a_sketch_is_nearer_than_the_dashboards_buckets():
    """Why the sketches are kept: the 95th percentile of latencies around a second, as Prometheus reads it from the buckets."""
    rng = random.Random(1)
    values, sketch = sorted(rng.lognormvariate(0, 0.5) for _ in range(20_000)), Sketch()
    for value in values:
        sketch.add(value)
    true, rank = values[int(0.95 * 19_999)], 0.95 * 20_000
    high = next(bound for bound in DURATION if bisect.bisect_right(values, bound) >= rank)
    low = DURATION[DURATION.index(high) - 1]
    below, within = bisect.bisect_right(values, low), bisect.bisect_right(values, high)
    linear = low + (high - low) * (rank - below) / (within - below)
    assert abs(sketch.quantile(0.95) / true - 1) < 0.01 < 0.05 < abs(linear / true - 1)
