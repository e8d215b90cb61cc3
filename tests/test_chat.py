"""The one renderer: its ids are the template's, its mask covers the assistant's words and their end-of-turn, and nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from templates import save
from tunesmith.core.chat import Renderer
from tunesmith.core.errors import DataError, NotFound
from tunesmith.core.types import Example, Function, Message, Preference, Prompt, ToolCall, example_id

FAMILIES = ["llama3", "qwen", "no_system", "smollm2"]
# Control characters are left out: SmolLM2's vocabulary lacks some of those bytes and reads them as <|endoftext|>.
letters = st.characters(codec="utf-8", exclude_characters="<>|{}⟨⟩", exclude_categories=["Cc", "Cs", "Cn", "Co"])
words = st.text(alphabet=letters, min_size=1, max_size=40).filter(lambda s: s.strip() == s)


@pytest.fixture(scope="session")
def folders(tmp_path_factory, smollm2):
    root = tmp_path_factory.mktemp("templates")
    return {family: save(root / family, family) for family in FAMILIES[:3]} | {"smollm2": smollm2}


@pytest.fixture(scope="session")
def renderers(folders):
    return {family: Renderer.load(folder) for family, folder in folders.items()}


@pytest.fixture(scope="session")
def references(folders):
    from transformers import AutoTokenizer

    return {family: AutoTokenizer.from_pretrained(folder) for family, folder in folders.items()}


@st.composite
def conversations(draw):
    turns = draw(st.integers(1, 4))
    messages = [Message(role="system", content=draw(words))] if draw(st.booleans()) else []
    for _ in range(turns):
        messages.append(Message(role="user", content=draw(words)))
        messages.append(Message(role="assistant", content=draw(words), weight=draw(st.sampled_from([None, 1, 0]))))
    return tuple(messages)


def plain(renderer, messages):
    return renderer.template.messages(messages)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_that_stands_in_its_own_end_token_is_ended_once(renderers, references, family):
    """One letter, as of a choice, is in `<|im_end|>` too."""
    renderer, reference = renderers[family], references[family]
    for stop in renderer.turns.stops:
        for answer in {*stop, stop.strip("<|>"), "end", "yes"} - {" "}:
            messages = (Message(role="user", content=answer), Message(role="assistant", content=answer))
            row = renderer.example(Example(id="r", messages=messages))
            assert row.ids.tolist() == reference.apply_chat_template(plain(renderer, messages), tokenize=True, return_dict=False)
            assert renderer.turns.turn(messages, (), 1).answer.removeprefix(answer).strip() == stop


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=conversations())
def test_ids_are_the_templates_and_the_mask_is_the_assistants(renderers, references, family, messages):
    renderer, reference = renderers[family], references[family]
    row = renderer.example(Example(id="r", messages=messages))
    assert row.ids.tolist() == reference.apply_chat_template(plain(renderer, messages), tokenize=True, return_dict=False)
    trained = [m for m in messages if m.role == "assistant" and m.weight != 0]
    runs, previous = [], 0
    for number, on in zip(row.ids.tolist(), row.mask.tolist(), strict=True):
        if on and not previous:
            runs.append([])
        if on:
            runs[-1].append(number)
        previous = on
    assert len(runs) == len(trained)
    for run, message in zip(runs, trained, strict=True):
        assert run[-1] in renderer.stop_ids, "the end-of-turn token is trained"
        assert renderer.decode(run[:-1]).strip() == message.text.strip(), "exactly the assistant's words are trained"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_of_inference_is_the_start_of_the_trained_row(renderers, family):
    renderer = renderers[family]
    asked = (Message(role="system", content="be brief"), Message(role="user", content="the user asks"))
    row = renderer.example(Example(id="r", messages=(*asked, Message(role="assistant", content="the answer"))))
    prompt = renderer.prompt(Prompt(messages=asked))
    assert row.ids[: len(prompt)].tolist() == prompt
    assert row.mask[: len(prompt)].sum() == 0
    assert row.mask[len(prompt)] == 1


def test_a_begin_token_is_never_doubled(renderers):
    row = renderers["llama3"].example(Example(id="r", messages=(Message(role="user", content="a"), Message(role="assistant", content="b"))))
    begin = renderers["llama3"].encode("<|begin_of_text|>")
    assert row.ids[:1].tolist() == begin
    assert row.ids.tolist().count(begin[0]) == 1


@pytest.mark.slow
def test_pad_equal_to_end_of_turn_is_trained_where_it_ends_a_turn(renderers, references):
    assert references["smollm2"].pad_token_id in renderers["smollm2"].stop_ids
    row = renderers["smollm2"].example(
        Example(id="r", messages=(Message(role="user", content="a"), Message(role="assistant", content="b")))
    )
    ends = [i for i, number in enumerate(row.ids.tolist()) if number in renderers["smollm2"].stop_ids]
    assert [int(row.mask[i]) for i in ends] == [0] * (len(ends) - 1) + [1]


def test_tool_calls_are_rendered_trained_and_read_back(renderers, references):
    renderer = renderers["qwen"]
    call = ToolCall(id="call_0", function=Function(name="lookup", arguments='{"name": "Müller", "deep": {"a": [1, null]}}'))
    tools = ({"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}},)
    messages = (
        Message(role="user", content="who"),
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="a person", tool_call_id="call_0"),
        Message(role="assistant", content="a person"),
    )
    row = renderer.example(Example(id="r", messages=messages, tools=tools))
    reference = references["qwen"].apply_chat_template(plain(renderer, messages), tools=list(tools), tokenize=True, return_dict=False)
    assert row.ids.tolist() == reference
    trained = renderer.decode(row.ids[row.mask == 1].tolist())
    assert "lookup" in trained
    assert "tool_response" not in trained
    said = renderer.parse(trained.split("</tool_call>")[0] + "</tool_call>")
    assert said.tool_calls[0].function.name == "lookup"
    assert json.loads(said.tool_calls[0].function.arguments) == json.loads(call.function.arguments)


def test_the_assistant_may_speak_first_where_the_template_lets_it(renderers):
    renderer = renderers["smollm2"]
    row = renderer.example(Example(id="r", messages=(Message(role="assistant", content="welcome"), Message(role="user", content="hi"))))
    assert renderer.decode(row.ids[row.mask == 1].tolist()) == "welcome"


def test_a_system_message_is_folded_where_the_template_has_no_system_role(renderers):
    text = renderers["no_system"].template.render((Message(role="system", content="rule"), Message(role="user", content="ask")))
    assert "rule\n\nask" in text


def test_developer_reads_as_system(renderers):
    developer = (Message(role="developer", content="rule"), Message(role="user", content="ask"))
    system = (Message(role="system", content="rule"), Message(role="user", content="ask"))
    assert renderers["qwen"].prompt(Prompt(messages=developer)) == renderers["qwen"].prompt(Prompt(messages=system))


def test_a_refused_conversation_says_why(renderers):
    with pytest.raises(DataError, match="alternate"):
        renderers["no_system"].example(Example(id="r", messages=(Message(role="user", content="a"), Message(role="user", content="b"))))


def test_a_cut_row_says_how_much_it_lost(renderers):
    row = renderers["qwen"].example(
        Example(id="r", messages=(Message(role="user", content="a"), Message(role="assistant", content="the answer " * 30)))
    )
    short = row.limited(20)
    assert len(short.ids) == len(short.mask) == 20
    assert short.cut == len(row.ids) - 20
    assert row.limited(10_000) is row


def test_a_pair_trains_only_the_answers(renderers):
    renderer = renderers["qwen"]
    prompt = (Message(role="user", content="a"), Message(role="assistant", content="earlier"), Message(role="user", content="b"))
    pair = Preference(
        id="p",
        messages=prompt,
        preferred=Message(role="assistant", content="good"),
        non_preferred=Message(role="assistant", content="bad"),
    )
    good, bad = renderer.pair(pair)
    assert renderer.decode(good.ids[good.mask == 1].tolist()) == "good"
    assert renderer.decode(bad.ids[bad.mask == 1].tolist()) == "bad"


def test_a_base_without_template_gets_the_documented_one(tmp_path):
    folder = save(tmp_path, "qwen")
    (folder / "chat_template.jinja").unlink()
    renderer = Renderer.load(folder)
    row = renderer.example(Example(id="r", messages=(Message(role="user", content="ask"), Message(role="assistant", content="say"))))
    assert renderer.decode(row.ids[row.mask == 1].tolist()) == "say"
    assert (
        renderer.template.render((Message(role="user", content="ask"),), generation=True)
        == "<|endoftext|>### User:\nask\n\n### Assistant:\n"
    )


def test_a_template_without_end_of_turn_is_refused(tmp_path):
    folder = save(tmp_path, "qwen")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with pytest.raises(DataError, match="never stop"):
        Renderer.load(folder)


def test_a_folder_without_tokenizer_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        Renderer.load(tmp_path)


def test_a_row_id_is_the_hash_of_its_content():
    one, two = Message(role="user", content="a"), Message(role="user", content="b")
    assert example_id((one,)) == example_id((one,)) != example_id((two,))


def asked(answer, **more):
    return Example(id="r1", messages=(Message(role="user", content="the user asks"), Message(role="assistant", content=answer, **more)))


def test_a_template_whose_prompt_merges_with_the_answer_is_refused(folders, tmp_path):
    """A prompt that ends in a space: " the" would be trained on, or left out, and serving sends the space alone."""
    folder = shutil.copytree(folders["qwen"], tmp_path / "spaced")
    template = (folder / "chat_template.jinja").read_text("utf-8")
    spaced = template.replace("'\\n' + message.content }}{%- endif %}\n{%- for", "' ' + message.content }}{%- endif %}\n{%- for")
    spaced = spaced.replace("assistant\\n' }}", "assistant ' }}")
    assert spaced.count("' '") == 1
    (folder / "chat_template.jinja").write_text(spaced, "utf-8")
    renderer = Renderer.load(folder)
    with pytest.raises(
        DataError, match=r"in 1 of 2 rows the end of the prompt merges .*\n(.*\n)*  row r1: the prompt ends in 'sistant '"
    ) as refused:
        renderer.examples([asked("the answer"), asked("the answer", weight=0)])
    assert "generation prompt without" in refused.value.remedy
    assert renderer.example(asked("the answer", weight=0)).trained == 0


def test_an_answer_whose_white_space_merges_with_the_prompt_is_refused(renderers):
    with pytest.raises(DataError, match=r"row r1: .*begins with '\\n\\nthe") as refused:
        renderers["smollm2"].example(asked("\n\nthe answer"))
    assert "beginning of the answer" in refused.value.remedy
    assert renderers["no_system"].example(asked("\n\nthe answer")).trained, "this template takes the white space off"
