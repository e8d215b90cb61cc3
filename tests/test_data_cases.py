"""What real files have: nothing that a row says moves aside unsaid, and no row vanishes or is made up. Each kind with an input of our own."""

import json

import pytest

from tunesmith.core.errors import DataError
from tunesmith.core.row_kinds import answer_turns, prompt_of, turns_of
from tunesmith.core.types import Example, Labelled, Preference
from tunesmith.data.collect import Source, collect
from tunesmith.data.export import to_format


def read(folder, *rows, name="rows.jsonl", **options):
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return collect(Source(path=str(path), **options), max_invalid=1.0 if len(rows) > 1 else 0.0)


def turns(row):
    return [(turn.role, turn.text) for turn in turns_of(row)]


def ask(text="Which way?"):
    return {"role": "user", "content": text}


def say(text="Left.", **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = ("system", "Speak like a sailor.")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ask(), say()]},
        {"prompt": "Which way?", "completion": "Left."},
        {"prompt": [ask()], "completion": [say()]},
        {"prompt": "Which way?", "response": "Left."},
        {"instruction": "Which way?", "output": "Left."},
        {"conversations": [{"from": "human", "value": "Which way?"}, {"from": "gpt", "value": "Left."}]},
        {"prompt": "Which way?", "completion": "Left.", "label": True},
        {"messages": [ask(), say()], "label": False},
        {"input": "Which way?", "ideal": "Left."},
    ],
)
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_prompt_beside_the_turns_is_the_first_turn(row, key, tmp_path):
    found = read(tmp_path, {**row, key: SYSTEM[1]})
    assert turns(found.rows[0]) == [SYSTEM, ("user", "Which way?"), ("assistant", "Left.")]
    assert found.rows[0].meta == {}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Which way?", "chosen": "Left.", "rejected": "Up."},
        {"question": "Which way?", "chosen": "Left.", "rejected": "Up."},
        {"prompt": "Which way?", "chosen": [ask(), say()], "rejected": [ask(), say("Up.")]},
        {"chosen": [ask(), say()], "rejected": [ask(), say("Up.")]},
        {"prompt": [ask()], "chosen": [say()], "rejected": [say("Up.")]},
        {"messages": [ask()], "chosen": "Left.", "rejected": "Up."},
        {
            "conversations": [{"from": "human", "value": "Which way?"}],
            "chosen": {"from": "gpt", "value": "Left."},
            "rejected": {"from": "gpt", "value": "Up."},
        },
        {"chosen": "\n\nHuman: Which way?\n\nAssistant: Left.", "rejected": "\n\nHuman: Which way?\n\nAssistant: Up."},
        {"input": {"messages": [ask()]}, "preferred_output": [say()], "non_preferred_output": [say("Up.")]},
        {"prompt": "Which way?", "chosen": [ask(), say()], "rejected": [ask(), say("Up.")], "messages": [ask(), say()], "score": 4},
    ],
)
def test_pairs_in_their_common_shapes(row, tmp_path):
    for extra in ({}, {"system": SYSTEM[1]}):
        pair = read(tmp_path, {**row, **extra}).rows[0]
        assert isinstance(pair, Preference)
        assert [(turn.role, turn.text) for turn in prompt_of(pair)] == [*([SYSTEM] if extra else []), ("user", "Which way?")]
        assert [turn.text for turn in answer_turns(pair)] == ["Left.", "Up."]


def test_a_prompt_inside_both_answers_may_say_more_but_nothing_else(tmp_path):
    inside = [{"role": "system", "content": SYSTEM[1]}, ask()]
    row = {"prompt": "Which way?", "chosen": [*inside, say()], "rejected": [*inside, say("Up.")]}
    assert turns(read(tmp_path, row).rows[0])[:2] == [SYSTEM, ("user", "Which way?")]
    with pytest.raises(DataError, match="Where to"):
        read(tmp_path, {**row, "prompt": "Where to?"})


@pytest.mark.parametrize("mapping", [{}, {"prompt": "instruction"}])
def test_pairs_with_instruction_and_input(mapping, tmp_path):
    row = {"instruction": "Which way?", "input": "The harbour lies behind us.", "chosen": "Left.", "rejected": "Up."}
    assert turns(read(tmp_path, row, map=mapping).rows[0])[0] == ("user", "Which way?\n\nThe harbour lies behind us.")


@pytest.mark.parametrize("past", [[["Who?", "Me."], ["Sure?", "Yes."]], [ask("Who?"), say("Me."), ask("Sure?"), say("Yes.")]])
@pytest.mark.parametrize("keys", [("instruction", "output"), ("prompt", "response"), ("prompt", "completion")])
def test_history_is_what_was_said_before(past, keys, tmp_path):
    row = {keys[0]: "Which way?", keys[1]: "Left.", "history": past, "system": SYSTEM[1]}
    said = turns(read(tmp_path, row).rows[0])
    assert said == [
        SYSTEM,
        *((("user", "assistant")[i % 2], t) for i, t in enumerate(["Who?", "Me.", "Sure?", "Yes.", "Which way?", "Left."])),
    ]


def test_what_speaks_and_has_no_place_is_said(tmp_path):
    found = read(tmp_path, {"messages": [ask(), say()], "context": "It is dark.", "source": "a book", "prompt": "Which way?"})
    assert found.rows[0].meta == {"context": "It is dark.", "source": "a book", "prompt": "Which way?"}
    assert [(line.fate, line.rule) for line in found.ledger] == [("mended", "to_meta:context")]


