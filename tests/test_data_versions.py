"""Versions, reviews, what to label next, and rows from a teacher."""

import json
import random

import msgspec
import numpy as np
import pytest

from tunesmith.core.errors import ConfigError, DataError, NotFound, StoreError, UsageError
from tunesmith.core.progress import Silent
from tunesmith.core.types import Answer, Example, Message, example_id
from tunesmith.data import synth, version
from tunesmith.data.choose import choose, uncertainty_of
from tunesmith.data.clean import apply
from tunesmith.data.collect import Source, collect
from tunesmith.data.ledger import Ledger
from tunesmith.data.review import Verdict, agreement, append, reviewed, verdicts, waiting
from tunesmith.flow.datasets.versions import Datasets
from tunesmith.models.echo import EchoModel


def row(question, answer="yes", place=0, **fields):
    turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Example(id=example_id(turns), messages=turns, origin=f"f:{place}", **fields)


ROWS = [row(f"question number {i}", f"answer {i}", i) for i in range(6)]


def ledger_of(rows):
    ledger = Ledger()
    for one in rows:
        ledger.enter(one.origin, one.id)
    return ledger


def test_a_version_is_the_same_for_the_same_rows_and_never_changes(tmp_path):
    splits = {"train": ROWS[:4], "test": ROWS[4:]}
    first = version.freeze(tmp_path, splits, {"salt": "0"}, ledger=ledger_of(ROWS))
    assert version.freeze(tmp_path, splits, {"salt": "0"}) == first
    assert (first.counts, first.fates) == ({"train": 4, "test": 2}, {"kept": 6})
    assert version.rows_of(tmp_path, first, "test") == ROWS[4:]
    child = version.freeze(tmp_path, {"train": ROWS[:3]}, {"salt": "1"}, parent=first.id[:8])
    assert [one.id for one in version.lineage(tmp_path, child.id)] == [child.id, first.id]
    assert [one.id for one in version.log(tmp_path)] == [child.id, first.id]
    with pytest.raises(NotFound, match="no data version 'none'"):
        version.load(tmp_path, "none")
    with pytest.raises(DataError, match="does not add up"):
        version.freeze(tmp_path, {"train": ROWS[:3]}, {}, ledger=ledger_of(ROWS))


def test_damage_and_unfinished_versions_are_seen(tmp_path):
    first = version.freeze(tmp_path, {"train": ROWS}, {})
    (tmp_path / "half").mkdir()
    assert len(version.log(tmp_path)) == 1
    other = version.freeze(tmp_path, {"train": ROWS[:5]}, {})
    (tmp_path / other.id / "train.parquet").replace(tmp_path / first.id / "train.parquet")
    with pytest.raises(StoreError, match=r"train\.parquet: the file is damaged"):
        version.rows_of(tmp_path, first, "train")
    (tmp_path / first.id / "digests.txt").unlink()  # as in a version that was made before there were any
    with pytest.raises(DataError, match="not those that were frozen"):
        version.rows_of(tmp_path, first, "train")


def test_differences_name_added_removed_changed_and_moved_rows():
    better = row("question number 1", "a better answer", 1)
    found = version.diff({"train": ROWS[:3], "test": ROWS[3:4]}, {"train": [better, *ROWS[2:4]], "test": [ROWS[5]]})
    assert [(one.origin, one.after) for one in found.added] == [("f:5", ROWS[5])]
    assert [(one.origin, one.before) for one in found.removed] == [("f:0", ROWS[0])]
    assert [(one.before, one.after) for one in found.changed] == [(ROWS[1], better)]
    assert found.moved == [("f:3", "test", "train")]


def test_verdicts_survive_a_crash_and_the_last_word_counts(tmp_path):
    path = tmp_path / "reviews.jsonl"
    append(path, Verdict(row="r1", annotator="ann", action="accept"))
    with path.open("ab") as stream:
        stream.write(b'{"row":"r2","annot')
    assert len(verdicts(path)) == 1
    append(path, Verdict(row="r1", annotator="ann", action="reject", comment="wrong"))
    assert [(one.row, one.action) for one in verdicts(path)] == [("r1", "reject")]
    with pytest.raises(UsageError, match="an answer with 'edit'"):
        append(path, Verdict(row="r1", annotator="ann", action="edit"))
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(StoreError, match=r"reviews\.jsonl:1"):
        verdicts(path)
    assert verdicts(tmp_path / "none.jsonl") == []


