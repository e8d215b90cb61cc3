"""The Responses API, asked by the real OpenAI SDK over real sockets, its answers judged by the SDK's own types."""

from __future__ import annotations

import json
from typing import Literal

import httpx
import pytest
from benchmarks.templates import TOOLS

import tiny
from api_parts import TLS
from template_families import FAMILIES, parrot
from tunesmith.store.store import Store
from waiting import until

openai = pytest.importorskip("openai")
THOUGHT, SAID = ["<think>\n", "two and ", "two", "\n</think>\n\n"], ["So it ", "is four"]
CALL = ["<tool_call>\n", '{"name": "look_up", ', '"arguments": ', '{"place": "Ghent", "hours": 7}}', "\n</tool_call>", "<|end|>"]
CITY = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
CLOCK = {"type": "function", "name": "time", "parameters": CITY, "strict": True}
LOOK_UP = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]


class Served:
    """A running server with echo, a tiny model, and one that thinks, speaks and calls."""

    def __init__(self, url, store):
        self.url, self.store = url, store
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
        self.create = self.client.responses.create

    def request(self, method, path, **more):
        return httpx.request(method, self.url + path, timeout=600, verify=TLS, **more)

    def refusal(self, status=400, **body):
        """The error that a request is refused with, the same whole and streamed."""
        answers = [self.request("POST", "/responses", json={"model": "echo", "input": "x", **body, "stream": s}) for s in (False, True)]
        assert [answer.status_code for answer in answers] == [status, status], answers[0].text
        assert answers[0].json() == answers[1].json()
        assert answers[0].json()["error"].keys() == {"message", "type", "param", "code"}
        return answers[0].json()["error"]

    def streamed(self, **body):
        """The events of a response, each as it came and as the SDK's type has it."""
        from openai.types.responses import ResponseStreamEvent
        from pydantic import TypeAdapter

        text = self.request("POST", "/responses", json={"stream": True, **body}).text
        parts = [part.split("\n") for part in text.split("\n\n") if part]
        events = [json.loads(data.removeprefix("data: ")) for _, data in parts]
        assert [event["type"] for event in events] == [name.removeprefix("event: ") for name, _ in parts]
        for event in events:
            TypeAdapter(ResponseStreamEvent).validate_python(event)
        return events

    def log(self):
        from sqlalchemy import select

        from tunesmith.store.tables import interactions

        with self.store.engine.connect() as connection:
            return list(connection.execute(select(interactions).order_by(interactions.c.created)).mappings())


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.echo import EchoModel
    from tunesmith.models.local import LocalModel

    folder = parrot(tmp_path_factory.mktemp("parrot"), FAMILIES["last thoughts"], [*THOUGHT, *SAID, *CALL])
    thinking = LocalModel(folder, name="parrot", dtype="float32")
    local = LocalModel(tiny.model(tmp_path_factory.mktemp("model"), context=512), name="tiny@1", dtype="float32")
    store = Store.open(tmp_path_factory.mktemp("store"))
    models = {"echo": EchoModel(), "tiny": local, "parrot": thinking}
    with running(create_app(models, store, ServeConfig(default_max_tokens=64), store=store)) as url:
        yield Served(url, store)


def valid(body):
    """A response as the SDK's type has it, every part checked."""
    from openai.types.responses import Response

    return Response.model_validate(body)


def user(text):
    return {"role": "user", "content": text}


def ids(events):
    return [event["sequence_number"] for event in events]


