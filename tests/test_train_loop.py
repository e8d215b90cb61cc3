"""Whole runs on a tiny model: they learn, survive being killed, test their own artifact and refuse what is not theirs."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from train_parts import Stop, adapter_bytes, killed, make_rows, padded_loss, stopping_at, tiny_base, user_plan
from tunesmith.core.chat import Rendered
from tunesmith.core.errors import ConfigError, DataError, TrainingError
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter, ResolvedPlan
from tunesmith.train.trainer import rate_at, unlike

KILLED = """
from pathlib import Path
from train_parts import dying_at, make_rows, user_plan
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter

plan = user_plan(checkpoint_every=2, adapter=Adapter(r=4, dropout=0.2))
train(plan, make_rows(18), make_rows(4, seed=9), base=Path({base!r}), out=Path({out!r}), on_event=dying_at({at}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_bytes(base, tmp_path):
    plan = user_plan(checkpoint_every=2, adapter=Adapter(r=4, dropout=0.2))
    whole: list[dict] = []
    train(plan, make_rows(18), make_rows(4, seed=9), base=base, out=tmp_path / "whole", on_event=whole.append)
    out = tmp_path / "killed"
    for at in (4, 9, 3, 6):  # during the first steps, after a checkpoint, before the next one, near the end
        killed(KILLED.format(base=str(base), out=str(out), at=at))
    events: list[dict] = []
    train(plan, make_rows(18), make_rows(4, seed=9), base=base, out=out, on_event=events.append)
    assert events[0]["resumed"]
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    steps = [(e["step"], e["train_loss"]) for e in lines if e["event"] == "step"]
    assert steps == [(e["step"], e["train_loss"]) for e in whole if e["event"] == "step"]


@pytest.mark.slow
def test_same_plan_and_data_give_the_same_bytes_and_another_seed_does_not(base, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(user_plan(seed=seed), make_rows(10), base=base, out=tmp_path / name)
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")
    settings = [json.loads((tmp_path / name / "adapter" / "adapter_config.json").read_text())["target_modules"] for name in ("a", "b")]
    assert settings[0] == sorted(settings[1])
    assert adapter_bytes(tmp_path / "a") != adapter_bytes(tmp_path / "c")


def stopped(plan, base, out, step, rows=18):
    with pytest.raises(Stop):
        train(plan, make_rows(rows), base=base, out=out, on_event=stopping_at(step))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "bit", "missing", "partial"])
def test_a_broken_checkpoint_is_passed_over(base, tmp_path, damage):
    plan = user_plan(checkpoint_every=1)
    train(plan, make_rows(18), base=base, out=tmp_path / "whole")
    out = tmp_path / "out"
    stopped(plan, base, out, 4)
    newest = out / "checkpoints" / "checkpoint-4"
    victim = newest / "optimizer.safetensors"
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-7])
    elif damage == "bit":
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(bytes(data))
    elif damage == "missing":
        (newest / "state.json").unlink()
    else:
        newest.rename(newest.with_name(".checkpoint-4.part"))
    events: list[dict] = []
    train(plan, make_rows(18), base=base, out=out, on_event=events.append)
    assert events[0]["step"] == 3
    assert adapter_bytes(out) == adapter_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused_and_a_finished_one_is_not_trained_again(base, tmp_path):
    rows = make_rows(8)
    first = train(user_plan(), rows, base=base, out=tmp_path)
    events: list[dict] = []
    assert train(user_plan(), rows, base=base, out=tmp_path, on_event=events.append) == first
    assert [e["event"] for e in events] == ["finished"]
    with pytest.raises(TrainingError, match=r"learning_rate: 0\.005 there, 0\.001 here"):
        train(user_plan(learning_rate=1e-3), rows, base=base, out=tmp_path)
    with pytest.raises(TrainingError, match="other rows"):
        train(user_plan(), rows[:-1], base=base, out=tmp_path)


@pytest.mark.slow
def test_it_learns_eight_rows_by_heart_and_plain_peft_agrees(base, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    rows = make_rows(8)
    result = train(user_plan(epochs=60, batch_size=8, learning_rate=1e-2, adapter=Adapter(r=8)), rows, base=base, out=tmp_path)
    assert result.train_loss < 0.1
    assert result.test is not None
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), result.artifact)
    assert padded_loss(model, unlike(rows)).item() == pytest.approx(result.test.trained_loss, abs=1e-5)
    assert (Path(result.artifact) / "tokenizer_config.json").exists()
    assert result.trainable_parameters == 8 * 2 * sum(
        sum(shape) for shape in ((48, 48), (48, 16), (48, 16), (48, 48), (48, 80), (48, 80), (80, 48))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [
        Adapter(kind="none"),
        Adapter(r=4, dora=True),
        Adapter(r=4, rslora=True),
        Adapter(r=4, init="pissa"),
        Adapter(r=4, targets=("q_proj",), b_rate_ratio=16),
    ],
)
def test_every_kind_of_adapter_trains_resumes_and_passes_its_own_test(base, tmp_path, adapter):
    plan = user_plan(adapter=adapter, checkpoint_every=2, learning_rate=1e-3)
    whole = train(plan, make_rows(18), base=base, out=tmp_path / "whole")
    stopped(plan, base, tmp_path / "out", 4)
    again = train(plan, make_rows(18), base=base, out=tmp_path / "out")
    files = sorted(Path(whole.artifact).glob("*.safetensors"))
    assert files
    assert all(path.read_bytes() == (Path(again.artifact) / path.name).read_bytes() for path in files)