def test_reviews_change_rows_by_majority_and_are_in_the_ledger():
    def said(number, who, action, answer=None, created=1.0):
        return Verdict(
            row=ROWS[number].id, annotator=who, action=action, answer=answer, created=created, comment="c" if action == "reject" else ""
        )

    given = [
        said(0, "a", "reject"), said(0, "b", "reject"), said(0, "c", "accept"),
        said(1, "a", "edit", "one"), said(1, "b", "edit", "two", 2.0),
        said(2, "a", "reject"), said(2, "b", "accept"),
    ]  # fmt: skip
    ledger = ledger_of(ROWS)
    left = apply(ROWS, "review", reviewed(given), ledger)
    assert [one.origin for one in left] == ["f:1", "f:2", "f:3", "f:4", "f:5"]
    assert (left[0].answer, ledger.find("f:1")[0].reason) == ("two", "edited by b")
    assert ledger.find("f:0")[0].reason == "rejected by a, b: c; c"
    assert [one.origin for one in waiting(ROWS, given, "a", first=[ROWS[5].id])] == ["f:5", "f:3", "f:4"]
    found = agreement(given)
    assert found["krippendorff_alpha"].low <= found["krippendorff_alpha"].estimate <= 1
    two = agreement([one for one in given if one.annotator != "c"])
    assert set(two) == {"krippendorff_alpha", "cohen_kappa"}
    with pytest.raises(DataError, match="no row was judged by two"):
        agreement(given[:1])


def test_what_to_label_next_is_uncertain_and_different():
    vectors = np.array([[1, 0], [1, 0.01], [0, 1], [0, 1.0], [1, 1]])
    known = np.array([[1.0, 0.0]])
    found = choose([""] * 5, 3, known=["k"], vectors=(vectors, known))
    assert [one.row for one in found] == [2, 4, 1]
    weighted = choose([""] * 5, 1, known=["k"], vectors=(vectors, known), uncertainty=[1, 1, 0.1, 0.9, 0.5])
    assert (weighted[0].row, weighted[0].uncertainty, weighted[0].distance) == (3, 0.9, pytest.approx(1.0))
    by_words = choose(["loan rate bank", "loan rate bank", "dog cat fish", "dog cat cow"], 2, known=["loan rate bank"])
    assert by_words[0].row in (2, 3)
    assert uncertainty_of([[0.0, 0.0], [np.log(0.5)] * 3, []]) == pytest.approx([0.0, 0.5, 1.0])
    with pytest.raises(ConfigError, match="no number from 0 to 1"):
        choose(["a"], 1, uncertainty=[2.0])
    assert choose([], 3) == []


class Rules:
    """A teacher that follows rules: real answers, no weights."""

    name, digest = "rules", "1"

    def answer(self, prompts, sampling, on_answer=None):
        return [self.one(prompt.messages[-1].text, sampling.seed + i) for i, prompt in enumerate(prompts)]

    def one(self, text, seed):
        rng = random.Random(seed)
        words = " ".join(rng.choices([f"w{i}" for i in range(500)], k=8))
        reply = {"question": f"what of {words}?", "answer": f"it is {words}"}
        if text.startswith("Document:"):
            quote = "not in there" if "2 of" in text else "the  NOTICE period is\nten days"
            reply = {"question": f"how long {words}?", "answer": "ten days", "quote": quote}
        elif text.startswith("List"):
            reply = {"items": [f"part {seed} a", f"part {seed} b", f"part {seed} b"]}
        said = "no idea" if seed == 3 and "examples of a task" in text else f"Sure: {json.dumps(reply)} done"
        return Answer(text=said, prompt_tokens=10, completion_tokens=5)


def test_rows_from_seeds_carry_where_they_come_from_and_what_they_cost():
    settings = synth.Synth(batch=4, usd_in=1.0, usd_out=2.0)
    requests = synth.from_seeds(ROWS, 10, settings)
    told = []
    made = synth.make(requests, Rules(), settings, seeds=ROWS, system="Be brief.", progress=lambda *now: told.append(now))
    assert (made.asked, len(made.rows), [reason for reason, _ in made.refused]) == (10, 9, ["no JSON object in the answer"])
    first = made.rows[0]
    assert first.origin.startswith("synthetic:rules:")
    assert first.meta["method"] == "seeds"
    assert set(first.meta["seeds"]) <= {one.id for one in ROWS}
    assert first.messages[0].text == "Be brief."
    assert made.usd == pytest.approx((100 * 1 + 50 * 2) / 1e6)
    assert told == [(4, 10, pytest.approx(8e-5)), (8, 10, pytest.approx(16e-5)), (10, 10, pytest.approx(2e-4))]
    assert synth.estimate(requests, settings)["usd"] > made.usd
    with pytest.raises(ConfigError, match="no seeds"):
        synth.from_seeds([], 1, settings)


