"""Over families of templates and shapes of conversations: only what the model must write is trained, the served prompt is the beginning of the
row, its last trained token ends an answer, and what was trained is read back as it was."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import pytest
from benchmarks.templates import CONVERSATIONS, TOOLS, checked, table

from template_families import FAMILIES, renderer
from tunesmith.core.chat import Renderer
from tunesmith.core.errors import DataError
from tunesmith.core.types import Example, Message, Prompt

# Why a template cannot have a conversation of that shape; every other is right.
_NO_THOUGHTS, _NO_CALLS = "leaves out the turn's thoughts", "shows no calls"
REFUSED = {
    "the prompt thinks": {"tools": _NO_CALLS, "tools, then words": _NO_CALLS},
    "takes thoughts out": {"tools": _NO_CALLS, "tools, then words": _NO_CALLS},
    "shuts thoughts": {
        "tools": _NO_CALLS, "tools, then words": _NO_CALLS,
        "thoughts": _NO_THOUGHTS, "thoughts in content": "not to think", "thoughts, two turns": _NO_THOUGHTS,
    },
    "writes None": {"tools": _NO_CALLS, "tools, then words": _NO_CALLS, "thoughts": _NO_THOUGHTS, "thoughts, two turns": _NO_THOUGHTS},
} | {
    name: {"thoughts": _NO_THOUGHTS, "thoughts, two turns": _NO_THOUGHTS}
    for name in ("open turns", "bare keys", "always asks", "late system", "text arguments", "Python calls")
}  # fmt: skip


@cache
def loaded(family: str) -> Renderer:
    return renderer(FAMILIES[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_the_model_must_write(family):
    became = {name: checked(loaded(family), conversation) for name, conversation in CONVERSATIONS.items()}
    assert {name: one.wrong for name, one in became.items() if one.wrong} == {}
    wanted = REFUSED.get(family, {})
    assert {name for name, one in became.items() if one.refused} == set(wanted), {name: one.refused for name, one in became.items()}
    for name, reason in wanted.items():
        assert reason in became[name].refused


def test_the_documentation_has_the_table_of_what_was_checked():
    became = {family: {name: checked(loaded(family), turns) for name, turns in CONVERSATIONS.items()} for family in FAMILIES}
    assert table(became) in (Path(__file__).parent.parent / "docs" / "training.md").read_text("utf-8")


def test_a_turn_that_stands_otherwise_in_history_becomes_a_row_of_its_own():
    """Its thoughts are dropped and its end is another once others follow: neither is what serving asks for."""
    thoughtful = CONVERSATIONS["thoughts, two turns"]
    for family in ("last thoughts", "channels"):
        made = loaded(family)
        rows, said = made.apart([Example(id="r", messages=thoughtful, origin="f:1")])
        assert [len(row.messages) for row in rows] == [2, 4]
        assert [[m.weight for m in row.messages if m.role == "assistant"] for row in rows] == [[None], [0, None]]
        assert "1 of 1 conversations became 2 rows" in said
        trained = [made.raw(row.ids[row.mask == 1].tolist()) for row in made.examples(rows)]
        assert "two and two" in trained[0]
        assert "two and two" not in trained[1]
        with pytest.raises(DataError, match=r"f:1: .*turn 2 stands otherwise"):
            made.example(Example(id="r", messages=thoughtful, origin="f:1"))
    plain = loaded("text arguments")
    assert plain.apart([Example(id="r", messages=CONVERSATIONS["system, two turns"])]) == (
        [Example(id="r", messages=CONVERSATIONS["system, two turns"])],
        "",
    )


def test_the_end_of_an_answer_is_what_the_generation_config_knows():
    made = loaded("open turns")
    row = made.example(Example(id="r", messages=CONVERSATIONS["one turn"]))
    assert made.pieces(row.ids[row.mask == 1].tolist())[-1] == "<|usr|>", "the next turn's mark ends this one"
    unknown = FAMILIES["open turns"]._replace(ends=())
    with pytest.raises(DataError, match="never stop"):
        renderer(unknown)


def test_one_refusal_names_every_row():
    rows = [Example(id=f"r{i}", messages=CONVERSATIONS["tools"][:2], origin=f"f:{i}") for i in range(3)]
    with pytest.raises(DataError, match=r"3 of 3 rows cannot be rendered: the chat template shows no calls(.*\n)*  f:2"):
        loaded("writes None").examples(rows)


def test_a_stop_inside_a_turn_is_refused():
    calls = CONVERSATIONS["tools"][1].tool_calls + CONVERSATIONS["tools"][3].tool_calls
    both = Message(role="assistant", tool_calls=calls)
    with pytest.raises(DataError, match="leaves out the call of 'measure'"):
        loaded("channels").example(Example(id="r", messages=(CONVERSATIONS["one turn"][0], both)))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED or "tools" not in REFUSED[name]])
def test_several_calls_and_hard_arguments_are_read_back(family):
    """Texts with quotes, new lines and braces, numbers, lists and truths; after words; two calls at once where the template has them."""
    made, hard = loaded(family), {"place": 'a "b"\n{c}, d', "hours": -3}
    row = CONVERSATIONS["tools"][1]
    first = msgspec.structs.replace(
        row.tool_calls[0], function=msgspec.structs.replace(row.tool_calls[0].function, arguments=msgspec.json.encode(hard).decode())
    )
    second = CONVERSATIONS["tools"][3].tool_calls[0]
    for calls in ((first,), (first, second)):
        messages = (CONVERSATIONS["one turn"][0], Message(role="assistant", tool_calls=calls))
        try:
            rendered = made.example(Example(id="r", messages=messages, tools=TOOLS))
        except DataError:
            assert family == "channels"
            continue
        said = made.answered(made.raw(rendered.ids[rendered.mask == 1].tolist()[:-1]), Prompt(messages=messages[:1], tools=TOOLS))
        assert [msgspec.json.decode(c.function.arguments) for c in said.tool_calls] == [
            msgspec.json.decode(c.function.arguments) for c in calls
        ]
        assert said.content is None


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_certain_while_an_answer_is_written_never_changes(family):
    """Thoughts and words grow, mark by mark and letter by letter, to what the whole answer is; no mark and no part of a call is ever shown."""
    made = loaded(family)
    for conversation in ("tools", "thoughts", "thoughts in content"):
        messages, tools = CONVERSATIONS[conversation][:2], TOOLS if conversation == "tools" else ()
        try:
            row = made.example(Example(id="r", messages=messages, tools=tools))
        except DataError:
            continue
        ids = row.ids[row.mask == 1].tolist()[:-1]
        whole, shown = made.answered(made.raw(ids), Prompt(messages=messages[:1], tools=tools)), ("", "")
        for end in range(len(ids)):
            part = made.reader.partial(made.raw(ids[:end]), tools, inside=made.reader.begins_inside)
            assert part.words.startswith(shown[0]), f"{shown} became {part}"
            assert part.reasoning.startswith(shown[1]), f"{shown} became {part}"
            shown = part.words, part.reasoning
        assert whole.text.startswith(shown[0])
        assert (whole.reasoning_content or "").startswith(shown[1])
