"""OpenAI's graders: what they give, what they refuse, and the two endpoints that run them."""

from __future__ import annotations

import math

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_spec import assert_valid, require_spec
from tunesmith.core.errors import UsageError
from tunesmith.core.types import Answer, Prompt, Sampling
from tunesmith.evaluate import graders
from tunesmith.evaluate.formula import Formula, FormulaError
from tunesmith.models.echo import EchoModel

ITEM = {"answer": "Paris", "deep": {"list": [1, {"x y": "z"}]}}


def check(**more):
    return {
        "type": "string_check",
        "name": "c",
        "input": "{{ sample.output_text }}",
        "reference": "{{item.answer}}",
        "operation": "eq",
    } | more


def similar(metric, **more):
    return {
        "type": "text_similarity",
        "name": "s",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
        "evaluation_metric": metric,
    } | more


def python(source, **more):
    return {"type": "python", "name": "p", "source": source} | more


def grade(tree, text, item=ITEM, ask=None):
    return graders.run(graders.parse(tree, python=True), text, item, ask)


@pytest.mark.parametrize(
    ("operation", "text", "reward"),
    [("eq", "Paris", 1), ("eq", "paris", 0), ("ne", "Rome", 1), ("ne", "Paris", 0), ("like", "in Paris!", 1), ("like", "in paris", 0), ("ilike", "in paris", 1)],
)  # fmt: skip
def test_string_checks(operation, text, reward):
    assert grade(check(operation=operation), text).reward == reward


def test_templates_reach_into_items_and_json_samples():
    assert grade(check(reference="{{ item.deep.list[1]['x y'] }}"), "z").reward == 1
    assert grade(check(input="{{ sample.output_json.a[0] }}", reference="1"), '{"a": [1]}').reward == 1
    assert grade(check(input="<{{ sample.output_json }}>", reference='<{"a": 1}>'), '{"a":1}').reward == 1
    assert grade(check(input="{{ sample.output_json.a }}"), "no json").errors == {"sample_parse_error": True}
    assert grade(check(reference="{{ item.nothing }}"), "x").errors == {"invalid_variable_error": True}


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"])
def test_similarity_is_one_for_the_same_and_zero_for_nothing_shared(metric):
    text = "the quick brown fox jumps over"
    assert grade(similar(metric), text, {"answer": text}).reward == pytest.approx(1)
    assert grade(similar(metric), "zzzz", {"answer": text}).reward == 0
    assert 0 < grade(similar(metric), "well the quick brown fox jumps far", {"answer": text}).reward < 1


def test_gleu_is_the_smaller_of_precision_and_recall():
    # said "a b", wanted "a b c": shared 2 + 1 n-grams; wanted has 3 + 2 + 1, said 2 + 1
    assert graders.similarity("a b", "a b c", "gleu") == pytest.approx(3 / 6)


@pytest.mark.slow
def test_python_graders_run_in_the_sandbox():
    assert grade(python("def grade(sample, item): return 0.5 if item['answer'] in sample['output_text'] else -1"), "Paris").reward == 0.5
    for source in ("def grade(s, i): return 'x'", "def grade(s, i): return float('nan')", "def grade(s, i): raise ValueError(3)", "x = 1",
                   "import socket\ndef grade(s, i): socket.socket().connect(('127.0.0.1', 9)); return 1", "import sys\nsys.exit(0)"):  # fmt: skip
        failed = grade(python(source), "x")
        assert (failed.reward, failed.errors["python_grader_runtime_error"]) == (0, True)
        assert failed.errors["python_grader_runtime_error_details"] or "exit" in source
    with pytest.raises(graders.GradeError, match="time"):
        graders.python_grade("def grade(s, i):\n  while True: pass", {}, {}, timeout_s=0.5)


def test_models_score_and_label():
    def ask(name: str, prompt: Prompt, sampling: Sampling) -> Answer:
        return EchoModel().answer([prompt], sampling)[0]

    def score(content, **more):
        return {"type": "score_model", "name": "m", "model": "judge", "input": [{"role": "user", "content": content}]} | more

    assert grade(score("I say {{ sample.output_text }}"), "0.75", ask=ask).reward == 0.75
    assert grade(score('{"result": 7}', range=[0, 10]), "x", ask=ask).reward == 7
    assert grade(score("I say 7"), "x", ask=ask).errors == {"model_grader_parse_error": True}
    assert grade(score("nothing"), "x", ask=ask).errors == {"model_grader_parse_error": True}
    assert grade(score("1"), "x", ask=ask).tokens == {"judge": 2}
    assert "model_grader_server_error" in grade(score("1"), "x").errors
    label = {"type": "label_model", "name": "l", "model": "judge", "labels": ["good", "bad"], "passing_labels": ["good"]}
    label["input"] = [{"role": "user", "content": {"type": "input_text", "text": "it is {{ sample.output_text }}"}}]
    multi = {"type": "multi", "name": "all", "graders": {"l": label, "c": check()}, "calculate_output": "0.25 * l + c"}
    assert grade(multi, "good", ask=ask).reward == 0.25
    assert grade(multi, "bad", ask=ask).sub_rewards == {"l": 0, "c": 0}