def test_repeats_leaks_and_poor_rows_are_refused():
    settings = synth.Synth(batch=4)
    requests = synth.from_seeds(ROWS, 4, settings)
    clean = synth.make(requests[:3], Rules(), settings).rows
    again = synth.make(requests[:3], Rules(), settings, avoid=[clean[0]], judge=lambda one: None if one == clean[1] else 0.9)
    assert [one.id for one in again.rows] == [clean[2].id]
    assert [reason.split(" ")[0] for reason, _ in again.refused] == ["Jaccard", "the"]
    twice = synth.make([requests[0], *requests[1:3]], Rules(), msgspec.structs.replace(settings, batch=1, seed=0), seeds=[])
    assert len(twice.rows) + len(twice.refused) == 3


def test_documents_give_spans_that_are_there():
    text = "First words. " * 30 + "Here the notice period is ten days. End."
    requests = synth.from_documents([("contract", text)], each=2, chars=10_000)
    made = synth.make(requests, Rules(), synth.Synth())
    assert [reason for reason, _ in made.refused] == ["the quote is not in the document"]
    start, end = made.rows[0].meta["span"]
    assert text[start:end] == "the notice period is ten days"
    long = synth.from_documents([("contract", text)], each=1, chars=100)
    assert "".join(one.document for one in long) == text
    assert [text[one.meta["offset"] :][:5] for one in long] == [one.document[:5] for one in long]


def test_topics_evolution_and_preferences():
    settings = synth.Synth(seed=5)
    requests = synth.from_topics("loans", Rules(), settings, breadth=2, depth=2, each=1)
    assert [one.meta["topic"][0] for one in requests] == ["loans"] * 4
    with pytest.raises(DataError, match="named no parts"):
        synth.from_topics("loans", EchoModel(), settings)
    evolved = synth.evolve(ROWS, settings)
    assert {one.meta["way"] for one in evolved} <= set(synth.EVOLUTIONS)
    pairs, refused = synth.preferences([*ROWS[:2], row("same", "same")], EchoModel(), settings)
    assert [(one.preferred.text, one.non_preferred.text) for one in pairs] == [(f"answer {i}", f"question number {i}") for i in range(2)]
    assert refused == [("the weaker model gave the same answer", "same")]


def test_an_import_is_the_version_that_freezing_its_rows_would_make(tmp_path):
    lines = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(50)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"messages": []}])))
    desk, source = Datasets.open(tmp_path / "tunesmith.yaml", Silent()), Source(path=str(tmp_path / "rows.jsonl"))
    kept, found = desk.keep([source], max_invalid=0.1, note="first")
    held = collect(source, max_invalid=0.1, named=desk.named)
    frozen = version.freeze(tmp_path / "other", {"all": held.rows}, kept.recipe, ledger=held.ledger)
    assert (kept.id, kept.counts, kept.digests, kept.fates) == (frozen.id, frozen.counts, frozen.digests, frozen.fates)
    assert (found.inputs, found.invalid, kept.note) == (51, 1, "first")
    assert version.rows_of(desk.root, kept, "all") == held.rows
    assert desk.keep([source], max_invalid=0.1)[0] == kept
    assert sorted(path.name for path in desk.root.iterdir()) == sorted([kept.id, "rejects.jsonl"])
    with pytest.raises(DataError, match="cannot be used"):
        desk.keep([source])
    assert [one.id for one in version.log(desk.root)] == [kept.id]


def test_a_difference_is_one_of_content_wherever_rows_stand():
    old = [row(f"q{i}", place=i) for i in range(40)]
    shifted = [row("new", place=0), *(msgspec.structs.replace(one, origin=f"f:{i + 1}") for i, one in enumerate(old))]
    found = version.diff({"all": old}, {"all": shifted})
    assert ([one.after for one in found.added], found.removed, found.changed, found.moved) == ([shifted[0]], [], [], [])
    renamed = [msgspec.structs.replace(one, origin=one.origin.replace("f:", "g:")) for one in old]
    assert version.diff({"all": old}, {"all": renamed}) == version.VersionDifference([], [], [], [])
    twice = [*old, msgspec.structs.replace(old[3], origin="f:99")]
    assert [one.origin for one in version.diff({"all": old}, {"all": twice}).added] == ["f:99"]
    edited = [*old[:5], msgspec.structs.replace(old[5], meta={"seen": 1}), *old[6:]]
    assert [one.origin for one in version.diff({"all": old}, {"all": edited}).changed] == [old[5].origin]
    assert version.diff({"train": old[:20], "test": old[20:]}, {"train": [*old[:20], old[30]], "test": [*old[20:30], *old[31:]]}).moved == [
        (old[30].origin, "test", "train")
    ]
