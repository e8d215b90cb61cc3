"""What other tools wrote, read into rows, checks and results; and the regression suite from a package."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from test_eval_run import Ruled
from tunesmith.core.errors import ConfigError, DataError, NotFound, StoreError
from tunesmith.core.types import Answer
from tunesmith.evaluate.importers import inspect_log, lm_eval_log, openai_eval, openai_rows, promptfoo
from tunesmith.evaluate.regression import Ability, Suite, forgetting, run_suite, suite_rows


def test_openai_samples() -> None:
    lines = [
        {"input": [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}], "ideal": ["a", "b"]},
        {"input": "q2", "ideal": "c"},
    ]
    first, second = openai_rows("\n".join(map(json.dumps, lines)).encode(), "file")
    assert [m.role for m in first.prompt] == ["system", "user"]
    assert (first.answer, first.meta) == ("a", {"references": ["a", "b"]})
    assert (second.prompt[0].text, second.answer, second.origin) == ("q2", "c", "file:2")


def test_openai_samples_name_every_fault() -> None:
    with pytest.raises(DataError, match=r"file:1(.|\n)*file:3") as caught:
        openai_rows(b'{"input": 3, "ideal": "a"}\n{"input": "q", "ideal": "a"}\n{"input": "q"}', "file")
    assert len(caught.value.faults) == 2
    with pytest.raises(DataError, match="line 2 is no JSON"):
        openai_rows(b"{}\n{", "file")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_line_feeds_end_lines(mark: str) -> None:
    lines = [{"input": f"one{mark}two", "ideal": f"a{mark}b"}, {"input": "q2", "ideal": "c"}]
    data = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    first, second = openai_rows(data.encode(), "file")
    assert (first.prompt[0].text, first.answer, second.origin) == (f"one{mark}two", f"a{mark}b", "file:2")


def test_promptfoo_lists_and_transforms(tmp_path: Path) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text("""
prompts: ["Say {{what}} {{how}}"]
defaultTest: {options: {transform: output.trim()}}
tests:
  - vars: {what: [left, right], how: [softly, loudly, twice], who: me}
    assert: [{type: equals, value: "{{what}}"}, {type: contains-any, value: ["{{how}}", LEFT], transform: output.toUpperCase()}]
  - vars: {what: [left, right], how: x}
    options: {disableVarExpansion: true, transform: "output.toLowerCase().trim();"}
    assert: [{type: equals, value: left}]
""")
    found = promptfoo(path)
    asked = [row.prompt[0].text for row in found.examples]
    assert asked[:6] == [f"Say {what} {how}" for what in ("left", "right") for how in ("softly", "loudly", "twice")]
    assert asked[6:] == ["Say ['left', 'right'] x"]
    rate = found.metrics[0].rate
    assert rate(found.examples[0], Answer(text=" left\n")).value == 1
    assert rate(found.examples[3], Answer(text=" left\n")).value == 0.5
    assert rate(found.examples[6], Answer(text=" LEFT ")).value == 1
    path.write_text(path.read_text().replace("output.trim()", "JSON.parse(output).x"))
    with pytest.raises(DataError, match=r"JSON\.parse"):
        promptfoo(path)
    path.write_text(path.read_text().replace("JSON.parse(output).x", "output.trim(), prefix: Hm"))
    with pytest.raises(DataError, match="prefix"):
        promptfoo(path)


def test_openai_eval_object(tmp_path: Path) -> None:
    grader = {"type": "string_check", "name": "s", "operation": "eq", "input": "{{sample.output_text}}", "reference": "{{item.ideal}}"}
    body = {
        "name": "e",
        "testing_criteria": [grader],
        "data_source": {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"question": "q", "ideal": "a"}}]}},
    }
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(body))
    found = openai_eval(path)
    assert found.graders == [grader]
    assert (found.examples[0].prompt[0].text, found.examples[0].answer) == ("q", "a")
    assert found.examples[0].meta["item"] == {"question": "q", "ideal": "a"}
    with pytest.raises(NotFound):
        openai_eval(tmp_path / "none.json")


PROMPTFOO = """
description: greetings
prompts:
  - "Greet {{name}} in {{language}}"
  - '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Greet {{name}}"}]'