# --- an answer ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_answer_is_what_a_chat_completion_answers_and_ends_in_the_log(served):
    chat = [{"role": "system", "content": "List the named entities."}, user("Who signed it?")]
    expected = served.client.chat.completions.create(model="tiny", messages=chat, temperature=0, max_tokens=12)
    for asked in ({"instructions": chat[0]["content"], "input": "Who signed it?"}, {"input": chat}):
        answer = served.create(model="tiny", temperature=0, max_output_tokens=12, metadata={"k": "v"}, user="u", **asked)
        valid(answer.model_dump(mode="json"))
        assert answer.output_text == expected.choices[0].message.content
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (expected.usage.prompt_tokens, expected.usage.completion_tokens)
        row = served.log()[-1]
        assert (row["id"], row["endpoint"], row["alias"], row["status"]) == (answer.id, "responses", "tiny", 200)
        assert (row["answer"], row["completion_tokens"], row["user_key"]) == (answer.output_text, answer.usage.output_tokens, "u")
        assert json.loads(row["messages"]) == chat
    assert (answer.metadata, answer.temperature, answer.top_p, answer.max_output_tokens) == ({"k": "v"}, 0, 1, 12)
    assert 'gen_ai_operation_name="responses"' in served.request("GET", "/../metrics").text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more"),
    [("echo", {}), ("tiny", {"temperature": 0, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}), ("parrot", {"tools": LOOK_UP}),
     ("parrot", {"max_output_tokens": 2, "include": ["reasoning.encrypted_content"]}), ("echo", {"max_output_tokens": 1, "input": "one two"}),
     ("echo", {"input": 'call {"x": 1}', "tools": LOOK_UP, "store": False})],
)  # fmt: skip
def test_a_stream_adds_up_to_the_answer(served, model, more):
    asked = {"model": model, "input": "USERWORDS one", **more}
    whole = served.request("POST", "/responses", json=asked).json()
    valid(whole)
    events = served.streamed(**asked)
    last = events[-1]
    assert ids(events) == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert last["type"] == f"response.{whole['status']}"
    assert last["response"]["id"] == events[0]["response"]["id"] != whole["id"]

    def alike(response):
        text = json.dumps({key: value for key, value in response.items() if key not in ("id", "created_at", "completed_at")})
        for item in response["output"]:
            text = text.replace(item["id"], "").replace(item.get("call_id", "-"), "-")
        return text

    assert alike(last["response"]) == alike(whole)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["response"]["output"]
    for place, item in enumerate(done):
        own = [event for event in events if event.get("output_index") == place]
        grown = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert grown == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        assert own[0]["type"] == "response.output_item.added"
        assert own[0]["item"]["id"] == item["id"]
        assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}
        if item["type"] == "message":
            logprobs = [entry for event in own if event["type"].endswith("_text.delta") for entry in event["logprobs"]]
            assert logprobs == item["content"][0]["logprobs"]
    assert served.log()[-1]["id"] == last["response"]["id"]


def test_thoughts_words_and_calls_are_items(served):
    answer = served.create(model="parrot", input="USERWORDS one", tools=LOOK_UP)
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    thoughts, words, call = answer.output
    assert (thoughts.content[0].text, words.content[0].text, call.name) == ("two and two", "So it is four", "look_up")
    assert json.loads(call.arguments) == {"place": "Ghent", "hours": 7}
    assert 0 < answer.usage.output_tokens_details.reasoning_tokens < answer.usage.output_tokens
    cut = served.create(model="parrot", input="USERWORDS one", max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason, [item.type for item in cut.output]) == (
        "incomplete",
        "max_output_tokens",
        ["reasoning"],
    )


@pytest.mark.slow
def test_the_sdks_own_stream_and_its_parsed_answers(served):
    with served.client.responses.stream(model="parrot", input="USERWORDS one", tools=LOOK_UP) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.reasoning_text.delta") > 1
    assert kinds.count("response.output_text.delta") > 1
    assert final.output_text == "So it is four"


# --- turns -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_answered_goes_back_as_it_came(served):
    """By hand, by the previous response's id, and by references to items: the model is asked the same."""
    first = served.create(model="parrot", input="USERWORDS one", tools=LOOK_UP, include=["reasoning.encrypted_content"])
    result = {"type": "function_call_output", "call_id": first.output[2].call_id, "output": [{"type": "input_text", "text": "4"}]}
    sealed = [{k: v for k, v in item.model_dump().items() if k != "content" or item.type != "reasoning"} for item in first.output]
    ways = [
        {"input": [user("USERWORDS one"), *first.output, result]},
        {"input": [user("USERWORDS one"), *sealed, result]},
        {"input": [user("USERWORDS one"), *({"type": "item_reference", "id": item.id} for item in first.output), result]},
        {"previous_response_id": first.id, "input": [result]},
    ]
    for way in ways:
        answer = served.create(model="parrot", tools=LOOK_UP, **way)
        assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
        asked, said, came = json.loads(served.log()[-1]["messages"])
        assert (asked, came["role"], came["content"]) == (user("USERWORDS one"), "tool", "4")
        assert (said["reasoning_content"], said["content"], said["tool_calls"][0]["function"]["name"]) == (
            "two and two",
            "So it is four",
            "look_up",
        )
        assert said["tool_calls"][0]["id"] == came["tool_call_id"] == first.output[2].call_id
        assert served.log()[-1]["conversation"] == served.log()[-2]["conversation"] or way is ways[0]