@pytest.mark.slow
def test_the_best_weights_are_kept_when_asked_for(base, tmp_path):
    events: list[dict] = []
    plan = user_plan(epochs=12, learning_rate=5e-2, keep="best", keep_checkpoints=1, schedule="constant")
    result = train(plan, make_rows(8), make_rows(6, seed=5), base=base, out=tmp_path, on_event=events.append)
    losses = {e["step"]: e["valid_loss"] for e in events if e["event"] == "evaluation" and e["step"]}
    assert result.best_step == min(losses, key=lambda step: losses[step])
    assert result.best_step < result.steps
    assert result.valid_loss == losses[result.best_step]
    kept = (tmp_path / "checkpoints" / f"checkpoint-{result.best_step}" / "adapter_model.safetensors").read_bytes()
    assert kept == adapter_bytes(tmp_path)


@pytest.mark.slow
def test_the_weights_in_bfloat16_train_within_their_rounding(base, tmp_path):
    rows = make_rows(12)
    exact, rounded = (
        train(user_plan(dtype=dtype, epochs=4), rows, base=base, out=tmp_path / dtype).train_loss for dtype in ("float32", "bfloat16")
    )
    assert rounded == pytest.approx(exact, rel=0.05)
    stored = msgspec.json.decode((tmp_path / "bfloat16" / "run.json").read_bytes())
    assert stored["resolved"]["dtype"] == "bfloat16"
    header = adapter_bytes(tmp_path / "bfloat16")[:4000]
    assert b'"F32"' in header  # the adapter itself stays float32
    assert b'"BF16"' not in header


def test_rows_without_anything_to_train_are_all_named(base, tmp_path):
    rows = make_rows(3)
    empty = [Rendered(f"empty-{i}", row.ids, np.zeros_like(row.mask)) for i, row in enumerate(rows)]
    with pytest.raises(DataError) as caught:
        train(user_plan(), [*rows, *empty], base=base, out=tmp_path)
    assert [fault.where for fault in caught.value.faults] == ["empty-0", "empty-1", "empty-2"]


def test_rows_all_too_long_are_refused_with_the_length_they_need(base, tmp_path):
    rows = make_rows(3, low=20, high=21)
    with pytest.raises(TrainingError, match="all 3 rows are longer than max_length 9"):
        train(user_plan(max_length=9), rows, base=base, out=tmp_path)


@pytest.mark.slow
def test_long_rows_are_dropped_or_cut_and_named(base, tmp_path):
    rows = [*make_rows(4), Rendered("long", np.arange(3, 93, dtype=np.int32), np.ones(90, np.uint8))]
    dropped = train(user_plan(max_length=75, epochs=1), rows, base=base, out=tmp_path / "drop")
    cut = train(user_plan(max_length=75, epochs=1, over_length="truncate"), rows, base=base, out=tmp_path / "cut")
    assert (dropped.dropped, dropped.truncated, dropped.rows) == (("long",), (), 4)
    assert (cut.dropped, cut.truncated, cut.rows) == ((), ("long",), 5)


def test_validation_rows_that_are_training_rows_are_refused(base, tmp_path):
    rows = make_rows(4)
    with pytest.raises(TrainingError, match="row-0-3"):
        train(user_plan(), rows, [rows[3]], base=base, out=tmp_path)


def test_unknown_targets_name_those_that_exist(base, tmp_path):
    with pytest.raises(ConfigError, match="wqkv") as caught:
        train(user_plan(adapter=Adapter(r=4, targets=("wqkv",))), make_rows(4), base=base, out=tmp_path)
    assert "q_proj" in str(caught.value)


def test_pickled_weights_are_refused(base, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text((base / "config.json").read_text())
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"never read")
    plan = user_plan(adapter=Adapter(kind="none"))
    with pytest.raises(TrainingError, match="pickled"):
        train(plan, make_rows(4), base=tmp_path / "base", out=tmp_path / "out")


def test_the_schedule_warms_up_and_ends_near_zero():
    plan = ResolvedPlan(warmup_ratio=0.1, schedule="cosine")
    rates = [rate_at(step, 100, plan) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == 1.0
    assert 0 < rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rate_at(50, 100, ResolvedPlan(schedule="constant")) == 1.0