providers: [openai:gpt-4o]
defaultTest:
  vars: {language: English}
  assert:
    - {type: icontains, value: "{{name}}"}
tests:
  - vars: {name: Ann}
    assert:
      - {type: not-contains, value: Bob}
      - {type: regex, value: '^H\\w+', weight: 2}
  - vars: {name: Bob, language: French}
    assert:
      - {type: contains-any, value: [Salut, Bonjour]}
"""


def test_promptfoo(tmp_path: Path) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text(PROMPTFOO)
    found = promptfoo(path)
    assert [e.prompt[-1].text for e in found.examples] == ["Greet Ann in English", "Greet Bob in French", "Greet Ann", "Greet Bob"]
    assert found.examples[2].prompt[0].role == "system"
    check = found.metrics[0]
    assert check(found.examples[0], Answer(text="Hello ann")).value == 1
    assert check(found.examples[0], Answer(text="Oh Ann and Bob")).value == 0.25
    assert check(found.examples[1], Answer(text="Bonjour Bob")).value == 1
    assert check(found.examples[1], Answer(text="Hello Bob")).value == 0.5


def test_promptfoo_tests_that_ask_the_same_and_check_something_else_are_two_rows(tmp_path: Path) -> None:
    path = tmp_path / "promptfooconfig.yaml"
    path.write_text("prompts: ['{{q}}']\ntests:\n" + "".join(
        f"  - {{vars: {{q: left}}, assert: [{{type: contains, value: {value}}}]}}\n" for value in ("left", "right")))  # fmt: skip
    assert len({row.id for row in promptfoo(path).examples}) == 2


def test_promptfoo_names_what_it_cannot_run(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "prompts: [a]\ntests:\n  - assert: [{type: javascript, value: output.length}]\n  - assert: [{type: llm-rubric, value: nice}]\n"
    )
    with pytest.raises(DataError, match=r"javascript(.|\n)*llm-rubric"):
        promptfoo(path)


def test_lm_eval_samples(tmp_path: Path) -> None:
    generated = {
        "doc_id": 0,
        "doc": {"question": "2+2"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": '[{"role": "user", "content": "2+2?"}]', "arg_1": {"until": []}}},
        "resps": [["It is 4"]],
        "filtered_resps": ["4"],
        "metrics": ["exact_match"],
        "doc_hash": "x",
        "exact_match": 1.0,
    }
    other = {**generated, "filter": "strict", "exact_match": 0.0}
    path = tmp_path / "samples_gsm8k.jsonl"
    path.write_text("\n".join(json.dumps({**one, "filter": name}) for one, name in ((generated, "flexible"), (other, "strict"))))
    result = lm_eval_log(path, model="m")
    assert result.evaluation.values == {"exact_match": 1.0}
    assert (result.examples[0].prompt[0].text, result.examples[0].answer) == ("2+2?", "4")
    assert result.evaluation.rows[0].answer.text == "It is 4"
    assert lm_eval_log(path, model="m", filter_name="strict").evaluation.values == {"exact_match": 0.0}
    choice = {
        **generated,
        "arguments": [["Q", " a"], ["Q", " b"]],
        "resps": [[[-3.5, False]], [["-1.2", "True"]]],
        "target": 1,
        "acc": 1,
        "metrics": ["acc"],
    }
    path.write_text(json.dumps(choice))
    assert lm_eval_log(path, model="m").evaluation.rows[0].answer.text == "1"


def inspect_sample(number: int, epoch: int, mark: object, **more: object) -> dict[str, object]:
    return {
        "id": number,
        "epoch": epoch,
        "input": [{"role": "user", "content": f"q{number}"}],
        "target": ["A", "B"],
        "output": {"choices": [{"message": {"role": "assistant", "content": [{"type": "text", "text": "A!"}]}}], "time": 0.5},
        "model_usage": {"m": {"input_tokens": 5, "output_tokens": 2}},
        "scores": {"match": {"value": mark}},
        **more,
    }


def test_inspect_logs(tmp_path: Path) -> None:
    samples = [
        inspect_sample(1, 1, "C"),
        inspect_sample(1, 2, "I"),
        inspect_sample(2, 1, "P"),
        inspect_sample(3, 1, "X", error={"message": "boom"}),
    ]
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"eval": {"model": "m/1"}, "samples": samples}))
    packed = tmp_path / "log.eval"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("header.json", json.dumps({"eval": {"model": "m/1"}}))
        for s in samples:
            archive.writestr(f"samples/{s['id']}_epoch_{s['epoch']}.json", json.dumps(s))
    for one in (inspect_log(path), inspect_log(packed)):
        assert one.evaluation.model == "m/1"
        assert one.evaluation.values == {"match": 0.5}
        assert (one.evaluation.missing, one.evaluation.failed) == ({"match": 1}, 1)
        assert (one.evaluation.prompt_tokens, one.evaluation.seconds) == (20, 2.0)
        assert [e.group for e in one.examples] == ["1", "1", "2", "3"]
        assert len({e.id for e in one.examples}) == 4
        assert one.evaluation.rows[0].answer.text == "A!"


def suite(tmp_path: Path) -> tuple[Suite, Path]:
    sums = "\n".join(json.dumps({"input": f"{i}+1", "ideal": str(i + 1)}) for i in range(50)).encode()
    colours = "\n".join(json.dumps({"input": f"colour {i}", "ideal": "red"}) for i in range(30)).encode()
    wheel = tmp_path / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pack/registry/data/sums.jsonl", sums)
        archive.writestr("pack/registry/data/colours.jsonl", colours)
    abilities = tuple(
        Ability(name=name, member=f"{name}.jsonl", sha256=hashlib.sha256(data).hexdigest(), metric="exact_match", rows=40)
        for name, data in (("sums", sums), ("colours", colours))
    )
    return Suite(name="s", package="pack", version="1.0", sha256="", abilities=abilities), wheel


def solve(text: str) -> str:
    return str(int(text.split("+")[0]) + 1) if "+" in text else "red"


def test_forgetting_is_found_and_only_where_it_is(tmp_path: Path) -> None:
    made, wheel = suite(tmp_path)
    rows = suite_rows(made, wheel)
    assert {name: len(some) for name, some in rows.items()} == {"sums": 40, "colours": 30}
    told: list[tuple[int, int]] = []
    before = run_suite(Ruled(lambda t: Answer(text=solve(t))), made, rows, tmp_path / "before", lambda *at: told.append(at))
    assert told[-1] == (70, 70)
    tuned = Ruled(lambda t: Answer(text="0" if "+" in t and int(t.split("+")[0]) % 2 else solve(t)), digest="tuned")
    after = run_suite(tuned, made, rows, tmp_path / "after")
    worst, same = forgetting(before, after)
    assert (worst.ability, worst.lost, worst.before) == ("sums", True, 1.0)
    assert worst.difference.high < 0
    assert (same.ability, same.lost, same.after) == ("colours", False, 1.0)
    with pytest.raises(ConfigError, match="other rows or metrics"):
        forgetting(before, {**after, "colours": after["sums"]})


def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    made, wheel = suite(tmp_path)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pack/registry/data/sums.jsonl", b"{}")
    with pytest.raises(StoreError, match="expected"):
        suite_rows(made, wheel)


def test_lm_eval_chats_of_an_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "samples_x.jsonl"
    chat = json.dumps([{"role": "user", "content": "q", "type": "text"}])
    line = {
        "doc_id": 0,
        "doc": {},
        "target": "a",
        "arguments": {"gen_args_0": {"arg_0": [chat], "arg_1": {}}},
        "resps": [["a"]],
        "metrics": ["exact_match"],
        "exact_match": 1.0,
    }
    path.write_text(json.dumps(line))
    found = lm_eval_log(path, model="m")
    assert [(m.role, m.text) for m in found.examples[0].prompt] == [("user", "q")]
    assert found.evaluation.values == {"exact_match": 1.0}
