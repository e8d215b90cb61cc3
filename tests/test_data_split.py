"""Cleaning and splitting: fates add up, clusters and groups never straddle, rows stay where they were, leakage is refused."""

import random
import sys

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.core.errors import ConfigError, DataError, GateRefused
from tunesmith.core.types import Example, Message, example_id
from tunesmith.data.clean import Clean, NearDuplicates, clean
from tunesmith.data.ledger import Ledger
from tunesmith.data.split import Split, assign, leakage, split
from tunesmith.data.summary import summary

WORDS = ["loan", "bank", "agreement", "date", "borrower", "lender", "interest", "payment", "notice", "default", "term", "security"]


def row(question, answer="yes", place=0, **fields):
    turns = (Message(role="system", content="Answer."), Message(role="user", content=question), Message(role="assistant", content=answer))
    return Example(id=example_id(turns), messages=turns, origin=f"f.jsonl:{place}", **fields)


def entered(rows):
    ledger = Ledger()
    for one in rows:
        ledger.enter(one.origin, one.id)
    return ledger


def made(n, seed=0, **fields):
    """n rows, a third of them near copies of an earlier one."""
    rng = random.Random(seed)
    texts = []
    for _ in range(n):
        if texts and rng.random() < 0.33:
            words = rng.choice(texts).split()
            texts.append(" ".join([*words, "too"]))
        else:
            texts.append(" ".join(rng.choices(WORDS, k=14)) + f" {rng.randrange(10**6)}")
    return [row(text, place=i, **{key: value(i) for key, value in fields.items()}) for i, text in enumerate(texts)]


def test_exact_duplicates_and_empty_answers_are_told():
    rows = [row("What?", place=1), row("What?", place=2), row("why", " ", place=3), row("when", place=4), row(" what? ", "YES", place=5)]
    ledger = entered(rows)
    left = clean(rows, Clean(), ledger)
    assert [one.origin for one in left.rows] == ["f.jsonl:1", "f.jsonl:4", "f.jsonl:5"]
    assert left.clusters.tolist() == [0, 1, 0]  # alike but for case and spaces: not the same, and on one side of a split
    lines = {line.origin: line for line in ledger}
    assert (lines["f.jsonl:2"].fate, lines["f.jsonl:2"].other, lines["f.jsonl:2"].rule) == ("duplicate_of", "f.jsonl:1", "exact_duplicate")
    assert (lines["f.jsonl:3"].fate, lines["f.jsonl:3"].rule) == ("dropped", "empty_answer")


def test_near_duplicates_are_clustered_or_dropped():
    text = " ".join(WORDS)
    rows = [
        row(text, place=1),
        row("x " + text, place=2),
        row("other thing entirely here", place=3),
        row("other thing entirely here", "no", place=4),
    ]
    left = clean(rows, Clean(), entered(rows))
    assert left.clusters.tolist() == [0, 0, 2, 2]  # the last two ask the same
    assert left.pairs.jaccard[0] == pytest.approx(12 / 13)
    ledger = entered(rows)
    left = clean(rows, Clean(near_duplicates=NearDuplicates(action="drop")), ledger)
    assert [one.origin for one in left.rows] == ["f.jsonl:1", "f.jsonl:3", "f.jsonl:4"]
    assert "Jaccard 0.923" in ledger.find("f.jsonl:2")[0].reason
    left = clean(rows, Clean(near_duplicates=NearDuplicates(action="keep")), entered(rows))
    assert left.clusters.tolist() == [0, 1, 2, 3]


def test_the_gate_refuses_a_large_loss():
    rows = [row("same", place=i) for i in range(10)] + [row("another", place=11)]
    with pytest.raises(GateRefused, match=r"9 of 11 rows \(81\.8%\)") as caught:
        clean(rows, Clean(max_dropped=0.05), entered(rows))
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="no rows are left"):
        clean([row("q", "", place=0)], Clean(), entered([row("q", "", place=0)]))


def test_a_users_own_rules(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "import msgspec\n"
        "def short(row):\n    return 'too short' if len(row.answer) < 3 else None\n"
        "def shout(row):\n    turn = msgspec.structs.replace(row.messages[-1], content=row.answer.upper())\n"
        "    return msgspec.structs.replace(row, messages=(*row.messages[:-1], turn))\n"
        "def wrong(row):\n    return 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    rows = [row("a", "no", place=1), row("b", "yes", place=2)]
    ledger = entered(rows)
    left = clean(rows, Clean(rules=("my_rules:short", "my_rules:shout")), ledger)
    assert [one.answer for one in left.examples] == ["YES"]
    assert left.rows[0].id == example_id(left.examples[0].messages) == ledger.find("f.jsonl:2")[0].row
    assert ledger.find("f.jsonl:1")[0].reason == "too short"
    with pytest.raises(ConfigError, match="answered int"):
        clean(rows, Clean(rules=("my_rules:wrong",)), entered(rows))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["cluster", "group", "stratified", "temporal"]), st.integers(20, 150))