@pytest.mark.parametrize("parts", [check(), [check()], {"c": check(name="other")}])
def test_multi_graders_come_as_one_an_array_and_a_map(parts):
    tree = {"type": "multi", "name": "m", "graders": parts, "calculate_output": "2 * c + 1"}
    assert grade(tree, "Paris").reward == 3


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "type"),
        ({"type": "string_check"}, "missing required"),
        (check(operation="is"), "is"),
        (check(extra=1), "extra"),
        (check(input="{{ os.environ }}"), "os.environ"),
        (check(input="{{ item.__class__() }}"), "names nothing"),
        (similar("meteor"), "meteor"),
        (python("def grade(:"), "compile"),
        (python("x" * 300_000), "300000"),
        ({"type": "label_model", "name": "l", "model": "m", "input": [], "labels": [], "passing_labels": []}, "label_model"),
        ({"type": "multi", "name": "m", "graders": {}, "calculate_output": "1"}, "0 graders"),
        ({"type": "multi", "name": "m", "graders": {"a": check()}, "calculate_output": "b"}, "b"),
        ({"type": "multi", "name": "m", "graders": {"a": check()}, "calculate_output": "__import__('os')"}, "cannot stand"),
    ],
)
def test_what_is_no_grader_is_refused(tree, said):
    with pytest.raises(UsageError, match=said):
        graders.parse(tree, python=True)


def test_python_is_off_unless_allowed():
    with pytest.raises(UsageError, match="off"):
        graders.parse(python("def grade(sample, item): return 1"))


@pytest.mark.slow
@given(a=st.floats(-100, 100), b=st.floats(0.1, 100), n=st.integers(0, 3))
def test_formulas_are_arithmetic(a, b, n):
    formula = Formula(f"min(a, b) + -a * 2 / b - max(a, 3) ^ {n} + sqrt(b) % 2", {"a", "b"})
    assert formula({"a": a, "b": b}) == pytest.approx(min(a, b) + -a * 2 / b - max(a, 3) ** n + math.fmod(math.sqrt(b), 2))


@pytest.mark.parametrize(
    "text",
    [
        "a.b",
        "a if a else 1",
        "[1]",
        "lambda: 1",
        "'x'",
        "a < 1",
        "True",
        "f(a)",
        "min(a, key=a)",
        "",
        "a b",
        "(" * 300,
        "a" * 3000,
        "min()",
    ],
)
def test_formulas_are_nothing_else(text):
    with pytest.raises(FormulaError):
        Formula(text, {"a"})


@pytest.mark.parametrize("text", ["1 / a", "log(a)", "9 ^ 9 ^ 9 ^ 9", "exp(9999)", "1e308 * 10"])
def test_a_formula_without_a_value_says_so(text):
    with pytest.raises(FormulaError):
        Formula(text, {"a"})({"a": 0.0})


@pytest.mark.slow
def test_the_endpoints():
    from tunesmith.api.app import create_app, running

    require_spec()
    score = {"type": "score_model", "name": "m", "model": "judge", "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}
    with running(create_app({"judge": EchoModel()})) as url:

        def post(path, body):
            return httpx.post(f"{url}/fine_tuning/alpha/graders/{path}", json=body)

        for tree, reward in (
            (check(), 0),
            (score, 0.5),
            ({"type": "multi", "name": "x", "graders": {"m": score}, "calculate_output": "m * 4"}, 2),
        ):
            ran = post("run", {"grader": tree, "model_sample": "0.5", "item": ITEM})
            assert ran.status_code == 200, ran.text
            assert_valid("RunGraderRequest", {"grader": tree, "model_sample": "0.5"})
            assert_valid("RunGraderResponse", ran.json())
            assert ran.json()["reward"] == reward
            valid = post("validate", {"grader": tree}).json()
            assert_valid("ValidateGraderResponse", valid)
            assert valid == {"grader": tree}
        broken = post("run", {"grader": check(reference="{{ item.nope }}"), "model_sample": "x"}).json()
        assert (broken["reward"], broken["metadata"]["errors"]["invalid_variable_error"]) == (0, True)
        assert_valid("RunGraderResponse", broken)
        for body in ({"grader": python("def grade(s, i): return 1")}, {"grader": {}}, {"grader": check(), "x": 1}, {}):
            refused = post("validate", body)
            assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error"), refused.text
        assert post("run", {"grader": score | {"model": "nobody"}, "model_sample": "x"}).status_code == 404
