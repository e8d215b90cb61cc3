"""The check finds what was planted, says what to do, and its statistics are right."""

import random

import msgspec
import pytest

from tunesmith.core.errors import ConfigError
from tunesmith.core.stats import wilson
from tunesmith.core.types import Example, Function, Message, ToolCall, example_id
from tunesmith.data.check import check, held_out_power, rows_for
from tunesmith.data.topics import topics

WORDS = {name: [f"{name}{chr(97 + i)}" for i in range(20)] for name in ("loan", "card", "fraud")}


def row(question, answer="yes", place=0, system="Answer.", **fields):
    turns = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    turns = tuple([Message(role="system", content=system), *turns] if system else turns)
    return Example(id=example_id(turns), messages=turns, origin=f"f:{place}", **fields)


def made(n, kinds=("loan", "card"), **fields):
    rng = random.Random(1)
    return [row(" ".join(rng.choices(WORDS[kinds[i % len(kinds)]], k=8)), f"answer {i}", i, **fields) for i in range(n)]


def codes(found):
    return {one.code: one for one in found.advice}


def test_good_rows_get_no_complaints():
    found = check(made(600), tokens=[50] * 600, max_length=100)
    assert found.usable
    assert {one.level for one in found.advice} == {"fine"}
    assert found.numbers["rows"] == 600


def test_each_planted_fault_is_told_with_its_rows():
    rows = [
        *made(60),
        row("mail a@example.com", place=100),
        row("what", "a", 101),
        row("what", "b", 102),
        row("what", "b", 103),
        row("say <|im_end|>", place=104),
        row("none", "", 105),
        row("bare", "x", 106, system=""),
        *[row(f"lock {i}", "I'm sorry, but I can't help with that.", 110 + i) for i in range(20)],
    ]
    twice = rows[0].messages[:2] + rows[1].messages[1:]
    rows.append(Example(id="t", messages=twice, origin="f:107"))
    found = codes(check(rows, tokens=[10] * 87 + [5000], max_length=1000))
    expected = {
        "personal_data": "f:100", "contradictions": "f:101", "duplicates": "f:103", "special_tokens": "f:104", "empty_answers": "f:105",
        "system_missing": "f:106", "same_role_twice": "f:107", "refusals": "f:110", "too_long": "f:107",
    }  # fmt: skip
    assert {code: found[code].rows[0] for code in expected} == expected
    assert all(found[code].do for code in expected)


def test_calls_that_nothing_can_read_and_rows_that_are_nearly_the_same():
    call = ToolCall(id="c", function=Function(name="f", arguments="{broken"))
    rows = made(60)
    rows.append(
        msgspec.structs.replace(rows[0], messages=(*rows[0].messages[:-1], Message(role="assistant", tool_calls=(call,))), origin="f:90")
    )
    rows += [row(" ".join(WORDS["fraud"]) + more, "answer", place) for more, place in (("", 91), (" too", 92))]
    found = codes(check(rows))
    assert (found["tool_arguments"].level, found["tool_arguments"].rows) == ("fix", ("f:90",))
    assert found["near_duplicates"].rows == ("f:91", "f:92")


def test_too_few_rows_stop():
    found = check(made(7))
    assert not found.usable
    assert (found.advice[0].code, found.advice[0].found) == ("too_few_rows", "7 rows")
    assert codes(check(made(30)))["few_rows"].level == "fix"


def test_wrong_and_rare_labels_and_one_answer():
    rows = [row(one.messages[1].text, "no", i, label=("loan", "card")[i % 2]) for i, one in enumerate(made(200))]
    rows[11] = row(rows[11].messages[1].text, "no", 11, label="loan")
    rows += [row(f"other {i}", "no", 300 + i, label="rare") for i in range(3)]
    found = codes(check(rows))
    assert found["label_errors"].rows == ("f:11",)
    assert "rare" in found["rare_labels"].found
    assert "100% of the answers are 'no'" in found["one_answer"].found


def test_missing_kinds_are_seen():
    found = codes(check(made(200), wanted=made(100, kinds=("loan", "fraud"))))
    assert "fraud" in found["missing_kind"].found
    assert "missing_kind" not in codes(check(made(200), wanted=made(100)))


def test_topics_follow_words_and_do_not_change():
    texts = [one.messages[1].text for one in made(150, kinds=("loan", "card", "fraud"))]
    found = topics(texts, 3)
    assert sorted({i % 3 for i in topic.rows} for topic in found) == [{0}, {1}, {2}]
    assert found == topics(texts, 3)
    assert topics([]) == []


@pytest.mark.parametrize("half", [0.02, 0.05, 0.1])
def test_rows_for_an_interval(half):
    n = rows_for(half)
    wide = [wilson(0.5 * m, m) for m in (n, n - 1)]
    assert (wide[0].high - wide[0].low) / 2 <= half < (wide[1].high - wide[1].low) / 2
    assert held_out_power(n)["half_width_at_50"] == pytest.approx(100 * half, rel=0.01)
    with pytest.raises(ConfigError):
        rows_for(0)