def test_no_cluster_and_no_group_straddles(seed, by, n):
    rng = random.Random(seed)
    rows = made(n, seed, group=lambda i: f"g{rng.randrange(n // 2)}", label=lambda i: rng.choice("abc"), meta=lambda i: {"created": i})
    cleaned = clean(rows, Clean(), entered(rows))
    sides, _ = assign(cleaned.rows, Split(by=by, test=0.3, validation=0.0), cleaned.clusters) if _splits(cleaned, by) else (np.zeros(1), [])
    for key in (cleaned.clusters.tolist(), [one.group for one in cleaned.rows]):
        if len(sides) == len(cleaned.rows):
            pairs = set(zip(key, sides.tolist(), strict=True))
            assert len(pairs) == len({name for name, _ in pairs})
    ledger = entered(rows)
    clean(rows, Clean(near_duplicates=NearDuplicates(action="drop")), ledger)
    assert sum(ledger.counts().values()) == n


def _splits(cleaned, by):
    """Whether the rows can be divided at all (one unit may hold them all)."""
    try:
        assign(cleaned.rows, Split(by=by, test=0.3, validation=0.0), cleaned.clusters)
    except DataError:
        return False
    return True


def test_new_rows_move_no_old_ones():
    rows = made(400)
    old = clean(rows[:300], Clean(), entered(rows[:300]))
    new = clean(rows, Clean(), entered(rows))
    before = dict(zip([one.id for one in old.rows], assign(old.rows, Split(), old.clusters)[0].tolist(), strict=True))
    after = dict(zip([one.id for one in new.rows], assign(new.rows, Split(), new.clusters)[0].tolist(), strict=True))
    moved = [identity for identity, side in before.items() if after[identity] != side]
    assert len(moved) <= 0.12 * len(before)  # only those whose cluster got a new lowest member
    alone = made(300, 1)
    sides = assign(alone, Split())[0]
    assert assign([*alone, *made(300, 2)], Split())[0][:300].tolist() == sides.tolist()


def test_shares_salt_and_order():
    rows = made(3000)
    sides = assign(rows, Split(by="random"))[0]
    assert np.bincount(sides) / 3000 == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    assert (assign(rows, Split(by="random", salt="1"))[0] != sides).mean() > 0.3
    assert assign(rows[::-1], Split(by="random"))[0][::-1].tolist() == sides.tolist()


