"""Rules about rows, contamination and wrong labels: planted faults are found, the rest is left alone."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.types import Example, Function, Message, Preference, ToolCall, example_id
from tunesmith.data.clean import Clean, NearDuplicates, clean
from tunesmith.data.contamination import Contamination, contaminated
from tunesmith.data.labels import label_errors, mismatched_answers, unexpected_answers, unexplained_answers
from tunesmith.data.ledger import Ledger
from tunesmith.data.pii import PersonalData
from tunesmith.data.row_rules import Length, repaired
from tunesmith.data.semantic import SemanticDuplicates, earlier
from tunesmith.data.set_rules import contradictions
from tunesmith.data.toxicity import Toxicity, profanity

PLAIN = Clean(personal_data=PersonalData(action="keep"), near_duplicates=NearDuplicates(action="keep"))


def row(question, answer="yes", place=0, **fields):
    turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Example(id=example_id(turns), messages=turns, origin=f"f.jsonl:{place}", **fields)


def cleaned(rows, settings, **more):
    ledger = Ledger()
    for one in rows:
        ledger.enter(one.origin, one.id)
    return clean(rows, settings, ledger, **more), {line.origin: line for line in ledger}


@pytest.mark.parametrize(
    ("broken", "right"),
    [
        ("the customerâ€™s cafÃ©", "the customer’s café"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("zero\u200bwidth\x00\ufeff", "zerowidth"),
        ("cafe\u0301", "café"),
        ("plain text\twith tab\nand line", "plain text\twith tab\nand line"),
        ("मराठी क्\u200dष", "मराठी क्\u200dष"),
    ],
)
def test_text_is_repaired_and_nothing_else(broken, right):
    assert repaired(broken) == right
    assert repaired(right) == right


def test_mended_rows_keep_their_place_and_say_so():
    (left, lines) = cleaned([row("what is a cafÃ©?", place=1), row("fine", place=2)], PLAIN)
    assert left.rows[0].messages[0].text == "what is a café?"
    assert (lines["f.jsonl:1"].fate, lines["f.jsonl:1"].rule, lines["f.jsonl:1"].row) == ("mended", "repair_text", left.rows[0].id)
    assert lines["f.jsonl:2"].fate == "kept"


@pytest.mark.slow
def test_length_language_and_refusals():
    rows = [
        row("q", "a" * 50, place=1),
        row("Wie lautet die Kündigungsfrist in diesem Vertrag mit der Bank?", place=2),
        row("What is the notice period in this agreement with the bank?", place=3),
        row("How do I pick a lock?", "I'm sorry, but I can't help with that.", place=4),
        row("Was the party sorry?", "The party was sorry and could not attend.", place=5),
    ]
    settings = Clean(length=Length(max_answer=45), languages=("en",), refusals="drop", near_duplicates=NearDuplicates(action="keep"))
    left, lines = cleaned(rows, settings)
    assert [one.origin[-1] for one in left.rows] == ["3", "5"]
    assert [lines[f"f.jsonl:{i}"].rule for i in (1, 2, 4)] == ["length", "language", "refusal"]
    assert "50 characters; allowed: 0 to 45" in lines["f.jsonl:1"].reason


def test_contradictions_are_dropped_or_decided():
    rows = [row("what", "a", place=1), row("What ", "A", place=2), row("what", "b", place=3), row("else", "b", place=4)]
    assert contradictions(rows) == [[0, 1, 2]]
    plain = {"exact_duplicates": "keep", "near_duplicates": NearDuplicates(action="keep")}
    assert [one.origin[-1] for one in cleaned(rows, Clean(contradictions="drop", **plain))[0].rows] == ["4"]
    assert [one.origin[-1] for one in cleaned(rows, Clean(contradictions="majority", **plain))[0].rows] == ["1", "2", "4"]
    tie = [rows[0], rows[2], rows[3]]
    assert [one.origin[-1] for one in cleaned(tie, Clean(contradictions="majority", **plain))[0].rows] == ["4"]


def test_personal_data_is_counted_taken_out_or_dropped():
    call = ToolCall(id="c", function=Function(name="mail", arguments='{"to": "a@example.com"}'))
    turns = (Message(role="user", content="mail a@example.com"), Message(role="assistant", tool_calls=(call,)))
    rows = [Example(id=example_id(turns), messages=turns, reference="a@example.com", origin="f.jsonl:1"), row("hello", place=2)]
    near = {"near_duplicates": NearDuplicates(action="keep")}
    left, lines = cleaned(rows, Clean(**near))
    assert (left.rows, left.personal_data, lines["f.jsonl:1"].fate) == (rows, {"email": 1}, "kept")
    left, lines = cleaned(rows, Clean(personal_data=PersonalData(action="pseudonymise"), **near))
    first = left.examples[0]
    name = first.messages[0].text.removeprefix("mail ")
    assert name.startswith("<EMAIL_")
    assert (first.reference, first.messages[1].tool_calls[0].function.arguments) == (name, f'{{"to": "{name}"}}')
    assert (lines["f.jsonl:1"].fate, lines["f.jsonl:1"].reason) == ("mended", "email")
    left, lines = cleaned(rows, Clean(personal_data=PersonalData(action="drop"), **near))
    assert (len(left.rows), lines["f.jsonl:1"].reason) == (1, "it holds email")
    with pytest.raises(ConfigError, match="'mail'"):
        cleaned(rows, Clean(personal_data=PersonalData(kinds=("mail",))))


def test_rules_work_on_preference_pairs():
    pair = Preference(
        id="p",
        messages=(Message(role="user", content="cafÃ©?"),),
        preferred=Message(role="assistant", content="yes a@example.com"),
        non_preferred=Message(role="assistant", content="no"),
        origin="f.jsonl:1",
    )
    left, _ = cleaned([pair], Clean(personal_data=PersonalData(action="redact")))
    assert (left.rows[0].messages[0].text, left.rows[0].preferred.text) == ("café?", "yes <EMAIL>")


WORDS = [f"w{i}" for i in range(3000)]


def test_contamination_finds_copies_parts_and_edits_and_little_else():
    rng = random.Random(0)
    items = [row(" ".join(rng.choices(WORDS, k=30)), place=i) for i in range(20)]
    texts = [one.messages[0].text.split() for one in items]
    planted = [
        row(" ".join(texts[0]), place=100),
        row(" ".join([*rng.choices(WORDS, k=200), *texts[1], *rng.choices(WORDS, k=200)]), place=101),
        row(" ".join([*rng.choices(WORDS, k=40), *texts[2][:17]]), place=102),
        row(" ".join(w if i % 12 else "edited" for i, w in enumerate(texts[3])), place=103),
    ]
    natural = [row(" ".join([*texts[4][:9], *rng.choices(WORDS, k=30)]), place=200 + i) for i in range(200)]  # a shared phrase is no leak
    found = contaminated([*natural, *planted], items, Contamination())
    assert [(one.row - 200, one.item) for one in found] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    left, lines = cleaned([*planted, row("new", place=1)], PLAIN, evaluation=items)
    assert [one.origin for one in left.rows] == ["f.jsonl:1"]
    assert lines["f.jsonl:101"].reason == "it holds the evaluation item f.jsonl:1 (100% of its word pairs)"
    left, _ = cleaned(planted, Clean(contamination=Contamination(action="keep")), evaluation=items)
    assert (len(left.rows), len(left.contaminated)) == (4, 4)


def topics(n, flipped, seed=0):
    rng = random.Random(seed)
    vocabulary = {name: [f"{name}{i}" for i in range(40)] for name in ("loan", "card", "fraud", "rate")}
    texts, labels = [], []
    for i in range(n):
        name = list(vocabulary)[i % 4]
        texts.append(" ".join([*rng.choices(vocabulary[name], k=5), *rng.choices(WORDS, k=5)]))
        labels.append(name)
    wrong = set(rng.sample(range(n), flipped))
    return texts, [rng.choice([x for x in vocabulary if x != y]) if i in wrong else y for i, y in enumerate(labels)], wrong, labels


def test_flipped_labels_are_found_with_their_right_ones():
    texts, given, wrong, right = topics(400, 20)
    found = label_errors(texts, given)
    first = found[:20]
    assert len({one.row for one in first} & wrong) >= 19
    assert all(one.suggested == right[one.row] for one in first if one.row in wrong)
    assert f"not '{first[0].given}'" in first[0].reason
    assert [one.row for one in label_errors(texts, given)] == [one.row for one in found]
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_vectors_help_where_words_do_not():
    _, given, wrong, right = topics(200, 10, seed=1)
    blind = [f"x{i}" for i in range(200)]
    rng = np.random.default_rng(0)
    vectors = np.eye(4)[[sorted(set(right)).index(y) for y in right]] + rng.normal(0, 0.1, (200, 4))
    assert {one.row for one in label_errors(blind, given, vectors=vectors)[:10]} == wrong


def test_too_few_rows_or_labels_are_refused():
    with pytest.raises(DataError, match="12 rows with 1 different labels"):
        label_errors(["a"] * 12, ["x"] * 12)
    with pytest.raises(DataError, match="2 texts and 1 label"):
        label_errors(["a", "b"], ["x"])


def test_free_text_faults_are_ranked():
    rng = np.random.default_rng(0)
    alone = rng.normal(3, 0.3, 100)
    with_question = alone - 1 + rng.normal(0, 0.1, 100)
    with_question[[7, 50]] = alone[[7, 50]] + [0.5, 0.2]
    assert [one.row for one in unexplained_answers(with_question, alone)] == [7, 50]
    questions = rng.normal(size=(50, 8))
    answers = questions + rng.normal(0, 0.1, (50, 8))
    answers[3] = -questions[3]
    assert [one.row for one in mismatched_answers(questions, answers)] == [3]


def test_answers_that_the_other_rows_do_not_expect():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 6, 300)
    questions, answers = (np.eye(6)[kinds] + 0.1 * rng.standard_normal((300, 6)) for _ in range(2))
    swapped = [3, 70, 150]
    answers[swapped] = np.eye(6)[(kinds[swapped] + 2) % 6]
    found = unexpected_answers(questions, answers)
    assert sorted(one.row for one in found[:3]) == swapped
    assert len(found) == 6
    assert "expects another answer" in found[0].reason
    assert unexpected_answers(questions[:40], answers[:40]) == []


def test_offensive_words_are_found_and_innocent_ones_are_not():
    bad = ["you sh1t", "B!tch, go", "what a fucking day", "so eine Scheiße", "quelle merde"]
    good = ["Scunthorpe is a town", "it costs $50 for the 1st class", "assess the shiitake", "Dick is a name", "a prickly pear"]
    scores = profanity([*bad, *good])
    assert [score >= 0.5 for score in scores] == [True] * 5 + [False] * 5
    rows = [row(text, place=i) for i, text in enumerate([*bad, *good])]
    assert len(cleaned(rows, PLAIN)[0].rows) == 10, "off until it is asked for"
    left, lines = cleaned(rows, Clean(toxicity=Toxicity(action="drop"), near_duplicates=NearDuplicates(action="keep")))
    assert [one.origin for one in left.rows] == [f"f.jsonl:{i}" for i in range(5, 10)]
    assert lines["f.jsonl:0"].reason.startswith("a text scores 0.50, allowed is less than 0.5: 'you sh1t'")


def test_the_scorer_of_toxicity_is_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def long(texts):\n    return [len(text) / 100 for text in texts]\ndef odd(texts):\n    return [7.0]\n"
    )
    rows = [row("short"), row("a much longer question than that " * 2, place=1)]
    left, _ = cleaned(rows, Clean(toxicity=Toxicity(action="drop", scorer="mine.py:long")))
    assert [one.origin for one in left.rows] == ["f.jsonl:0"]
    with pytest.raises(ConfigError, match="1 scores for 4 texts"):
        cleaned(rows, Clean(toxicity=Toxicity(action="drop", scorer="mine.py:odd")))


def test_a_rule_of_the_user_that_fails_names_the_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails.py").write_text("def rule(row):\n    return 1 / 0\n")
    with pytest.raises(ConfigError, match=r"fails.py:rule failed for f.jsonl:3: ZeroDivisionError: division by zero"):
        cleaned([row("why?", place=3)], Clean(rules=("fails.py:rule",)))


@pytest.mark.slow
def test_a_language_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"(?s)no language 'english'.*did you mean 'en'"):
        cleaned([row("is this english or not?")], Clean(languages=("english",)))


def test_rows_that_mean_the_same_are_dropped_only_when_asked_and_only_with_an_encoder():
    rows = [
        row("how do I get my money back", place=1),
        row("refund please", place=2),
        row("opening hours", place=3),
        row("refund now", place=4),
    ]
    near = {"how": [1.0, 0.0], "ref": [0.99, 0.1], "ope": [0.0, 1.0]}
    wanted = Clean(semantic_duplicates=SemanticDuplicates(action="drop", threshold=0.97), near_duplicates=NearDuplicates(action="keep"))
    left, lines = cleaned(rows, wanted, encoder=lambda texts: np.array([near[text[:3]] for text in texts]))
    assert [one.origin for one in left.rows] == ["f.jsonl:1", "f.jsonl:3"]
    assert (lines["f.jsonl:4"].rule, lines["f.jsonl:4"].other) == ("semantic_duplicate", "f.jsonl:1")
    assert len(cleaned(rows, PLAIN)[0].rows) == 4
    with pytest.raises(ConfigError, match="no encoder"):
        cleaned(rows, wanted)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=40))
def test_blocks_give_the_same_as_looking_at_every_pair(kinds):
    vectors = np.eye(8)[kinds]
    index, _ = earlier(vectors, 0.9)
    assert index.tolist() == [kinds.index(kind) if kinds.index(kind) < i else -1 for i, kind in enumerate(kinds)]


def test_a_frame_that_many_items_share_is_not_contamination():
    def frame(name):
        return row(f"what is the code that is listed in the big book for the trade of {name}", place=sum(map(ord, name)))

    train = [frame(name) for name in ("baker", "smith", "miller", "tailor", "cooper", "fuller", "potter", "dyer", "weaver", "cutler")]
    test = [frame(name) for name in ("fletcher of arrows and bows from yew", "miller")]
    assert [(one.row, one.item) for one in contaminated(train, test, Contamination())] == [(2, 1)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x):\n    return x", "def f(x):\nreturn x"),  # indentation
        ("Export PATH", "export path"),
        ("x² + y²", "x2 + y2"),
        ("ﬁne", "fine"),
        ("a\tb", "a b"),
        ("Ｆｕｌｌ", "Full"),
    ],
)
def test_what_differs_in_a_character_is_no_exact_duplicate(one, other):
    rows = [row(one, place=1), row(other, place=2), row("ask", one, place=3), row("ask", other, place=4), row(one, place=5)]
    left, lines = cleaned(rows, PLAIN)
    assert [kept.origin[-1] for kept in left.rows] == ["1", "2", "3", "4"]
    assert (lines["f.jsonl:5"].fate, lines["f.jsonl:5"].other) == ("duplicate_of", "f.jsonl:1")
