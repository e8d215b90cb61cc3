"""Estimates: token counts are the run's own, parameters follow the formula, memory and refusals make sense."""

from __future__ import annotations

import json

import msgspec
import pytest

import tiny
from train_parts import make_rows, tiny_base, user_plan
from tunesmith.core.errors import NotFound, TrainingError
from tunesmith.flow.pipeline.estimate import OtherMachine
from tunesmith.train import fit, gpus
from tunesmith.train.estimate import CACHE_BYTES, POOL_HOLES, Memory, estimate, lora_parameters, memory
from tunesmith.train.facts import base_shape
from tunesmith.train.fit import refuse_what_cannot_fit
from tunesmith.train.gpus import ASSUMED_SHARE, SECONDS_FIXED, SECONDS_PER_BLOCK, on_gpu, table
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter, Distillation, ResolvedAdapter, ResolvedPlan, ResolvedReinforcement


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


BIG = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "parameters": 8_030_261_248,
}  # fmt: skip


@pytest.mark.slow
def test_a_plan_that_cannot_fit_is_refused_with_what_would(tmp_path):
    base = tiny_base(tmp_path)
    found = estimate(user_plan(), make_rows(10), base=base)
    refuse_what_cannot_fit(found, base=base)
    without = found.memory.total - found.memory.activations
    small = msgspec.structs.replace(found, available_bytes=without + found.memory.activations // 2)
    with pytest.raises(TrainingError, match="to mend it: lanes: 1"):
        refuse_what_cannot_fit(small, base=base)
    with pytest.raises(TrainingError, match="a smaller base"):
        refuse_what_cannot_fit(msgspec.structs.replace(found, available_bytes=1), base=base)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("gigabytes", [4, 6, 8, 10, 14, 20, 30, 60])
def test_every_change_that_is_proposed_does_fit(tmp_path, monkeypatch, gigabytes, full):
    """An 8 B shape with rows of 8,000 tokens: each line of the remedy, put into the plan, is within the limit, and the plan was not."""
    monkeypatch.setattr(fit, "base_shape", lambda _: BIG)
    adapter = ResolvedAdapter(kind="none") if full else ResolvedAdapter()
    plan = ResolvedPlan(dtype="bfloat16", max_length=8192, micro_batch_tokens=16384, lanes=2, threads=2, adapter=adapter, device="cuda")
    found = estimate(user_plan(), make_rows(10), base=tiny_base(tmp_path))
    found = msgspec.structs.replace(found, longest=8000, largest_pack=16384)
    limit = gigabytes * 10**9
    assert fit.peak(BIG, plan, found).total > 60e9
    lines = fit.what_fits(found, plan, limit, base=tmp_path)
    for line in lines:
        tree = {key: convert(value) for key, value in (part.split(": ", 1) for part in line.split(" and "))}
        if "adapter" in tree:
            tree["adapter"] = ResolvedAdapter(quantise="nf4" if "nf4" in tree["adapter"] else "none")
        assert fit.peak(BIG, msgspec.structs.replace(plan, **tree), found).total <= limit
    assert bool(lines) == (gigabytes >= 8), lines
    if gigabytes == 60 and not full:
        assert lines == ("activation_checkpointing: true", "max_length: 2000 and micro_batch_tokens: 2000")
    if gigabytes == 8:
        assert "quantise: nf4" in lines[0]


def convert(value: str) -> object:
    return value if value.startswith("{") else value == "true" if value in ("true", "false") else int(value)


def test_a_named_gpu_is_estimated_from_its_data_sheet(tmp_path):
    base = tiny_base(tmp_path)
    found = estimate(user_plan(), make_rows(10), base=base)
    h100, t4 = (on_gpu(found, name, base=base) for name in ("h100", "T4"))
    packs = max(found.steps, found.computed_tokens / found.plan.micro_batch_tokens)
    assert h100.seconds == pytest.approx(SECONDS_FIXED + packs * 2 * SECONDS_PER_BLOCK)  # a tiny model waits for its kernels
    many = msgspec.structs.replace(found, flops=1e18)
    assert on_gpu(many, "H100", base=base).seconds == pytest.approx(1e18 / (989e12 * ASSUMED_SHARE) + SECONDS_FIXED)
    assert on_gpu(many, "L4", base=base).seconds > 8 * on_gpu(many, "H100", base=base).seconds
    assert (h100.plan.dtype, t4.plan.dtype, h100.plan.lanes) == ("bfloat16", "float32", 1)
    assert t4.memory.weights == 2 * h100.memory.weights
    assert h100.fits
    gpus.refuse_what_cannot_fit(found, h100, base=base)
    weights = msgspec.structs.replace(t4.memory, weights=15_000_000_000)
    over = msgspec.structs.replace(t4, memory=weights)
    assert not over.fits
    with pytest.raises(TrainingError, match=r"15\.\d GB and 14\.4 GB can be used on one T4"):
        gpus.refuse_what_cannot_fit(found, over, base=base)
    with pytest.raises(NotFound, match="no GPU 'H900'") as caught:
        OtherMachine(gpu="H900")
    assert "A100" in str(caught.value)


def test_the_table_of_gpus_is_dated_and_sourced():
    assert table().collected.year >= 2026
    assert {"H200", "H100", "A100", "L40S", "L4", "T4", "4090"} <= set(table().gpus)
    assert all(gpu.source and gpu.memory > 0 and gpu.float32 > 0 and gpu.bandwidth > 0 for gpu in table().gpus.values())


def test_a_base_in_four_bits_is_whole_once_more_on_a_cpu_for_its_own_test_and_never_on_a_gpu():
    four = {"adapter": ResolvedAdapter(r=16, quantise="nf4"), "dtype": "bfloat16", "max_length": 512, "micro_batch_tokens": 512}
    cpu, gpu = (memory(BIG, ResolvedPlan(device=device, **four), 42_000_000, 512) for device in ("cpu", "cuda"))
    assert cpu.loading == 2 * BIG["parameters"]
    assert cpu.total == cpu.runtime + cpu.weights + cpu.trainable + cpu.beside > cpu.runtime + cpu.loading
    assert gpu.loading == gpu.beside == 0
    assert gpu.total < 11e9


def test_a_teacher_a_metric_and_samples_take_memory_too(tmp_path):
    """Each alone on an 8 B shape, to the byte where it can be counted: 64 rows of 512 tokens, 8 heads of 128, 32 layers, bfloat16."""
    teacher = tiny_base(tmp_path)

    def found(**changes: object) -> Memory:
        return memory(
            BIG, ResolvedPlan(dtype="bfloat16", max_length=512, micro_batch_tokens=512, device="cuda", **changes), 42_000_000, 512
        )

    plain, one = found(), base_shape(teacher)
    taught = found(method="distil", distillation=Distillation(teacher=str(teacher)))
    assert (plain.teacher, plain.beside, plain.answering) == (0, 0, 0)
    assert taught.teacher == 2 * one["parameters"]
    assert taught.total - plain.total == taught.teacher + taught.logits - plain.logits > 500_000_000
    measured = found(metric_rows=200)
    keys, logits = 2 * 2 * 64 * 512 * 8 * 128 * 32, 3 * 4 * 64 * BIG["vocab_size"]
    assert measured.beside == 2 * BIG["parameters"]
    assert measured.answering == POOL_HOLES * min(keys, CACHE_BYTES) + logits + 2 * 2048 * 4 * (4096 + 14336)
    assert measured.total == measured.runtime + measured.weights + measured.trainable + measured.beside + measured.answering
    sampled = found(method="grpo", batch_size=4, reinforcement=ResolvedReinforcement(samples=2))
    assert sampled.answering == int(POOL_HOLES * keys) // 8 + logits // 8 + 2 * 2048 * 4 * (4096 + 14336)


@pytest.mark.slow
def test_the_estimate_of_a_project_names_gpu_and_prices(tmp_path):
    from test_run import project, tunesmith

    folder = project(tmp_path, tiny.model(tmp_path / "base"))
    _, found, _ = tunesmith(folder, "estimate", "--gpu", "h100", "--usd-per-hour", "3.6", "--split.semantic.action", "off", check=0)
    assert found["gpu"]["name"] == "H100"
    assert found["gpu"]["usd"] == pytest.approx(found["gpu"]["seconds"] / 1000)
    assert [offer["usd"] for offer in found["hosted"]] == sorted(offer["usd"] for offer in found["hosted"])
    assert all(offer["tokens"] > 0 and offer["as_of"] for offer in found["hosted"])
    assert "H100" in found["text"]
    assert "assumed" in found["text"]
    code, _, said = tunesmith(folder, "estimate", "--gpu", "H900", "--split.semantic.action", "off")
    assert code == 2
    assert "4090" in said
