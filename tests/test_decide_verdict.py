"""The decision as a function of measured arms: which arm, how sure, why not the others, and what would change it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.decide.race import Race
from tunesmith.decide.records import Constraints, Decision, MeasuredArm
from tunesmith.decide.verdict import cheapest_first, decide


def arm(name: str, right: float, rank: int, rows: int = 1000, seed: int = 0, **more: object) -> MeasuredArm:
    """Right on `right` of the rows; arms of one seed are right on the same rows as far as they can."""
    hard = np.random.default_rng(seed).permutation(rows) / rows
    kinds = ("zero-shot", "prompt", "few-shot", "retrieval", "fine-tuned", "larger model")
    return MeasuredArm(name=name, kind=kinds[rank], scores=tuple((hard < right).astype(float).tolist()), simpler_rank=rank, **more)  # type: ignore[arg-type]


def standing(decision: Decision, name: str) -> str:
    return next(each.standing for each in decision.arms if each.name == name)


def test_the_cheapest_arm_that_is_within_the_margin_of_the_best() -> None:
    """.50, .79, .80, .805: the second suffices at a margin of .05, whatever the order in which the arms come."""
    arms = [arm("zero", 0.5, 0), arm("prompt", 0.79, 1), arm("shots", 0.80, 2), arm("tuned", 0.805, 4)]
    decision = decide(arms, 0.05)
    assert (decision.chosen, decision.best, decision.sure, decision.rows_needed) == ("prompt", "tuned", True, None)
    assert [standing(decision, a.name) for a in arms] == ["worse", "chosen", "within the margin", "within the margin"]
    assert decision == decide(arms[::-1], 0.05)
    assert "the cheapest arm that is within 0.05 of the best, tuned (0.805)" in decision.sentence
    assert any("zero would be shown to suffice" in line for line in decision.changes)
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision


def test_a_margin_that_these_rows_cannot_show_is_told_with_the_rows_that_would() -> None:
    """Two arms that are right on different halves, 100 rows: neither is shown to be within .05; the decision says so and plans."""
    a, b = arm("prompt", 0.6, 1, 100, 1), arm("tuned", 0.62, 4, 100, 2)
    decision = decide([a, b], 0.05)
    assert not decision.sure
    assert decision.chosen == "tuned"
    assert standing(decision, "prompt") == "cannot tell"
    assert decision.rows_needed is not None
    assert f"plan about {decision.rows_needed:,} rows" in decision.sentence
    far = decide([arm("prompt", 0.6, 1, 100, 1), arm("tuned", 0.95, 4, 100, 2)], 0.05)
    assert (far.chosen, far.sure, standing(far, "prompt")) == ("tuned", True, "worse")


def test_constraints_come_before_scores_and_say_what_they_cost() -> None:
    arms = [arm("prompt", 0.6, 1, latency_p95_s=0.4), arm("hosted", 0.9, 5, latency_p95_s=0.9, private=False), arm("shots", 0.7, 2)]
    open_ = decide(arms[:2], 0.03)
    assert open_.chosen == "hosted"
    kept = decide(arms[:2], 0.03, Constraints(latency_p95_s=0.5, private=True))
    assert (kept.chosen, standing(kept, "hosted")) == ("prompt", "breaks a constraint")
    assert kept.sentence == "prompt (0.6) is the only arm that keeps the constraints."
    assert kept.changes == (
        "hosted would be chosen, but latency at p95 in seconds is 0.9, at most 0.5 allowed; requests leave your machines, which is not allowed",
    )
    unknown = decide(arms, 0.03, Constraints(latency_p95_s=0.5))
    assert standing(unknown, "shots") == "breaks a constraint"
    nobody = decide(arms, 0.03, Constraints(memory_bytes=1, least_score=0.99))
    assert nobody.chosen is None
    assert "at least 0.99 wanted" in nobody.sentence
    with pytest.raises(ConfigError, match=r"constraints.latency_p95_s"):
        Constraints(latency_p95_s=-1)


def test_one_arm_beside_others_that_were_not_measured_is_no_decision() -> None:
    alone = decide([arm("zero-shot", 0.6, 0)], 0.03, untried=["prompt", "fine-tuned"])
    assert (alone.chosen, alone.sure) == ("zero-shot", False)
    assert alone.sentence == (
        "Cannot tell: zero-shot (0.6) is the only arm that was measured, so nothing was compared. Not measured: prompt, fine-tuned."
    )
    assert decide([arm("zero-shot", 0.6, 0)], 0.03).sure
    two = decide([arm("zero-shot", 0.1, 0), arm("prompt", 0.9, 1)], 0.03, untried=["fine-tuned"])
    assert (two.chosen, two.sure) == ("prompt", True)
    assert two.sentence.endswith(" Not measured: fine-tuned.")


def test_the_order_is_that_of_the_bill_where_all_prices_are_known() -> None:
    """Tuned costs 30 to build and .50 a thousand, shots nothing and 2.50: tuned is cheaper beyond 15,000 requests."""
    shots = arm("shots", 0.8, 2, build_usd=0.0, usd_per_1000=2.5)
    tuned = arm("tuned", 0.8, 4, build_usd=30.0, usd_per_1000=0.5)
    assert cheapest_first([tuned, shots], 10_000) == ["shots", "tuned"]
    assert cheapest_first([tuned, shots], 20_000) == ["tuned", "shots"]
    assert cheapest_first([tuned, replace(shots, usd_per_1000=None)], 20_000) == ["shots", "tuned"]
    decision = decide([shots, tuned], 0.05, requests=10_000)
    assert (decision.chosen, decision.arms[0].usd) == ("shots", 25.0)
    assert "from 15,000 requests on, tuned is the cheapest of those that suffice" in decision.changes


def test_a_race_decides_and_its_reasons_are_told() -> None:
    arms = [arm("zero", 0.4, 0, seed=1), arm("prompt", 0.7, 1, seed=2), arm("tuned", 0.72, 4, seed=3)]
    race, scores = Race([a.name for a in arms], 0.05, rows=1000), {a.name: a.scores for a in arms}
    for rows in race.shards(50):
        if not race.decided:
            race.add({name: scores[name][rows.start : rows.stop] for name in race.open})
    asked = [replace(a, scores=a.scores[: race.dropped[a.name].rows if a.name in race.dropped else race.asked]) for a in arms]
    decision = decide(asked, 0.05, race=race)
    assert (decision.chosen, decision.sure) == (race.outcome().chosen, race.outcome().sure)
    assert race.dropped["zero"].reason in decision.arms[0].reason
    assert decision.arms[0].rows < 400
    barred = decide([replace(a, private=a.name != "tuned") for a in asked], 0.05, Constraints(private=True), race=race)
    assert barred.chosen == "prompt"  # the race was run with an arm that may not be: its word does not count


def test_groups_of_rows_make_the_intervals_wider() -> None:
    a, b = arm("prompt", 0.7, 1, 300, 1), arm("tuned", 0.7, 4, 300, 2)
    groups = tuple(f"g{i // 30}" for i in range(300))
    order = np.argsort(np.subtract(a.scores, b.scores), kind="stable")
    a, b = (replace(x, scores=tuple(np.array(x.scores)[order].tolist())) for x in (a, b))
    alone, together = decide([a, b], 0.2), decide([replace(a, clusters=groups), replace(b, clusters=groups)], 0.2)
    assert alone.sure
    assert not together.sure


def test_what_is_no_decision_is_refused() -> None:
    with pytest.raises(UsageError, match="distinct names"):
        decide([arm("a", 0.5, 0), arm("a", 0.6, 1)], 0.05)
    with pytest.raises(UsageError, match="margin of 0"):
        decide([arm("a", 0.5, 0)], 0.0)
    with pytest.raises(UsageError, match="one or more"):
        decide([], 0.05)
