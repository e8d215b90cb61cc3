"""Runs that go wrong or are told to stop: they fall back at a lower rate, stop early, pause, and still end in the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from train_parts import adapter_bytes, make_rows, tiny_base, user_plan
from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.train.checkpoint import TrainingState
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter
from tunesmith.train.recovery import Fall, falls, rate_factor, spike_limit, watched
from tunesmith.train.run import Paused


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def mostly_easy():
    """Sixty copies of one easy row, and one that asks for other tokens after the same prompt."""
    easy = make_rows(1)[0]
    odd = easy.ids.copy()
    odd[-5:-1] = (odd[-5:-1] + 31) % 90 + 4
    rows = [replace(easy, example_id=f"easy-{i}") for i in range(60)]
    return [*rows, replace(easy, example_id="odd", ids=odd.astype(np.int32))]


SPIKY = {
    "epochs": 1,
    "batch_size": 1,
    "learning_rate": 2e-2,
    "schedule": "constant",
    "checkpoint_every": 5,
    "threads": 1,
    "lanes": 1,
    "spike": 4.0,
}


@pytest.mark.slow
def test_a_loss_that_jumps_sends_the_run_back_at_half_the_rate_and_pausing_changes_nothing(base, tmp_path):
    plan = user_plan(**SPIKY, seed=0, adapter=Adapter(r=4, dropout=0.1))
    events: list[dict] = []
    result = train(plan, mostly_easy(), base=base, out=tmp_path / "whole", on_event=events.append)
    back = [e for e in events if e["event"] == "fell_back"]
    failed = back[0]["failed_step"]
    assert failed > 8
    assert [e["rate_factor"] for e in back] == [0.5, 0.25]
    assert all(e["failed_step"] == failed and e["step"] < failed - 1 and e["step"] % 5 == 0 for e in back)
    assert [e["step"] for e in events if e["event"] == "spike"] == [failed]  # no recovery is left: said, and gone on
    assert (result.recoveries, result.steps) == (2, 61)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "events.jsonl").read_text().splitlines()]
    rates = {e["step"]: e["learning_rate"] for e in lines if e["event"] == "step"}
    assert sorted(rates) == list(range(1, 62))
    assert rates[back[1]["step"]] == pytest.approx(2e-2)
    assert rates[back[1]["step"] + 1] == pytest.approx(5e-3)
    assert [e["why"] for e in lines if e["event"] == "fell_back"] == [e["why"] for e in back]

    count = 0

    def should_stop():
        nonlocal count
        count += 1
        return count % 7 == 0

    pauses: list[int] = []
    while True:
        try:
            train(plan, mostly_easy(), base=base, out=tmp_path / "paused", should_stop=should_stop)
            break
        except Paused as paused:
            pauses.append(paused.step)
    assert len(pauses) >= 8
    assert (tmp_path / "paused" / "checkpoints" / f"checkpoint-{pauses[-1]}").is_dir()
    assert falls(tmp_path / "paused") == falls(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "paused") == adapter_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_a_loss_that_is_never_finite_ends_after_the_plans_recoveries(base, tmp_path):
    for recoveries in (0, 1):
        events: list[dict] = []
        plan = user_plan(learning_rate=1e30, recoveries=recoveries)
        with pytest.raises(TrainingError, match=f"loss nan .* at step 2, after {recoveries} recoveries"):
            train(plan, make_rows(8), base=base, out=tmp_path / str(recoveries), on_event=events.append)
        assert sum(e["event"] == "fell_back" for e in events) == recoveries


def test_the_rate_of_a_step_follows_from_the_falls_before_it():
    fallen = (Fall(failed_step=9, back_to=6, why=""), Fall(failed_step=8, back_to=3, why=""))
    assert [rate_factor(fallen, step) for step in (1, 3, 4, 6, 7, 99)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def first_spike(losses, deviations=8.0):
    state = TrainingState(step=0, identity="")
    for step, loss in enumerate(losses, 1):
        if loss > spike_limit(state.recent, deviations):
            return step
        state = watched(state, float(loss))
    return None


def test_a_spike_is_seen_early_although_the_loss_still_falls():
    """Mean and variance of all losses so far would set the limit to 9 and more here: the fall itself widens them."""
    rng = np.random.default_rng(0)
    falling = 5 * np.exp(-np.arange(60) / 10) + 0.5 + rng.normal(0, 0.05, 60)
    assert first_spike(falling) is None
    for step in (10, 15, 25, 60):
        losses = falling.copy()
        losses[step - 1] = 6.5
        assert first_spike(losses) == step


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["normal", "laplace", "lognormal"])
def test_noise_is_no_spike(draw):
    """500 runs of 200 steps of noise around 2 nats, without trend: at most one in a hundred has a step that counts as a spike."""
    rng = np.random.default_rng(1)
    noise = {
        "normal": lambda: rng.normal(2, 0.5, 200),
        "laplace": lambda: rng.laplace(2, 0.2, 200),
        "lognormal": lambda: rng.lognormal(np.log(2), 0.25, 200),
    }[draw]
    assert sum(first_spike(noise()) is not None for _ in range(500)) <= 5


def test_a_jump_below_one_nat_and_the_first_steps_are_no_spikes():
    assert first_spike([1.0] * 30 + [1.99]) is None
    assert first_spike([1.0] * 30 + [2.01]) == 31
    assert first_spike([1.0] * 7 + [99.0]) is None


@pytest.mark.slow
def test_early_stopping_keeps_the_best_and_says_so(base, tmp_path):
    events: list[dict] = []
    plan = user_plan(epochs=20, learning_rate=5e-2, patience=3, eval_every=1, schedule="constant", batch_size=8)
    result = train(plan, make_rows(16), make_rows(6, seed=5), base=base, out=tmp_path, on_event=events.append)
    losses = {e["step"]: e["valid_loss"] for e in events if e["event"] == "evaluation" and e["step"]}
    assert result.early_stopped
    assert result.best_step is not None
    assert result.steps == result.best_step + 3 < 40
    assert losses[result.best_step] == min(losses.values()) == result.valid_loss
    assert [e["best_step"] for e in events if e["event"] == "early_stopped"] == [result.best_step]
    kept = (tmp_path / "checkpoints" / f"checkpoint-{result.best_step}" / "adapter_model.safetensors").read_bytes()
    assert kept == adapter_bytes(tmp_path)
    assert result.trained_tokens == result.steps * 8 * 4  # every row trains four tokens
    (tmp_path / "result.json").unlink()  # killed just before it was done: nothing is trained again
    events.clear()
    again = train(plan, make_rows(16), make_rows(6, seed=5), base=base, out=tmp_path, on_event=events.append)
    assert again == result
    assert not [e for e in events if e["event"] == "step"]


def test_patience_without_validation_rows_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="patience needs validation rows"):
        train(user_plan(patience=2), make_rows(4), base=base, out=tmp_path)
