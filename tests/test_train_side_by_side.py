"""Trainings side by side on one base give what each gives alone, and one that fails or stops leaves the others alone."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from train_parts import make_rows, tiny_base, user_plan
from tunesmith.core.errors import TrainingError
from tunesmith.train import side_by_side
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter
from tunesmith.train.run import Paused

PLANS = {
    "small": user_plan(epochs=1, adapter=Adapter(r=2, alpha=2.0), batch_size=2, micro_batch_tokens=120),
    "large": user_plan(epochs=1, adapter=Adapter(r=16, rslora=True), learning_rate=2e-3, seed=3),
    "some layers": user_plan(epochs=1, adapter=Adapter(r=4, targets=("q_proj", "down_proj")), batch_size=6, warmup_ratio=0.0),
    "drops": user_plan(epochs=1, adapter=Adapter(r=4, dropout=0.3), lanes=1),
    "drops more": user_plan(epochs=1, adapter=Adapter(r=8, dropout=0.5), schedule="linear", weight_decay=0.1),
    "dora": user_plan(epochs=1, adapter=Adapter(r=4, dora=True)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def losses(out: Path) -> list[float]:
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [event[key] for event in events for key in ("train_loss", "valid_loss", "grad_norm") if key in event]


@pytest.mark.slow
def test_each_of_six_unlike_adapters_is_what_it_is_alone(base, tmp_path, monkeypatch):
    rows, held_out, members = make_rows(12), make_rows(3, seed=9), []
    shared = side_by_side.Conductor.gradients
    monkeypatch.setattr(side_by_side.Conductor, "gradients", lambda self, requests: members.append(len(requests)) or shared(self, requests))
    works = [partial(train, plan, rows, held_out, base=base, out=tmp_path / name) for name, plan in PLANS.items()]
    together = side_by_side.side_by_side(works)
    assert members[:2] == [3, 2], "those without dropout in one pass, those with it in another, DoRA for itself"
    for (name, plan), result in zip(PLANS.items(), together, strict=True):
        assert not isinstance(result, Exception), result
        alone = train(plan, rows, held_out, base=base, out=tmp_path / "alone" / name)
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "alone" / name), rel=1e-6, abs=1e-6)
        mine, own = (load_file(Path(each.artifact) / "adapter_model.safetensors") for each in (result, alone))
        assert mine.keys() == own.keys()
        assert max(float((mine[key] - own[key]).abs().max()) for key in own) < 1e-6
        assert result.valid_loss == pytest.approx(alone.valid_loss, rel=1e-6)


@pytest.mark.slow
def test_one_that_fails_and_one_that_pauses_leave_the_third_alone(base, tmp_path):
    rows, plan, seen = make_rows(8), PLANS["large"], list[dict]()
    tell = {
        "fails": lambda event: 1 / 0 if event["event"] == "step" else None,
        "goes on": seen.append,
        "stops": lambda event: None,
    }
    works = [partial(train, plan, rows, base=base, out=tmp_path / name, on_event=told) for name, told in tell.items()]
    works[2].keywords["should_stop"] = lambda: True
    fails, goes_on, stops = side_by_side.side_by_side(works)
    assert isinstance(fails, ZeroDivisionError)
    assert isinstance(stops, Paused)
    assert goes_on.steps == 2
    resumed = train(plan, rows, base=base, out=tmp_path / "stops")
    mine, own = (load_file(Path(each.artifact) / "adapter_model.safetensors") for each in (resumed, goes_on))
    assert all(torch.allclose(mine[key], own[key], rtol=0, atol=1e-6) for key in own), "paused beside others, and alone to the end"
    (folder,) = side_by_side.side_by_side([partial(train, PLANS["small"], rows, base=base, out=tmp_path / "stops")])
    assert isinstance(folder, TrainingError)
