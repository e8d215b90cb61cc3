"""Arms side by side: simulated arms whose truth is known, in random order, dropped and decided early; what a race refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

from tunesmith.core.errors import DataError, UsageError
from tunesmith.decide.race import Race, asking_order


def answers(truths: list[float], rows: int, seed: int, alike: float = 0.6) -> dict[str, np.ndarray]:
    """Right or wrong, arms of one row being alike; cheapest arm first."""
    rng = np.random.default_rng(seed)
    hard = alike**0.5 * rng.normal(size=rows) + (1 - alike) ** 0.5 * rng.normal(size=(len(truths), rows))
    return {f"arm{i}": (row < ndtri(p)).astype(float) for i, (p, row) in enumerate(zip(truths, hard, strict=True))}


def run(race: Race, scores: dict[str, np.ndarray], size: int = 25) -> int:
    """Feed the race until it is decided; the answers that were asked for."""
    asked = 0
    for rows in race.shards(size):
        if race.decided:
            break
        asked += len(race.open) * len(rows)
        race.add({name: scores[name][rows.start : rows.stop] for name in race.open})
    assert race.decided
    return asked


def test_far_apart_arms_are_decided_early_with_the_reason_of_each() -> None:
    scores = answers([0.3, 0.75, 0.5, 0.74], 1000, 1)
    race = Race(list(scores), 0.05, rows=1000)
    asked = run(race, scores)
    assert race.outcome().chosen == "arm1"
    assert race.outcome().sure
    assert race.outcome().undecided == ()
    assert asked < 0.5 * 4 * 1000
    assert race.dropped["arm0"].why in ("worse", "cannot be shown")
    assert race.dropped["arm0"].rows < 150
    assert "arm2 is dearer and not better than arm1" in race.dropped["arm2"].reason


@pytest.mark.slow
@pytest.mark.parametrize("truths", [[0.6, 0.6, 0.6, 0.6], [0.6, 0.66, 0.5], [0.5, 0.62, 0.68, 0.7, 0.71]])
def test_the_chosen_arm_is_within_the_margin_however_often_one_looks(truths: list[float]) -> None:
    """Ties, an arm just beyond the margin, a ladder; looked at after every 20 rows."""
    wrong_when_sure = inside = 0
    for seed in range(12):
        scores = answers(truths, 400, seed)
        race = Race(list(scores), 0.05, rows=400)
        run(race, scores, 20)
        out = race.outcome()
        good = truths[int(out.chosen[3:])] >= max(truths) - 0.05
        inside += good
        wrong_when_sure += out.sure and not good
    assert inside >= 10
    assert wrong_when_sure <= 1


@pytest.mark.slow
def test_no_early_end_can_be_forced_by_looking_at_equal_arms() -> None:
    """An arm that is truly beyond the margin, looked at after every fourth row without a horizon: shown to be within it at most as often as said."""
    called = 0
    for seed in range(20):
        scores = answers([0.55, 0.65], 200, seed)
        race = Race(list(scores), 0.1, alpha=0.1)
        for row in range(0, 200, 4):
            if race.decided:
                break
            race.add({name: scores[name][row : row + 4] for name in race.open})
        called += race.outcome().chosen == "arm0" and race.outcome().sure
    assert called <= 5


def test_too_few_rows_are_no_decision_and_the_rest_is_not_asked() -> None:
    """Two arms with no difference, a margin that 300 rows cannot show: it ends before the last row, open, with the best guess."""
    scores = answers([0.6, 0.6], 300, 4, alike=0.2)
    race = Race(list(scores), 0.01, rows=300)
    asked = run(race, scores)
    out = race.outcome()
    assert not out.sure
    assert asked < 600
    assert "do not show" in out.reason


def test_groups_count_once_and_stay_whole() -> None:
    """Rows in groups of ten that say the same: no more is known after 300 rows than after 30 that stand alone."""
    alone = answers([0.55, 0.7], 30, 2)
    scores = {name: np.repeat(row, 10) for name, row in alone.items()}
    clusters = [f"g{i // 10}" for i in range(300)]
    in_groups, apart = Race(list(scores), 0.05, clusters=clusters), Race(list(scores), 0.05, rows=30)
    assert [len(rows) for rows in in_groups.shards(25)] == [20, 30, 20, 30, 20, 30, 20, 30, 20, 30, 20, 30]
    run(in_groups, scores, 300)
    run(apart, alone, 30)
    assert (in_groups.outcome().chosen, in_groups.outcome().sure) == (apart.outcome().chosen, apart.outcome().sure)
    with pytest.raises(DataError, match="group of row 15 is cut"):
        Race(list(scores), 0.05, clusters=clusters).add({name: row[:15] for name, row in scores.items()})
    order = asking_order(300, [i % 7 for i in range(300)], seed=1)
    assert sorted(order) == list(range(300))
    assert np.count_nonzero(np.diff([i % 7 for i in order])) == 6


def test_an_arm_can_be_withdrawn_and_what_was_said_because_of_it_is_forgotten() -> None:
    """Beside an arm that is always right, both others are surely not the best; without it nothing is sure of two that are alike."""
    scores = answers([0.74, 0.74, 0.5], 600, 3, alike=0.01) | {"arm2": np.ones(600)}
    race = Race(list(scores), 0.3, rows=600)
    race.add({name: row[:36] for name, row in scores.items()})
    assert race.open == ["arm0", "arm1", "arm2"]
    race.withdraw("arm2", "arm2 takes 3 s, 1 s allowed")
    assert not race.outcome().sure
    for rows in race.shards(36)[1:]:
        if race.decided:
            break
        race.add({name: scores[name][rows.start : rows.stop] for name in race.open})
    assert (race.outcome().chosen, race.outcome().sure) == ("arm0", True)
    assert race.dropped["arm2"].reason == "arm2 takes 3 s, 1 s allowed"
    with pytest.raises(UsageError, match="an arm that is still in"):
        race.withdraw("arm2", "again")


def test_what_a_race_refuses() -> None:
    with pytest.raises(UsageError, match="distinct names"):
        Race(["a", "a"], 0.05)
    with pytest.raises(UsageError, match="two or more"):
        Race(["a"], 0.05)
    with pytest.raises(UsageError, match="margin of 0"):
        Race(["a", "b"], 0.0)
    with pytest.raises(UsageError, match="do not stand together"):
        Race(["a", "b"], 0.05, clusters=["x", "y", "x"])
    race = Race(["a", "b"], 0.05, rows=4)
    with pytest.raises(UsageError, match="still in: a, b"):
        race.add({"a": [1.0]})
    with pytest.raises(DataError, match="as many for each arm"):
        race.add({"a": [1.0], "b": [1.0, 0.0]})
    with pytest.raises(DataError, match="missing"):
        race.add({"a": [1.0], "b": [float("nan")]})
    with pytest.raises(DataError, match="beyond the scale"):
        race.add({"a": [7.0], "b": [0.0]})
    with pytest.raises(DataError, match="5 rows"):
        race.add({"a": [1.0] * 5, "b": [0.0] * 5})
    race.add({"a": [1.0] * 4, "b": [0.0] * 4})
    with pytest.raises(UsageError, match="is decided"):
        race.add({"a": [1.0], "b": [0.0]})