def test_a_response_goes_on_from_another(served):
    first = served.create(model="echo", input="my name is Ada", instructions="Be brief.")
    second = served.create(model="echo", input="what is my name", previous_response_id=first.id, instructions="Be long.")
    third = served.create(model="echo", input=[{"role": "developer", "content": "x"}, user("again")], previous_response_id=second.id)
    assert third.previous_response_id == second.id
    assert [(m["role"], m["content"]) for m in json.loads(served.log()[-1]["messages"])] == [
        ("user", "my name is Ada"), ("assistant", "my name is Ada"), ("user", "what is my name"), ("assistant", "what is my name"),
        ("developer", "x"), ("user", "again"),
    ]  # fmt: skip
    served.client.responses.delete(first.id)
    error = served.refusal(previous_response_id=third.id)
    assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")


def test_a_chat_that_is_too_long_is_refused_or_cut(served):
    chat = [turn for i in range(90) for turn in (user(f"question {i}"), {"role": "assistant", "content": f"answer {i} " * 3})]
    body = {"model": "tiny", "instructions": "Say yes or no.", "input": [*chat, user("the last one")], "max_output_tokens": 2}
    error = served.refusal(**body)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    assert served.refusal(**body | {"input": "no " * 900, "truncation": "auto"})["code"] == "context_length_exceeded"
    answer = served.create(**body, truncation="auto")
    assert answer.truncation == "auto"
    assert 256 < answer.usage.input_tokens < 512


# --- tools and forms ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"weather", "time"}), ({"type": "function", "name": "time"}, {"time"}),
     ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}, {"weather"})],
)  # fmt: skip
def test_a_call_that_must_come_is_held_to_its_schema(served, choice, names):
    pytest.importorskip("llguidance")
    more = {"parallel_tool_calls": False} if isinstance(choice, str) or choice["type"] == "allowed_tools" else {}
    answer = served.create(model="tiny", input="who?", tools=[WEATHER, CLOCK], tool_choice=choice, max_output_tokens=100, **more)
    valid(answer.model_dump(mode="json"))
    (call,) = answer.output
    assert call.name in names
    assert json.loads(call.arguments)["city"] in ("Bern", "Rome")


@pytest.mark.slow
def test_allowed_tools_are_all_that_the_model_knows(served):
    """In this API and among chat completions; the model that is free to call calls its first tool."""
    for mode in ("auto", "required"):
        named = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "time"}]}
        model = "echo" if mode == "auto" else "tiny"
        answer = served.create(model=model, input="call {}", tools=[WEATHER, CLOCK], tool_choice=named, max_output_tokens=30)
        assert {item.name for item in answer.output if item.type == "function_call"} == {"time"}
        tools = [{"type": "function", "function": {"name": tool["name"], "parameters": CITY}} for tool in (WEATHER, CLOCK)]
        older = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [{"type": "function", "function": {"name": "time"}}]}}
        chat = served.client.chat.completions.create(model=model, messages=[user("call {}")], tools=tools, tool_choice=older, max_tokens=30)
        assert {call.function.name for call in chat.choices[0].message.tool_calls} == {"time"}
    bad = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "nobody"}}]}}
    with pytest.raises(openai.BadRequestError, match="no such tool"):
        served.client.chat.completions.create(model="echo", messages=[user("x")], tools=tools, tool_choice=bad)


def test_a_form_is_kept(served):
    pytest.importorskip("llguidance")
    from pydantic import BaseModel

    class Place(BaseModel):
        city: Literal["Bern", "Rome"]

    form = {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}
    answer = served.create(model="tiny", input="where?", text={"format": form}, max_output_tokens=40)
    assert json.loads(answer.output_text)["city"] in ("Bern", "Rome")
    assert answer.text.format.schema_ == CITY
    loose = served.create(model="tiny", input="x", text={"format": {"type": "json_object"}}, max_output_tokens=60)
    assert loose.output_text.startswith("{")
    parsed = served.client.responses.parse(model="tiny", input="where?", text_format=Place, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Place)


