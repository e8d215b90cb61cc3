"""What is known before spending: who cannot meet what is asked, and why; what the base lacks, from two columns of scores."""

from __future__ import annotations

import re
from typing import get_args

import numpy as np
import pytest

from tunesmith.core.errors import ConfigError, DataError, UsageError
from tunesmith.decide.records import KINDS, ArmKind
from tunesmith.decide.rules import Needs, UnbuiltArm, cut, guidance, probe, rules

ALL = [UnbuiltArm(name=kind, kind=kind) for kind in KINDS]


def cut_names(needs: Needs, arms: list[UnbuiltArm] = ALL) -> set[str]:
    return {each.name for each in cut(arms, needs)}


def test_unanswered_questions_cut_nothing() -> None:
    assert cut(ALL, Needs()) == ()
    assert guidance(Needs()) == ()
    assert set(KINDS) == set(get_args(ArmKind))


def test_each_hard_constraint_cuts_whom_it_must_and_says_why() -> None:
    looks_up = {"retrieval", "fine-tuned + retrieval"}
    assert cut_names(Needs(fresh_facts=True)) == set(KINDS) - looks_up
    assert cut_names(Needs(sources=True)) == set(KINDS) - looks_up
    assert cut_names(Needs(documents=False, rows=0)) == {"few-shot", "fine-tuned", "fine-tuned + retrieval", "retrieval", "distilled"}
    assert cut_names(Needs(documents=False, rows=300)) == set()  # rows can be looked up too
    assert cut_names(Needs(rows=9)) == {"fine-tuned", "fine-tuned + retrieval", "distilled"}
    assert cut_names(Needs(rows=10)) == set()
    (found,) = cut([UnbuiltArm(name="hosted", kind="larger model", private=False)], Needs(private=True))
    assert found.rule == "privacy"
    heavy = [UnbuiltArm(name="big", kind="larger model", memory_bytes=9_000_000_000, least_latency_s=2.0)]
    assert "9e+09 bytes of memory" in cut(heavy, Needs(memory_bytes=8_000_000_000))[0].reason
    assert cut(heavy, Needs(latency_p95_s=1.5))[0].rule == "latency"
    assert cut(heavy, Needs(latency_p95_s=2.5)) == ()


def test_every_rule_and_figure_has_a_source_and_asks_what_there_is_to_ask() -> None:
    for line in (*rules().cuts, *rules().guidance):
        assert re.fullmatch(r"arXiv \d{4}\.\d{5}|https://\S+|by construction", line.source)
        assert {key.removesuffix("_below") for key in line.when} <= set(Needs.__struct_fields__)
    assert [line.source for line in guidance(Needs(form=True, documents=True))] == ["arXiv 2405.00732", "arXiv 2401.08406"]


def scores(rate: float, n: int = 400, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).permutation(n) < rate * n).astype(float)


@pytest.mark.parametrize(
    ("closed", "given", "lacks"),
    [
        (0.3, 0.95, "knowledge"),
        (0.3, 0.6, "both"),
        (0.4, 0.41, "behaviour"),
        (0.95, 0.96, "nothing"),
        (0.3, 0.88, "cannot tell"),  # 0.9 is enough, and that is within the interval
        (0.4, 0.5, "cannot tell"),  # 0.1 is a help, and that is within the interval
    ],
)
def test_a_probe_tells_knowledge_from_behaviour(closed: float, given: float, lacks: str) -> None:
    found = probe(scores(closed), scores(given), enough=0.9, margin=0.1)
    assert found.lacks == lacks
    assert f"{found.closed.estimate:.3g} without" in found.sentence


def test_ten_rows_tell_nothing() -> None:
    assert probe(scores(0.5, 10), scores(0.7, 10), enough=0.9, margin=0.1).lacks == "cannot tell"


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UsageError, match="enough is 90"):
        probe([0.0, 1.0], [1.0, 1.0], enough=90, margin=0.1)
    with pytest.raises(DataError, match="missing"):
        probe([0.0, float("nan")], [1.0, 1.0], enough=0.9, margin=0.1)
    with pytest.raises(ConfigError, match=r"needs\.rows"):
        Needs(rows=-1)