def test_two_system_prompts_are_a_fault(tmp_path):
    row = {"messages": [{"role": "system", "content": "Be brief."}, ask(), say()]}
    assert turns(read(tmp_path, {**row, "system": "Be brief."}).rows[0])[0] == ("system", "Be brief.")
    with pytest.raises(DataError, match="which holds"):
        read(tmp_path, {**row, "system": "Be long."})


@pytest.mark.parametrize("key", ["loss", "train", "trainable"])
@pytest.mark.parametrize("shape", ["chat", "sharegpt"])
def test_turns_that_are_marked_not_to_train_have_weight_0(key, shape, tmp_path):
    rows = {
        "chat": {"messages": [ask(), say("Up.", **{key: False}), ask("No."), say(**{key: True})]},
        "sharegpt": {
            "conversations": [
                {"from": "human", "value": "Which way?", key: False},
                {"from": "gpt", "value": "Up.", key: False},
                {"from": "human", "value": "No."},
                {"from": "gpt", "value": "Left.", key: 1},
            ]
        },
    }
    assert [turn.weight for turn in read(tmp_path, rows[shape]).rows[0].messages] == [None, 0, None, 1]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (say(los=False), "'loss'"),
        (say(loss="no"), "true or false"),
        (say(reasoning_content="It was dark."), "<think>"),
        (say(mood="calm"), r"ignore: \[mood\]"),
        (say(loss=False, weight=1), "which holds"),
        ({**ask(), "train": True}, "only an assistant"),
    ],
)
def test_a_key_of_a_turn_that_would_be_lost_is_a_fault(turn, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read(tmp_path, {"messages": [ask(), turn, say()]})


def test_keys_that_may_be_left_out(tmp_path):
    row = {"messages": [{**ask(), "id": "m1"}, say(mood="calm", timestamp=7, annotations=[])]}
    found = read(tmp_path, row, ignore=("mood",))
    assert turns(found.rows[0]) == [("user", "Which way?"), ("assistant", "Left.")]
    assert "message_key:mood" in next(iter(found.ledger)).rule


TOOL = {"name": "steer", "description": "Turn the wheel", "parameters": {"type": "object", "properties": {"to": {"type": "string"}}}}


@pytest.mark.parametrize("tools", [[TOOL], [{"type": "function", **TOOL}], json.dumps([TOOL]), [{"type": "function", "function": TOOL}]])
def test_tools_may_be_flat(tools, tmp_path):
    row = {"messages": [ask(), say()], "tools": tools}
    assert read(tmp_path, row).rows[0].tools == ({"type": "function", "function": TOOL},)


@pytest.mark.parametrize("tools", ["", " ", "[]", [], None])
def test_no_tools_are_none(tools, tmp_path):
    assert read(tmp_path, {"messages": [ask(), say()], "tools": tools}).rows[0].tools == ()


def test_thinking_before_a_call_stays(tmp_path):
    thought = "<think>\nThe rocks are right.\n</think>"
    call = json.dumps({"name": "steer", "arguments": {"to": "left"}})
    spoken = [("human", "Which way?"), ("function_call", f"{thought}\n\n{call}"), ("observation", "done"), ("gpt", "Left.")]
    row = read(tmp_path, {"conversations": [{"from": who, "value": value} for who, value in spoken], "tools": [TOOL]}).rows[0]
    assert row.messages[1].content == thought
    assert json.loads(row.messages[1].tool_calls[0].function.arguments) == {"to": "left"}


def test_numbers_are_texts_and_truth_values_are_not(tmp_path):
    found = read(tmp_path, {"prompt": "1+1?", "completion": 2}, {"prompt": 7, "completion": 2.5}, {"prompt": "Is it?", "completion": True})
    assert [turns(row)[1][1] for row in found.rows] == ["2", "2.5"]
    assert turns(found.rows[1])[0] == ("user", "7")
    assert "expected text, got True" in found.faults[0].message


def test_an_id_that_comes_twice_names_the_way_out(tmp_path):
    found = read(tmp_path, *({"id": "doc", "messages": [ask(f"{i}?"), say()]} for i in range(2)))
    assert (len(found.rows), found.invalid) == (1, 1)
    assert "unique_ids: false" in found.faults[0].message
    found = read(tmp_path, *({"id": "doc", "messages": [ask(f"{i}?"), say()]} for i in range(2)), unique_ids=False)
    assert len(found.rows) == 2


def test_labelled_rows_keep_their_kind(tmp_path):
    row = read(tmp_path, {"prompt": "Which way?", "completion": "Up.", "label": False, "system": SYSTEM[1]}).rows[0]
    assert isinstance(row, Labelled)
    assert not row.desirable


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("name", ["chat", "trl", "tunesmith"])
def test_calls_come_back_from_every_format_and_are_what_the_sdk_takes(content, name, tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "steer", "arguments": '{"to": "left"}'}}
    row = {
        "messages": [ask(), {"role": "assistant", "content": content, "tool_calls": [call]}],
        "tools": [{"type": "function", "function": TOOL}],
    }
    first = read(tmp_path, row).rows[0]
    assert isinstance(first, Example)
    fields = to_format(first, name)
    assert read(tmp_path, fields, name="again.jsonl").rows[0].id == first.id
    if name == "chat":
        assert fields["messages"][1]["tool_calls"] == [call]
