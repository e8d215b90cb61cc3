"""Answers held to a form: whatever a random model says, it is what was asked for."""

from __future__ import annotations

import asyncio
import json

import pytest

import tiny
from openai_spec import assert_valid, require_spec

openai = pytest.importorskip("openai")
jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance", reason="answers are held to a form by llguidance (extra: serve)")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "kind": {"enum": ["bank", "person"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99},
                   "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}},
    "required": ["name", "kind", "age", "tags"],
    "additionalProperties": False,
}  # fmt: skip
CITY = {"type": "object", "properties": {"city": {"enum": ["Bern", "Rome"]}}, "required": ["city"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("weather", "time")]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    from tunesmith.api.app import ServeConfig, create_app, running
    from tunesmith.models.echo import EchoModel
    from tunesmith.models.local import LocalModel

    folder = tiny.model(tmp_path_factory.mktemp("model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    local = LocalModel(folder, name="tiny@1", dtype="float32")
    with running(create_app({"tiny": local, "echo": EchoModel()}, config=ServeConfig(default_max_tokens=180))) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)


def ask(**more):
    return {"model": "tiny", "messages": [{"role": "user", "content": "who signed?"}], "temperature": 1.5, **more}


def form(schema=SCHEMA):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_answers_satisfy_their_schema(client, seed):
    answer = client.chat.completions.create(**ask(response_format=form(), seed=seed))
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)


@pytest.mark.slow
def test_streams_too_and_beside_free_rows(client, url):
    free = ask(temperature=0, max_tokens=20)
    alone = client.chat.completions.create(**free).choices[0].message.content

    async def together():
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as many:
            held = [many.chat.completions.create(**ask(response_format=form(), seed=i)) for i in range(4)]
            loose = [many.chat.completions.create(**free) for _ in range(4)]
            return await asyncio.gather(*held, *loose)

    answers = [answer.choices[0].message.content for answer in asyncio.run(together())]
    for text in answers[:4]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert answers[4:] == [alone] * 4
    chunks = client.chat.completions.create(**ask(response_format=form(), seed=3), stream=True)
    jsonschema.validate(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks)), SCHEMA)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_json_objects(client, seed):
    answer = client.chat.completions.create(**ask(response_format={"type": "json_object"}, seed=seed, max_tokens=200)).choices[0]
    assert answer.message.content.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
def test_tools_that_must_be_called_are_called(client, seed, choice):
    require_spec()
    answer = client.chat.completions.create(**ask(tools=TOOLS, tool_choice=choice, seed=seed, parallel_tool_calls=False))
    assert_valid("CreateChatCompletionResponse", answer.model_dump(exclude_unset=True))
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name in (("weather", "time") if choice == "required" else ("time",))
    jsonschema.validate(json.loads(call.function.arguments), CITY)


@pytest.mark.parametrize("schema", [{"$ref": "https://elsewhere.example/x.json"}, {"type": "wizard"}])
def test_schemas_that_cannot_be_followed_are_told(client, schema):
    with pytest.raises(openai.BadRequestError, match="cannot be followed"):
        client.chat.completions.create(**ask(response_format=form(schema)))
    assert client.chat.completions.create(**ask(max_tokens=2)).choices[0].finish_reason


def test_models_that_cannot_be_held_say_so(client):
    with pytest.raises(openai.BadRequestError, match="'echo' cannot be held"):
        client.chat.completions.create(**ask(model="echo", response_format=form()))
