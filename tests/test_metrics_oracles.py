"""Metrics that have an independent source agree with it; the others meet values worked out by hand."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from tunesmith.core.stats.bootstrap import resampled_sums
from tunesmith.core.types import Answer, Example, Function, Message, Score, ToolCall, example_id
from tunesmith.core.words import words
from tunesmith.evaluate.metrics import metric
from tunesmith.evaluate.metrics.classes import label_pair

WORDS = [
    "the",
    "a",
    "cat",
    "dog,",
    "sat",
    "on",
    "mat.",
    "Is",
    "it?",
    "3,5",
    "U.S.",
    "don't",
    "bank-loan",
    "big",
    "small",
    "blue",
    "'quote'",
    "end",
]


def row(reference: str, said: str = "", **known: object) -> Example:
    messages = (Message(role="user", content=said), Message(role="assistant", content=reference))
    return Example(id=example_id(messages), messages=messages, **known)


def rate(name: str, reference: str, said: str, **options: object) -> Score:
    return metric(name, **options)(row(reference), Answer(text=said))


def texts(n: int, seed: int = 0, low: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    made = []
    for _ in range(n):
        one = [draw.choice(WORDS) for _ in range(draw.randint(low, 25))]
        two = [w for w in one if draw.random() < 0.7] + [draw.choice(WORDS) for _ in range(draw.randint(0, 5))]
        made.append((" ".join(one), " ".join(two)))
    return made


@pytest.mark.slow
def test_rouge_equals_rouge_score_on_ascii() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    for wanted, said in texts(300):
        theirs = scorer.score(wanted, said)
        for kind in kinds:
            assert rate(kind, wanted, said).value == pytest.approx(theirs[kind].fmeasure, abs=1e-12)
            assert rate(kind, wanted, said, measure="precision").value == pytest.approx(theirs[kind].precision, abs=1e-12)
            assert rate(kind, wanted, said, measure="recall").value == pytest.approx(theirs[kind].recall, abs=1e-12)


@pytest.mark.parametrize(
    "text", ["Кошка сидит на коврике.", "猫坐在垫子上", "बिल्ली चटाई पर बैठी", "القط على السجادة", "แมวนั่งบนเสื่อ", "고양이가 앉았다"]
)
def test_rouge_reads_any_script(text: str) -> None:
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert rate(kind, text, text).value == pytest.approx(1.0)
        assert rate(kind, text, "something else").value == 0


def test_words_in_any_script() -> None:
    assert words("Don't stop_now, 2x!") == ("don", "t", "stop", "now", "2x")
    assert words("Ёлка — это ель") == ("ёлка", "это", "ель")
    assert words("猫と犬") == ("猫", "と", "犬")
    assert words("हिन्दी में") == ("हिन्दी", "में")


def test_several_references_take_the_best() -> None:
    both = row("a b c", meta={"references": ["x y", "a b d"]})
    assert metric("rouge1")(both, Answer(text="a b d")).value == 1
    assert metric("token_f1")(both, Answer(text="x y")).value == 1


@pytest.mark.parametrize("low", [0, 1, 6])
def test_bleu_and_chrf_equal_sacrebleu(low: int) -> None:
    pairs = texts(60, seed=low, low=low)
    wanted, said = [p[0] for p in pairs], [p[1] for p in pairs]
    for name, theirs, single in (("bleu", BLEU(), BLEU(effective_order=True)), ("chrf", CHRF(), CHRF())):
        m = metric(name)
        scores = [m(row(a), Answer(text=b)) for a, b in pairs]
        assert m.value(scores) == pytest.approx(theirs.corpus_score(said, [wanted]).score, abs=1e-9)
        for score, a, b in zip(scores, wanted, said, strict=True):
            assert score.value == pytest.approx(single.sentence_score(b, [a]).score, abs=1e-9), (name, a, b)


def test_bleu_with_two_references_equals_sacrebleu() -> None:
    pairs, others = texts(40, seed=3, low=3), [p[0] for p in texts(40, seed=4, low=3)]
    m = metric("bleu")
    scores = [m(row(a, meta={"references": [a, o]}), Answer(text=b)) for (a, b), o in zip(pairs, others, strict=True)]
    assert m.value(scores) == pytest.approx(BLEU().corpus_score([b for _, b in pairs], [[a for a, _ in pairs], others]).score, abs=1e-9)


@pytest.mark.slow
def test_bleu_bootstrap_from_sums_equals_recounting() -> None:
    pairs = texts(80, seed=5, low=4)
    m = metric("bleu")
    scores = [m(row(a), Answer(text=b)) for a, b in pairs]
    pool = m.pool(scores)
    draws = pool.value(resampled_sums(pool.rows, 500, seed=1))
    rng = np.random.default_rng(2)
    slow = [BLEU().corpus_score([pairs[i][1] for i in at], [[pairs[i][0] for i in at]]).score for at in rng.integers(0, 80, (100, 80))]
    assert draws.mean() == pytest.approx(np.mean(slow), abs=4 * np.std(slow) / 10)
    assert draws.std() == pytest.approx(np.std(slow), rel=0.35)


def test_error_rates() -> None:
    m = metric("wer")
    scores = [m(row("the cat sat"), Answer(text="the  cat sat down")), m(row("on a mat"), Answer(text="a mat"))]
    assert [s.value for s in scores] == pytest.approx([1 / 3, 1 / 3])
    assert m.value(scores) == pytest.approx(2 / 6)
    assert rate("cer", "kitten", "sitting").value == pytest.approx(3 / 6)
    assert rate("wer", "", "words").value is None
    assert rate("wer", "", "").value == 0


def test_token_and_label_f1() -> None:
    assert rate("token_f1", "the big cat", "big dog").value == pytest.approx(0.5)
    assert rate("multilabel_f1", "a1, b1", "[B1, c1]").counts == (1, 1, 1)
    assert rate("multilabel_f1", "", "").value == 1


def labels(pairs: list[tuple[str, str]], name: str, **options: object) -> float | None:
    m = metric(name, **options)
    return m.value([m(row(wanted), Answer(text=said)) for wanted, said in pairs])


def test_class_metrics_by_hand() -> None:
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 1 + [("no", "yes")] * 2 + [("no", "no")] * 1
    assert labels(pairs, "accuracy") == pytest.approx(0.7)
    assert labels(pairs, "balanced_accuracy") == pytest.approx((6 / 7 + 1 / 3) / 2)
    assert labels(pairs, "macro_f1") == pytest.approx((12 / 15 + 2 / 5) / 2)
    assert labels(pairs, "mcc") == pytest.approx((6 * 1 - 2 * 1) / math.sqrt(8 * 7 * 3 * 2))
    assert labels([("yes", "yes")] * 3, "mcc") == 0
    assert labels([("one", "I said two but it is ONE.")], "accuracy", labels=["one", "two"]) == 1
    assert labels([("one", "onetwo")], "accuracy", labels=["one", "two"]) == 0
    letters = ["A", "B", "C"]
    for said, right in (
        ("A", 1),
        ("(A)", 1),
        ("A: louder", 1),
        ("a loud answer is B", 0),
        ("Not B, the answer is A.", 1),
        ("louder", 0),
        ("As", 0),
    ):
        assert labels([("A", said)], "accuracy", labels=letters) == right, said
    assert label_pair(rate("accuracy", "Yes", "no")) == ("yes", "no")


def test_two_models_that_say_other_labels_are_pooled_in_the_same_columns() -> None:
    m = metric("macro_f1")
    sides = [
        [m(row(wanted), Answer(text=said)) for wanted, said in pairs] for pairs in ([("a", "a"), ("b", "a")], [("a", "c"), ("b", "b")])
    ]
    rows, value = m.pools(*sides)
    assert rows[0].shape == rows[1].shape
    for one, side in zip(rows, sides, strict=True):
        assert value(one.sum(axis=0)) == pytest.approx(m.value(side))


def test_mcc_of_several_classes_equals_the_correlation_of_indicators() -> None:
    draw = random.Random(0)
    pairs = [(w := draw.choice("abc"), w if draw.random() < 0.6 else draw.choice("abc")) for _ in range(200)]
    pairs = [(f"{w}1", f"{s}1") for w, s in pairs]
    one_hot = np.array([[[x == k for k in ("a1", "b1", "c1")] for x in pair] for pair in pairs], dtype=float)
    centred = one_hot - one_hot.mean(axis=0)
    covariance = [(centred[:, i] * centred[:, j]).sum() for i, j in ((0, 1), (0, 0), (1, 1))]
    assert labels(pairs, "mcc") == pytest.approx(covariance[0] / math.sqrt(covariance[1] * covariance[2]))


def test_calibration_by_hand() -> None:
    rows = [("a", "a", 0.9), ("b", "x", 0.9), ("c", "c", 0.6)]
    pairs = [(row(w), Answer(text=s, logprobs=({"logprob": math.log(p)},))) for w, s, p in rows]
    brier, ece = metric("brier"), metric("ece", bins=10)
    assert brier.value([brier(e, a) for e, a in pairs]) == pytest.approx((0.01 + 0.81 + 0.16) / 3)
    assert ece.value([ece(e, a) for e, a in pairs]) == pytest.approx((abs(1.8 - 1) + abs(0.6 - 1)) / 3)
    assert brier(row("a"), Answer(text="a")).value is None
    said = metric("brier", correct="includes", pattern=r"(\d+)\s*%")
    assert said(row("Rome"), Answer(text="Rome, 80 % sure")).value == pytest.approx(0.04)


def test_json_schema_and_fields() -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    assert rate("json_schema", "x", '{"n": 1}', schema=schema).value == 1
    wrong = rate("json_schema", "x", '{"n": "1"}', schema=schema)
    assert (wrong.value, wrong.detail.startswith("$.n")) == (0, True)
    assert rate("json_schema", "x", "{}").value is None
    assert metric("json_schema")(row("x", meta={"schema": schema}), Answer(text="{}")).value == 0
    wanted = json.dumps({"name": "Ann", "lines": [{"usd": 5.0}, {"usd": 7}], "ok": True})
    said = json.dumps({"name": "Ann", "lines": [{"usd": 5}], "ok": 1})
    assert rate("json_fields", wanted, said).counts == (2, 1, 2)
    assert rate("json_fields", "[1.00]", "[1.001]", tolerance=0.01).value == 1
    assert rate("json_fields", '{"a": 1}', "no").counts == (0, 0, 1)


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall(id="c", function=Function(name=name, arguments=arguments))


def test_tool_calls_by_meaning() -> None:
    messages = (Message(role="user", content="q"), Message(role="assistant", tool_calls=(call("f", '{"a": 1, "b": 2}'), call("g", "{}"))))
    example = Example(id=example_id(messages), messages=messages)
    said = Answer(text="", tool_calls=(call("g", '{"x": 1}'), call("f", '{"b":2,"a":1}')))
    assert metric("tool_call")(example, said).counts == (1, 1, 1)
    assert metric("tool_call", arguments=False)(example, said).value == 1
    assert metric("tool_call")(row("text"), Answer(text="text")).value == 1


def test_cost_latency_tokens_refusal() -> None:
    answer = Answer(text="I'm sorry, but I can't help.", prompt_tokens=1000, completion_tokens=500, total_s=1.5, first_token_s=0.2)
    assert metric("latency")(row("x"), answer).value == 1.5
    assert metric("latency", until="first")(row("x"), answer).value == 0.2
    assert metric("latency")(row("x"), Answer(text="")).value is None
    assert metric("tokens")(row("x"), answer).value == 1500
    assert metric("tokens", of="completion")(row("x"), answer).value == 500
    assert metric("cost", prompt_usd=2, completion_usd=8)(row("x"), answer).value == pytest.approx(0.006)
    assert metric("refusal")(row("x"), answer).value == 1
    assert metric("refusal")(row("x"), Answer(text="The bank cannot lend.")).value == 0
    assert metric("refusal")(row("x"), Answer(text="", finish_reason="content_filter")).value == 1


def test_metrics_with_a_model_handed_in() -> None:
    def encoder(given: list[str]) -> np.ndarray:
        return np.array([[text.count("a"), text.count("b")] for text in given], dtype=float)

    m = metric("embedding_similarity", encoder=encoder)
    pairs = [(row("ab"), Answer(text="aabb")), (row("a"), Answer(text="b")), (row("a"), Answer(text=""))]
    scores = m.rows([e for e, _ in pairs], [a for _, a in pairs])
    assert [s.value for s in scores] == pytest.approx([1, 0, 0])
    likely = [(row("12345678"), Answer(text="")), (row("abcd"), Answer(text=""))]

    def scorer(rows: list[Example]) -> list[tuple[float, int]]:
        return [(8 * math.log(2), 4) if e.answer == "12345678" else (math.log(2), 1) for e in rows]

    for name, value in (("perplexity", 2 ** (9 / 5)), ("bits_per_byte", 9 / 12)):
        m = metric(name, scorer=scorer)
        assert m.value(m.rows(*zip(*likely, strict=True))) == pytest.approx(value)