def test_stratified_keeps_shares_within_labels():
    rows = [row(f"question number {i}", label="rare" if i % 20 == 0 else "common", place=i) for i in range(400)]
    sides = assign(rows, Split(by="stratified", test=0.25, validation=0.25))[0]
    for label, n in (("rare", 20), ("common", 380)):
        counts = np.bincount([side for one, side in zip(rows, sides, strict=True) if one.label == label], minlength=3)
        assert counts.tolist() == [n // 2, n // 4, n // 4]
    with pytest.raises(DataError, match="no row has a label"):
        assign(made(20), Split(by="stratified"))


def test_temporal_holds_out_the_newest():
    rows = [row(f"question {i}", meta={"created": f"2026-01-{i + 1:02d}"}, place=i) for i in range(30)]
    sides = assign(rows, Split(by="temporal", test=0.2, validation=0.1))[0]
    assert sides.tolist() == [0] * 21 + [1] * 3 + [2] * 6
    with pytest.raises(DataError, match=r"f\.jsonl:0: meta\.when is None"):
        assign(rows, Split(by="temporal", time="when"))


def test_at_least_train_and_too_few_rows():
    rows = made(100)
    sides, notes = assign(rows, Split(test=0.4, validation=0.1, by="random", at_least_train=90))
    assert (sides == 0).sum() >= 90
    assert "went to train" in notes[0]
    with pytest.raises(DataError, match="at least 101"):
        assign(rows, Split(at_least_train=101))
    with pytest.raises(DataError, match="no row is left for"):
        assign(rows, Split(at_least_train=100, by="random"))
    with pytest.raises(ConfigError, match="sum below 1"):
        assign(rows, Split(test=0.6, validation=0.6))


def test_large_clusters_are_trained_on():
    rows = made(60)
    clusters = np.arange(60)
    clusters[:30] = 0
    sides, notes = assign(rows, Split(test=0.3, validation=0.0), clusters)
    assert set(sides[:30].tolist()) == {0}
    assert "1 clusters or groups with 30 rows in all" in notes[0]


def test_leakage_is_measured_and_refused():
    rows = made(300)
    left = clean(rows, Clean(exact_duplicates="keep"), entered(rows))
    whole = split(left.rows, Split(), left.clusters)
    assert all(part.share == 0 for part in whole.leakage.values())
    assert sum(map(len, (whole.train, whole.validation, whole.test))) == 300
    with pytest.raises(GateRefused, match=r"test rows repeat a training row|validation rows repeat"):
        split(left.rows, Split(by="random"), left.clusters)
    found = leakage(rows[:10], [*rows[:2], row(rows[3].messages[1].text, "no"), row("unlike any other")])
    assert (found.rows, found.exact, found.same_question) == (4, 2, 3)
    assert found.near == 3
    told = summary(left.rows, clusters=left.clusters, splits=whole)
    assert told["splits"] == {"train": len(whole.train), "validation": len(whole.validation), "test": len(whole.test)}
    assert msgspec.json.decode(msgspec.json.encode(told)) == told


@pytest.mark.slow
def test_a_few_large_clusters_do_not_take_the_shares():
    """Twelve clusters of 400 rows among 5,000 rows: hashed whole, they would decide what the test set is."""
    groups = [f"g{i % 12}" if i < 4_800 else f"own {i}" for i in range(10_000)]
    rows = [row(f"question {i}", place=i, group=name) for i, name in enumerate(groups)]
    for salt in "abcd":
        sides, notes = assign(rows, Split(by="group", salt=salt), None)
        held = np.bincount(sides, minlength=3)
        assert abs(held[2] - 0.2 * 5_200) < 150
        assert "12 clusters or groups with 4800 rows" in notes[0]


@pytest.mark.parametrize("leaks", [False, True])
def test_sets_that_are_known_give_the_same_split(leaks):
    rows = made(400)
    done = clean(rows, Clean(), entered(rows))
    clusters = None if leaks else done.clusters
    settings_ = Split(max_leakage=1.0)
    again, shared = split(done.rows, settings_, clusters), split(done.rows, settings_, clusters, done.prints)
    assert (again.leakage, again.train, again.test) == (shared.leakage, shared.train, shared.test)
    assert bool(shared.leakage["test"].near) == leaks


@pytest.mark.slow
def test_clusters_of_any_size_have_the_same_chance():
    groups = [f"pair {i % 1_500}" for i in range(3_000)] + [f"twenty {i % 150}" for i in range(3_000)] + [f"own {i}" for i in range(3_000)]
    sides, _ = assign([row(f"question {i}", place=i, group=name) for i, name in enumerate(groups)], Split(by="cluster"), None)
    rows = [row(f"question {i}", place=i) for i in range(9_000)]
    linked = np.arange(9_000)
    linked[3_000:6_000] = 3_000 + np.arange(3_000) % 150  # the same by near-duplicates instead of groups
    for held in (sides, assign(rows, Split(), linked)[0]):
        for part in (slice(0, 3_000), slice(3_000, 6_000), slice(6_000, 9_000)):
            assert (held[part] == 2).mean() == pytest.approx(0.2, abs=0.11)
    assert (sides == 2).mean() == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
def test_progress_of_each_rule_is_told():
    told = []

    class Heard:
        def say(self, text):
            raise AssertionError(text)

        def bar(self, label, done, total):
            told.append((label, done, total))

    rows = [row(f"question {i} of many", place=i) for i in range(2_500)]
    quiet, loud = clean(rows, Clean(), entered(rows)), clean(rows, Clean(), entered(rows), progress=Heard())
    assert quiet.rows == loud.rows
    assert told == [("cleaning", 2_500, 2_500)]


def test_random_is_random_for_grouped_rows_too_and_says_what_that_costs():
    """It was not: all rows of a group had one place."""
    rows = [msgspec.structs.replace(row, group=f"g{i % 30}") for i, row in enumerate(made(600))]
    sides, notes = assign(rows, Split(by="random"))
    assert sides.tolist() == assign([msgspec.structs.replace(row, group=None) for row in rows], Split(by="random"))[0].tolist()
    assert np.bincount(sides) / 600 == pytest.approx([0.7, 0.1, 0.2], abs=0.06)
    assert any("groups have rows on both sides" in note for note in notes)
    whole, quiet = assign(rows, Split(by="group"))
    assert all(len({int(side) for side, row in zip(whole, rows, strict=True) if row.group == f"g{i}"}) == 1 for i in range(30))
    assert not any("both sides" in note for note in quiet)
