"""The text, entity and JSON metrics, and what every metric promises."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError, NotFound, TunesmithError
from tunesmith.core.types import Answer, Example, Message, Score, example_id
from tunesmith.evaluate.metrics import Measured, metric, names
from tunesmith.evaluate.metrics.entities import entities


def row(reference: str, question: str = "q", **known: object) -> Example:
    messages = (Message(role="user", content=question), Message(role="assistant", content=reference))
    return Example(id=example_id(messages), messages=messages, **known)


def rate(name: str, reference: str, said: str, **options: object) -> Score:
    return metric(name, **options)(row(reference), Answer(text=said))


def test_exact_and_normalized() -> None:
    assert rate("exact_match", "Paris", " Paris\n").value == 1
    assert rate("exact_match", "Paris", "paris").value == 0
    assert rate("normalized_match", "The  Café!", "café").value == 1
    assert rate("normalized_match", "Москва.", "москва").value == 1
    assert rate("normalized_match", "then", "n").value == 0


def test_several_references() -> None:
    either = row("x", meta={"references": ["colour", "color"]})
    assert metric("exact_match")(either, Answer(text="color")).value == 1
    assert metric("exact_match")(either, Answer(text="x")).value == 0


def test_includes_regex_length_json() -> None:
    assert rate("includes", "Bank", "the Bank said").value == 1
    assert rate("includes", "bank", "the Bank said").value == 0
    assert rate("includes", "bank", "the Bank said", ignore_case=True).value == 1
    assert rate("starts_with", "Yes", " Yes, it is").value == 1
    assert rate("starts_with", "Yes", "Oh Yes").value == 0
    assert rate("fuzzy_match", "The Bank", "a bank of England").value == 1
    assert rate("fuzzy_match", "bank", "").value == 0
    assert rate("regex", "x", "order 4711.", pattern=r"\d{4}").value == 1
    assert rate("regex", r"^\d+$", "12a").value == 0
    assert rate("regex", "(", "12").value is None
    assert rate("regex", "x", "ab", pattern="a", full=True).value == 0
    assert rate("length", "x", "one two  three").value == 3
    assert rate("length", "x", "один", unit="characters").value == 4
    assert rate("json_valid", "x", '{"a": [1, null]}').value == 1
    assert rate("json_valid", "x", '{"a": NaN}').value == 0
    assert rate("json_valid", "x", "```json\n{}\n```").value == 0
    assert rate("json_valid", "x", "```json\n{}\n```", fence=True).value == 1


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("[Bank - ORGANIZATION, Borrower - PERSON]", [("Bank", "ORGANIZATION"), ("Borrower", "PERSON")]),
        ("First [Bank - PERSON]. Then, final answer: [Bank - ORGANIZATION]", [("Bank", "ORGANIZATION")]),
        ("I thought of [Bank - PERSON], but: No entities found.", []),
        ("No entities found? There are: [Bank - organization].", [("Bank", "ORGANIZATION")]),
        ("[ACME [US] Corp - ORGANIZATION, Ann [Lee] - PERSON]", [("ACME [US] Corp", "ORGANIZATION"), ("Ann [Lee]", "PERSON")]),
        ("seen in [1] and [2]: [Bank [of Ohio - ORGANIZATION]", [("of Ohio", "ORGANIZATION")]),
        ("[Lenovo - AsiaInfo Technologies - ORGANIZATION]", [("Lenovo - AsiaInfo Technologies", "ORGANIZATION")]),
        ("[Akamai , Inc . - ORGANIZATION]", [("Akamai , Inc .", "ORGANIZATION")]),
        ("[Bank - ORGANIZATION], see note [1].", [("Bank", "ORGANIZATION")]),
        ("[\nBank - ORGANIZATION,\n'Borrower' - PERSON\n]", [("Bank", "ORGANIZATION"), ("Borrower", "PERSON")]),
        ("[]", []),
        ("no named entities were found", []),
        ("I cannot tell.", None),
        ("", None),
    ],
)
def test_entities_reads_the_final_answer(said: str, found: list[tuple[str, str]] | None) -> None:
    got = entities(said)
    assert (None if got is None else sorted(got.elements())) == (None if found is None else sorted(found))


def test_entities_of_a_cut_list_are_the_whole_pairs() -> None:
    assert sorted(entities("[A - PERSON, B - LOCA", cut=True) or ()) == [("A", "PERSON")]
    assert sorted(entities("[A - PERSON, B - LOCATION", cut=False) or ()) == [("A", "PERSON"), ("B", "LOCATION")]


def test_entity_f1_counts_and_pools() -> None:
    f1 = metric("entity_f1")
    pairs = [
        ("[A - PERSON, A - PERSON, B - LOCATION]", "[A - PERSON, B - PERSON]"),
        ("No entities found", "No entities found"),
        ("No entities found", "[C - PERSON]"),
        ("[D - PERSON]", "hm"),
    ]
    scores = [f1(row(reference), Answer(text=said)) for reference, said in pairs]
    assert [s.counts for s in scores] == [(1, 1, 2), (0, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert [s.value for s in scores] == [0.4, 1.0, 0.0, 0.0]
    assert f1.value(scores) == pytest.approx(2 * 1 / (2 * 1 + 2 + 3))
    assert f1.value(scores[1:2]) == 1.0


def _clear(name: str) -> bool:
    """A name that can be told from what stands around it: "A - B, C" is two readings at once."""
    return bool(name) and not (" - " in f" {name} " and "," in name) and name.strip("-,") == name


NAMES = st.text(alphabet="AbcÄж -,.&", min_size=1, max_size=12).map(lambda s: " ".join(s.split())).filter(_clear)


@pytest.mark.slow
@given(st.lists(st.tuples(NAMES, st.sampled_from(["PERSON", "LOCATION"])), max_size=6), st.text(alphabet="abc .\n", max_size=20))
def test_entities_reads_back_what_was_written(pairs: list[tuple[str, str]], thought: str) -> None:
    listed = "[" + ", ".join(f"{name} - {kind}" for name, kind in pairs) + "]"
    found = entities(f"{thought}[X - PERSON] {listed}")
    assert found is not None
    assert sorted(found.elements()) == sorted(pairs)


@given(st.text(max_size=300))
def test_every_plain_metric_bears_any_answer(said: str) -> None:
    example = row("[Bank - ORGANIZATION]")
    for name in ("exact_match", "normalized_match", "includes", "entity_f1", "json_valid", "length"):
        m = metric(name)
        score = m(example, Answer(text=said))
        assert score.value is not None
        assert m.low <= score.value <= m.high


def test_pool_is_additive_over_any_weights() -> None:
    f1 = metric("entity_f1")
    scores = [f1(row(r), Answer(text=s)) for r, s in [("[A - X]", "[A - X]"), ("[A - X]", "[B - X]"), ("[A - X, B - Y]", "[B - Y]")]]
    pool = f1.pool(scores)
    weights = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    again = [f1.value([s for s, w in zip(scores, line, strict=True) for _ in range(int(w))]) for line in weights]
    assert pool.value(weights @ pool.rows) == pytest.approx(again)


def test_a_missing_value_is_left_out_of_the_mean_and_is_never_nan() -> None:
    m = metric("exact_match")
    scores = [m(row("a"), Answer(text="a")), m(row("a"), Answer(text="", finish_reason="error")), m(row("a"), Answer(text="b"))]
    assert [s.value for s in scores] == [1.0, None, 0.0]
    assert m.value(scores) == 0.5
    assert m.value(scores[1:2]) is None


def test_unknown_names_and_options_say_what_is_near() -> None:
    with pytest.raises(NotFound, match="did you mean 'exact_match'"):
        metric("exact_mach")
    with pytest.raises(ConfigError, match="'patern' is no option"):
        metric("regex", patern="x")
    with pytest.raises(ConfigError, match="does not compile"):
        metric("regex", pattern="(")
    assert {"exact_match", "entity_f1", "includes", "regex", "json_valid", "length", "normalized_match"} <= set(names())


def test_a_users_function_is_a_metric(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.py").write_text(
        "def shouting(example, answer): return float(answer.text.isupper())\n"
        "def broken(example, answer): return 1 / 0\n"
        "def silent(example, answer): return float('nan')\n"
    )
    m = metric(f"{tmp_path}/mine.py:shouting")
    assert m(row("x"), Answer(text="HO")).value == 1
    with pytest.raises(TunesmithError, match=r"row .*\n?.*ZeroDivisionError|ZeroDivisionError"):
        metric(f"{tmp_path}/mine.py:broken")(row("x"), Answer(text="HO"))
    assert metric(f"{tmp_path}/mine.py:silent")(row("x"), Answer(text="HO")).value is None


def test_measured_carries_detail() -> None:
    assert Measured(0.0, detail="why").detail == "why"
    assert json.loads(json.dumps(rate("entity_f1", "[A - X]", "hm").detail)) == "no final answer in the text"
    assert math.isinf(metric("length").high)


def test_the_documentation_says_what_every_metric_counts(capsys) -> None:
    code = guarded(app, ["metrics", "--json"])
    entries = json.loads(capsys.readouterr().out)["metrics"]
    assert code == 0
    assert [entry["name"] for entry in entries] == names()
    documented = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text("utf-8")
    for entry in entries:
        rest = " ".join(entry["about"].split()).removeprefix(entry["summary"]).strip().replace("|", r"\|")
        assert f"| `{entry['name']}` | {entry['summary']} | {rest} |" in documented
        assert "is better" in entry["about"] or "As `rouge1`" in entry["about"], entry["name"]


def test_one_metric_is_told_with_its_options_and_a_misspelt_one_with_the_nearest(capsys) -> None:
    assert guarded(app, ["metrics", "json_fields"]) == 0
    out = capsys.readouterr().out
    assert "--options.json_fields.tolerance: 0.0 unless given" in out
    assert "false positive" in out
    assert guarded(app, ["metrics", "entity_f"]) == 2
    assert "entity_f1" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "right"), [("", "A"), ("", "The"), ("", "?"), ("the", "a"), ("!", "?")])
def test_no_answer_is_not_the_answer_that_the_normal_form_empties(answer, right) -> None:
    row = Example(id="x", messages=(Message(role="user", content="Which?"),), reference=right)
    for name in ("normalized_match", "token_f1"):
        scores = [metric(name)(row, Answer(text=text)).value for text in (answer, f" {right.lower()} ")]
        assert scores == [0.0, 1.0]


def test_the_interval_of_a_calibrated_model_has_0() -> None:
    from tunesmith.evaluate.compare import estimate

    rng = np.random.default_rng(2)
    sure = rng.beta(5, 1, 200)
    right = rng.random(200) < sure
    scores = [
        Score(example_id=str(i), metric="ece", value=0.0, counts=(float(c), float(r)))
        for i, (c, r) in enumerate(zip(sure, right, strict=True))
    ]
    found = estimate(metric("ece"), scores)
    assert (found.low, found.estimate > 0.02) == (0.0, True)
    wrong = [Score(example_id=s.example_id, metric="ece", value=0.0, counts=(s.counts[0], 0.0)) for s in scores]
    assert estimate(metric("ece"), wrong).low > 0.5
