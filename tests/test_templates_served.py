"""A model that thinks, speaks and calls, over HTTP and in an evaluation: thoughts stand apart, calls are read back, words alone are rated."""

from __future__ import annotations

import json

import pytest
from benchmarks.templates import CONVERSATIONS, TOOLS

from template_families import FAMILIES, parrot
from tunesmith.core.types import Example, Sampling
from tunesmith.store.store import Store

openai = pytest.importorskip("openai")
THOUGHT, SAID = ["<think>\n", "two and ", "two", "\n</think>\n\n"], ["So it ", "is four"]
CALL = ["<tool_call>\n", '{"name": "look_up", ', '"arguments": ', '{"place": "Ghent", "hours": 7}}', "\n</tool_call>", "<|end|>"]
ASKED = [{"role": "user", "content": "USERWORDS one"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tunesmith.models.local import LocalModel

    folder = parrot(tmp_path_factory.mktemp("parrot"), FAMILIES["last thoughts"], [*THOUGHT, *SAID, *CALL])
    return LocalModel(folder, name="parrot", dtype="float32")


@pytest.fixture(scope="module")
def client(model, tmp_path_factory):
    from tunesmith.api.app import ServeConfig, create_app, running

    store = Store.open(tmp_path_factory.mktemp("store"))
    with running(create_app({"parrot": model}, store, ServeConfig(default_max_tokens=64))) as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)


@pytest.mark.slow
def test_an_answer_in_its_parts(client):
    answer = client.chat.completions.create(model="parrot", messages=ASKED, tools=TOOLS).choices[0]
    assert (answer.message.reasoning_content, answer.message.content) == ("two and two", "So it is four")
    assert answer.message.tool_calls[0].function.name == "look_up"
    assert json.loads(answer.message.tool_calls[0].function.arguments) == {"place": "Ghent", "hours": 7}
    assert answer.finish_reason == "tool_calls"


def test_an_answer_in_its_parts_as_it_is_written(client):
    deltas = [
        c.choices[0].delta for c in client.chat.completions.create(model="parrot", messages=ASKED, tools=TOOLS, stream=True) if c.choices
    ]
    thoughts = [delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)]
    words = [delta.content for delta in deltas if delta.content]
    assert ("".join(thoughts), "".join(words)) == ("two and two", "So it is four")
    assert len(thoughts) > 1
    assert len(words) > 1, "words do not wait for the end, though tools are given"
    assert [call.function.name for delta in deltas for call in delta.tool_calls or ()] == ["look_up"]


def test_what_is_cut_is_what_it_is(client):
    """Cut within the thoughts there are no words; cut within a call there is no markup; a text that is continued is text."""
    thinking = client.chat.completions.create(model="parrot", messages=ASKED, max_completion_tokens=2).choices[0]
    assert (thinking.message.content, thinking.message.reasoning_content, thinking.finish_reason) == ("", "two and", "length")
    text = client.completions.create(model="parrot", prompt="<|usr|>hi<|end|><|bot|>", max_tokens=5).choices[0].text
    assert text == "<think>\ntwo and two\n</think>\n\nSo it "


def test_a_form_is_kept_from_the_first_token(client):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "boolean"}}}
    answer = client.chat.completions.create(model="parrot", messages=ASKED, response_format=form).choices[0].message
    assert answer.content in ("true", "false")


def test_a_model_that_repeats_its_row_is_right(model, tmp_path):
    from tunesmith.evaluate.metrics import metric
    from tunesmith.evaluate.run import evaluate

    conversation = CONVERSATIONS["thoughts"], CONVERSATIONS["thoughts in content"]
    rows = [Example(id=f"r{i}", messages=messages, tools=TOOLS) for i, messages in enumerate(conversation)]
    done = evaluate(model, rows, [metric("exact_match"), metric("length")], sampling=Sampling(max_tokens=64), out=tmp_path)
    assert done.values == {"exact_match": 1.0, "length": 4.0}
