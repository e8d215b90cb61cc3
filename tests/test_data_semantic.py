"""Held-out rows that say the same as training rows in other words: measured, told and refused; and why not, where it is not measured."""

import json

import numpy as np
import pytest

from tunesmith.cli.data_work import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import ConfigError, GateRefused
from tunesmith.core.types import Example, Message, example_id
from tunesmith.data.semantic import Overlap, SemanticLeakage, gate_overlap, overlaps
from tunesmith.data.split import Splits
from tunesmith.flow.datasets.leaks import meaning
from tunesmith.models.catalog import Catalog

MEANINGS = ("money back refund", "opening hours open", "parcel lost delivery", "password login account")


def row(question, place):
    turns = (Message(role="user", content=question), Message(role="assistant", content="See our page."))
    return Example(id=example_id(turns), messages=turns, origin=f"f:{place}")


def by_words(texts):
    """A real encoder of four meanings: which of their words a text has; the last axis is what all texts share."""
    counts = [[sum(word in text for word in kind.split()) for kind in MEANINGS] + [0.01] for text in texts]
    return np.array(counts, dtype=np.float64)


TRAIN = [row("how do I get my refund", 1), row("when do you open", 2), row("my parcel is lost", 3)]
ASKED = [row("I want my money back", 4), row("reset the password", 5)]


def test_only_rows_that_mean_the_same_are_found_with_their_partner():
    found = overlaps(TRAIN, {"test": ASKED, "validation": []}, SemanticLeakage(), by_words, by_words)
    assert found["test"] == Overlap(looked_at=2, found=1, threshold=0.95, examples=(("f:4", "f:1", 1.0),))
    assert found["validation"].share == 0
    assert overlaps([], {"test": ASKED}, SemanticLeakage(), by_words, by_words)["test"].found == 0
    assert overlaps(TRAIN, {"test": ASKED}, SemanticLeakage(most=1), by_words, by_words)["test"].looked_at == 1
    with pytest.raises(ConfigError, match="above 0 and up to 1"):
        overlaps(TRAIN, {"test": ASKED}, SemanticLeakage(threshold=0), by_words, by_words)


def test_rows_with_other_numbers_do_not_say_the_same():
    taught = [row("how much is a refund of 12 and 7", 1)]
    asked = [row("money back of 12 and 8, how much?", 2), row("money back of 7 and 12, how much?", 3)]
    found = overlaps(taught, {"test": asked}, SemanticLeakage(), by_words, by_words)["test"]
    assert (found.found, found.examples[0][0]) == (1, "f:3")


@pytest.mark.slow
def test_candidates_are_kept_across_blocks_of_training_rows():
    many = [row(f"the login of account {i}", i) for i in range(17_000)]
    found = overlaps([*many, row("refund", 17_001)], {"test": [row("money back", 0)]}, SemanticLeakage(), by_words, by_words)
    assert found["test"].examples == (("f:0", "f:17001", 1.0),)


def test_above_the_limit_the_gate_says_no():
    measured = overlaps(TRAIN, {"test": ASKED}, SemanticLeakage(), by_words, by_words)["test"]
    gate_overlap(measured, SemanticLeakage(), "test")  # one of two rows proves nothing
    gate_overlap(Overlap(looked_at=0, found=0, threshold=0.95), SemanticLeakage(max_share=0), "test")
    with pytest.raises(GateRefused, match=r"1 of 2 test rows say the same .*50.0%.*f:4 ≈ f:1"):
        gate_overlap(measured, SemanticLeakage(max_share=0.05), "test")


def test_what_is_not_measured_is_said(tmp_path):
    parts = Splits(TRAIN, [], ASKED, {})
    assert meaning(parts, SemanticLeakage(action="off"), Catalog(tmp_path))["test"].why == "split.semantic.action is off"
    assert "not on this machine yet; --split.semantic.action require" in meaning(parts, SemanticLeakage(), Catalog(tmp_path))["test"].why


@pytest.mark.slow
def test_paraphrases_leak_and_the_command_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Catalog().encoder("minilm-l6-v2")
    things = ["parcel", "invoice", "password", "refund", "voucher", "battery", "contract", "router", "receipt", "warranty"]
    places = ["office", "kitchen", "warehouse", "airport", "garage"]
    asked = [(f"Where can I find the {thing} for the {place}?", f"Where do I find the {thing} for the {place}?") for thing in things for place in places]  # fmt: skip
    lines = [json.dumps({"prompt": q, "response": "In the cupboard of the hall."}) for both in asked for q in both]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    words = ["split", "--data", "rows.jsonl", "--split.by", "random", "--split.leakage_threshold", "1", "--split.max_leakage", "1"]
    assert guarded(app, words) == 3
    assert "say the same as a training row in other words" in capsys.readouterr().err
    assert not (tmp_path / ".tunesmith" / "datasets").exists() or not list((tmp_path / ".tunesmith" / "datasets").glob("*/ledger.jsonl"))
    assert guarded(app, [*words, "--split.semantic.max_share", "1", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["meaning"]["test"]
    assert measured["share"] > 0.5
    assert measured["looked_at"] >= 10