# --- what is refused ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"foo": 1}, "foo", "foo"),
        ({"input": None}, "input", "Missing"),
        ({"input": []}, "input", "empty"),
        ({"input": 3}, "input", "int"),
        ({"n": 2}, "n", "n"),
        ({"seed": 1}, "seed", "seed"),
        ({"max_output_tokens": 0}, "max_output_tokens", "0"),
        ({"temperature": 3}, "temperature", "0 to 2"),
        ({"top_p": "x"}, "top_p", "str"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"truncation": "some"}, "truncation", "some"),
        ({"background": True}, "background", "false"),
        ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt", "input"),
        ({"include": ["web_search_call.results"]}, "include[0]", "message.output_text.logprobs"),
        ({"include": ["everything"]}, "include[0]", "unknown"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "huge"),
        ({"metadata": {"k": "v" * 600}}, "metadata", "512"),
        ({"previous_response_id": "resp_nobody"}, "previous_response_id", "resp_nobody"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "allowed: function"),
        ({"tools": [WEATHER, {"type": "custom", "name": "x"}]}, "tools[1].type", "custom"),
        ({"tools": [{**WEATHER, "foo": 1}]}, "tools[0].foo", "foo"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading", "not served"),
        ({"tools": [{**WEATHER, "parameters": {"type": "object", "properties": {"a": {}}}}]}, "tools[0].parameters", "additionalProperties"),
        ({"tool_choice": "required"}, "tool_choice", "required"),
        ({"tool_choice": "sometimes"}, "tool_choice", "auto"),
        ({"tool_choice": {"type": "web_search"}, "tools": [WEATHER]}, "tool_choice", "allowed_tools"),
        ({"tool_choice": {"type": "function", "name": "nobody"}, "tools": [WEATHER]}, "tool_choice", "no such tool"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}, "tools": [WEATHER]}, "tool_choice", "no such tool"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "Missing"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}}}, "text.format.schema", "false"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "grammar"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "function_call_output"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role", "wizard"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]", "images"),
        ({"input": [{"role": "user", "content": "x", "foo": 1}]}, "input[0].foo", "foo"),
        ({"input": [{"role": "user"}]}, "input[0].content", "Missing"),
        ({"input": [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]}, "input", "No tool call found"),
        ({"input": [{"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}, user("x")]}, "input", "No tool output found"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}, user("x")]}, "input", "rs_1"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_by_name(served, body, param, words):
    error = served.refusal(**body)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]


def test_a_model_and_an_item_that_are_not_there(served):
    assert served.refusal(404, model="nobody")["code"] == "model_not_found"
    error = served.refusal(404, input=[{"type": "item_reference", "id": "msg_1"}, user("x")])
    assert "Item with id 'msg_1' not found" in error["message"]


def test_keys_without_effect_are_named(served):
    more = {
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "high"},
        "prompt_cache_key": "k",
        "service_tier": "auto",
    }
    raw = served.client.responses.with_raw_response.create(model="echo", input="x", **more)
    assert raw.headers["x-tunesmith-ignored"] == "reasoning.effort,reasoning.summary,text.verbosity"
    assert "x-tunesmith-ignored" not in served.client.responses.with_raw_response.create(model="echo", input="x").headers


# --- kept --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_response_is_kept_listed_and_deleted(served):
    from openai.types.responses import ResponseItem
    from pydantic import TypeAdapter

    asked = [user("one"), {"role": "assistant", "content": "two"}, user([{"type": "input_text", "text": "three"}])]
    made = served.create(model="echo", input=asked)
    assert made.store is True or served.request("GET", f"/responses/{made.id}").json()["store"] is True
    assert served.client.responses.retrieve(made.id).to_dict() == made.to_dict()
    items = list(served.client.responses.input_items.list(made.id, order="asc", limit=2))
    assert [item.content[0].text for item in items] == ["one", "two", "three"]
    assert [item.content[0].text for item in served.client.responses.input_items.list(made.id)] == ["three", "two", "one"]
    for item in served.request("GET", f"/responses/{made.id}/input_items").json()["data"]:
        TypeAdapter(ResponseItem).validate_python(item)
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        served.client.responses.cancel(made.id)
    served.client.responses.delete(made.id)
    for call in (served.client.responses.retrieve, served.client.responses.delete, served.client.responses.cancel):
        with pytest.raises(openai.NotFoundError, match=made.id):
            call(made.id)
    unkept = served.create(model="echo", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        served.client.responses.retrieve(unkept.id)


@pytest.mark.slow
def test_a_streamed_response_is_kept_before_its_last_event(served):
    events = served.streamed(model="parrot", input="USERWORDS one", tools=LOOK_UP)
    kept = served.client.responses.retrieve(events[-1]["response"]["id"])
    assert valid(events[-1]["response"]).to_dict() == kept.to_dict()


def test_what_has_expired_is_gone(served):
    import sqlalchemy as sa

    from tunesmith.store.responses import Responses
    from tunesmith.store.tables import responses

    made = served.create(model="echo", input="x")
    with served.store.writing() as connection:
        connection.execute(sa.update(responses).where(responses.c.id == made.id).values(expires=1.0))
    assert served.refusal(previous_response_id=made.id)["code"] == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        served.client.responses.retrieve(made.id)
    until(lambda: Responses(served.store).sweep() == 0)
    with served.store.reading() as connection:
        assert connection.execute(sa.select(responses.c.id).where(responses.c.id == made.id)).first() is None


def test_a_model_that_fails_in_the_middle_fails_the_response(served, tmp_path):
    from tunesmith.api.app import create_app, running

    class Falls:
        name, digest = "falls", "falls-1"

        def answer(self, prompts, sampling, on_answer=None):
            raise RuntimeError("the disk is on fire")

    with running(create_app({"falls": Falls()}, store=served.store)) as url:
        other = Served(url, served.store)
        last = other.streamed(model="falls", input="x")[-1]
        assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
        assert "fire" not in json.dumps(last)
        assert other.client.responses.retrieve(last["response"]["id"]).status == "failed"
        assert (served.log()[-1]["id"], served.log()[-1]["status"]) == (last["response"]["id"], 500)
        with pytest.raises(openai.InternalServerError):
            other.create(model="falls", input="x")


@pytest.mark.slow
def test_what_was_looked_up_is_cited(served):
    """By a model that read two passages and cites one of them twice."""
    from tunesmith.api.app import create_app, running
    from tunesmith.core.types import Answer, PassageRef, Sources

    class Reads:
        name, digest = "reads", "reads-1"

        def answer(self, prompts, sampling, on_answer=None):
            passages = tuple(PassageRef(number=i, id=str(i), source="manual.pdf", start=0, end=9, score=1.0, page=i) for i in (1, 2))
            return [
                Answer(text="So it is [2], and [2].", prompt_tokens=1, completion_tokens=1, sources=Sources(index="x", passages=passages))
            ]

    with running(create_app({"reads": Reads()}, store=served.store)) as url:
        other = Served(url, served.store)
        events = other.streamed(model="reads", input="x")
        whole = valid(events[-1]["response"]).output[0]
        annotations = [event["annotation"] for event in events if event["type"] == "response.output_text.annotation.added"]
        assert [a.model_dump() for a in whole.content[0].annotations] == annotations
        assert [(a["url"], a["start_index"]) for a in annotations] == [("manual.pdf#page=2", 9), ("manual.pdf#page=2", 18)]
        assert [passage["page"] for passage in whole.sources["passages"]] == [1, 2]
        assert other.create(model="reads", input=[user("x"), whole, user("y")]).output_text.startswith("So it is")
        assert json.loads(served.log()[-1]["sources"])["index"] == "x"


@pytest.mark.slow
def test_each_project_sees_its_own(tmp_path):
    from tunesmith.api.app import create_app, running
    from tunesmith.models.echo import EchoModel
    from tunesmith.store.keys import Keys

    store = Store.open(tmp_path)
    mine, theirs, reader = (Keys(store).create(n, project=n, scopes=[s])[1] for n, s in (("a", "serve"), ("b", "serve"), ("a2", "read")))
    with running(create_app({"echo": EchoModel()}, store=store)) as url:
        clients = [openai.OpenAI(base_url=url, api_key=key, max_retries=0) for key in (mine, theirs, reader)]
        made = clients[0].responses.create(model="echo", input="x")
        assert clients[0].responses.retrieve(made.id).id == made.id
        for call in (
            lambda: clients[1].responses.retrieve(made.id),
            lambda: clients[1].responses.delete(made.id),
            lambda: clients[1].responses.input_items.list(made.id),
            lambda: clients[1].responses.create(model="echo", input=[{"type": "item_reference", "id": made.output[0].id}, user("x")]),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.BadRequestError, match="Previous response with id"):
            clients[1].responses.create(model="echo", input="x", previous_response_id=made.id)
        with pytest.raises(openai.PermissionDeniedError):
            clients[2].responses.create(model="echo", input="x")


def test_a_server_without_a_store_answers_and_keeps_nothing(tmp_path):
    from tunesmith.api.app import create_app, running
    from tunesmith.models.echo import EchoModel

    with running(create_app({"echo": EchoModel()})) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        assert client.responses.create(model="echo", input="x").to_dict()["store"] is False
        for more in ({"store": True}, {"previous_response_id": "resp_1"}):
            with pytest.raises(openai.BadRequestError):
                client.responses.create(model="echo", input="x", **more)
