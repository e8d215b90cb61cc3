"""Estimates: token counts are the run's own, parameters follow the formula, memory and refusals make sense."""

from __future__ import annotations

import json

import msgspec
import pytest

from train_parts import make_rows, tiny_base, user_plan
from tunesmith.core.errors import NotFound, TrainingError
from tunesmith.train.estimate import estimate, lora_parameters, refuse_what_cannot_fit
from tunesmith.train.facts import base_shape
from tunesmith.train.gpus import ASSUMED_SHARE, on_gpu, table
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter, ResolvedAdapter, ResolvedPlan


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter", [Adapter(r=4), Adapter(r=3, targets=("q_proj", "down_proj")), Adapter(r=4, dora=True), Adapter(kind="none")]
)
def test_the_estimate_counts_what_the_run_counts(tmp_path, adapter):
    base = tiny_base(tmp_path / "base")
    plan = user_plan(adapter=adapter, epochs=1, learning_rate=1e-3)
    expected = estimate(plan, make_rows(10), base=base)
    result = train(plan, make_rows(10), base=base, out=tmp_path / "out")
    assert expected.steps == result.steps
    assert expected.tokens == result.tokens
    assert expected.trained_tokens == result.trained_tokens
    assert expected.trainable_parameters == result.trainable_parameters
    steps = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert expected.computed_tokens == sum(e["computed_tokens"] for e in steps if e["event"] == "step")


def test_rank_16_on_all_linear_layers_of_smollm2_is_the_published_count():
    config = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30}
    assert lora_parameters(config, ResolvedPlan(adapter=ResolvedAdapter(r=16))) == 4_884_480


def test_parameters_come_from_the_weights_themselves(tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny_base(tmp_path)
    assert base_shape(base)["parameters"] == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters())


def test_a_plan_that_cannot_fit_is_refused_with_one_that_would(tmp_path):
    found = estimate(user_plan(), make_rows(10), base=tiny_base(tmp_path))
    refuse_what_cannot_fit(found)
    without = found.memory.total - found.memory.activations
    small = msgspec.structs.replace(found, available_bytes=without + found.memory.activations // 2)
    with pytest.raises(TrainingError, match="micro_batch_tokens: "):
        refuse_what_cannot_fit(small)
    with pytest.raises(TrainingError, match="a smaller base"):
        refuse_what_cannot_fit(msgspec.structs.replace(found, available_bytes=1))


def test_a_named_gpu_is_estimated_from_its_data_sheet(tmp_path):
    base = tiny_base(tmp_path)
    found = estimate(user_plan(), make_rows(10), base=base)
    h100, t4 = (on_gpu(found, name, base=base) for name in ("h100", "T4"))
    assert h100.seconds == pytest.approx(found.flops / (989e12 * ASSUMED_SHARE))
    assert (h100.dtype, t4.dtype) == ("bfloat16", "float32")
    assert t4.memory.weights == 2 * h100.memory.weights
    assert h100.fits
    weights = msgspec.structs.replace(t4.memory, weights=15_000_000_000)
    assert not msgspec.structs.replace(t4, memory=weights).fits
    with pytest.raises(NotFound, match="no GPU 'H900'") as caught:
        on_gpu(found, "H900", base=base)
    assert "A100" in str(caught.value)


def test_the_table_of_gpus_is_dated_and_sourced():
    assert table().collected.year >= 2026
    assert set(table().gpus) == {"H100", "A100", "L4", "T4", "4090"}
    assert all(gpu.source and gpu.memory > 0 and gpu.float32 > 0 for gpu in table().gpus.values())
