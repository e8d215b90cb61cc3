"""A base in 4 bits, and training that goes on from an adapter: against the paper's numbers and against the dense layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from train_parts import awake, make_rows, plan, slope_of, tiny_base, user_plan
from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.nets.nf4 import Nf4, Nf4Linear, codebook, quantise
from tunesmith.train.adapters import prepare
from tunesmith.train.artifact import self_test
from tunesmith.train.estimate import estimate
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter, ResolvedAdapter
from tunesmith.train.resolve import check

# Appendix E of arXiv 2305.14314.
PUBLISHED = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def test_the_codebook_is_the_papers():
    assert codebook() == pytest.approx(PUBLISHED, abs=2e-7)


def test_double_quantisation_stores_what_the_paper_says():
    bits = Nf4(torch.randn(1024, 1024)).bits
    assert bits == pytest.approx(4.127, abs=0.001)
    assert 4 + 32 / 64 - bits == pytest.approx(0.373, abs=0.001)  # saved against one float32 scale a block


def test_each_weight_takes_the_nearest_value_of_its_block():
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    packed = Nf4(weight)
    scale = packed._peaks()[:, None]
    torch.testing.assert_close(scale[:, 0], weight.view(-1, 64).abs().amax(1), rtol=0.02, atol=0)
    values = torch.tensor(codebook()) * scale
    nearest = values.gather(1, (weight.view(-1, 64)[:, :, None] - values[:, None]).abs().argmin(-1))
    torch.testing.assert_close(packed.dense(), nearest.view(96, 128))
    error = (packed.dense() - weight).norm() / weight.norm()
    assert error < 0.1  # a normal's 4-bit limit is about 0.09


@pytest.mark.parametrize("shape", [(3, 5), (7, 64), (65, 3), (1, 1)])
def test_any_shape_and_a_zero_weight_come_back(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    dense = Nf4(weight).dense()
    assert dense.shape == shape
    assert float((dense - weight).abs().max()) <= 0.16 * float(weight.abs().max())
    assert torch.equal(Nf4(torch.zeros(shape)).dense(), torch.zeros(shape))


def test_only_frozen_layers_are_replaced():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False), nn.ModuleDict({"lora_A": nn.Linear(8, 8)}))
    module[2].requires_grad_(False)
    assert quantise(module, keep="lora_") == 64  # weights
    assert isinstance(module[1], Nf4Linear)


QUANTISED = plan(adapter=ResolvedAdapter(r=4, alpha=8.0, quantise="nf4"))


@pytest.mark.slow
def test_gradients_are_those_of_the_dequantised_weights_and_evaluation_changes_nothing(base):
    rows = make_rows(5)
    packed, dense = awake(base, QUANTISED), awake(base, plan())
    with torch.no_grad():
        for name, module in packed.model.named_modules():
            if isinstance(module, Nf4Linear):
                dense.model.get_submodule(name).weight.copy_(module.weight)
    sums, mine = slope_of(packed, QUANTISED, rows)
    reference, theirs = slope_of(dense, plan(), rows)
    assert sums["loss"] == pytest.approx(reference["loss"], rel=1e-6)
    for name, slope in mine.items():
        torch.testing.assert_close(slope, theirs[name], rtol=1e-4, atol=1e-6, msg=name)
    packed.model.eval()
    with torch.no_grad():
        packed.model(input_ids=torch.arange(3, 20)[None], spans=((0, 17, 17),), longest=17)
    packed.model.train()
    _, again = slope_of(packed, QUANTISED, rows)
    assert all(torch.equal(slope, again[name]) for name, slope in mine.items())


@pytest.mark.slow
def test_qlora_trains_to_within_the_noise_of_lora_repeats_its_bytes_and_passes_its_own_test(base, tmp_path):
    options = {"epochs": 25, "batch_size": 8, "learning_rate": 1e-2, "threads": 1, "lanes": 1}
    rows = make_rows(8)
    exact = train(user_plan(**options, adapter=Adapter(r=8)), rows, base=base, out=tmp_path / "lora")
    packed = train(user_plan(**options, adapter=Adapter(r=8, quantise="nf4")), rows, base=base, out=tmp_path / "qlora")
    assert exact.train_loss < 1.0
    assert packed.train_loss == pytest.approx(exact.train_loss, abs=0.3)
    assert packed.test is not None
    assert packed.test.reloaded_loss == pytest.approx(packed.test.trained_loss, abs=1e-4)
    assert packed.test.full_loss is not None
    assert packed.test.full_loss != packed.test.reloaded_loss
    again = train(user_plan(**options, adapter=Adapter(r=8, quantise="nf4")), rows, base=base, out=tmp_path / "again")
    assert (Path(packed.artifact) / "adapter_model.safetensors").read_bytes() == (
        Path(again.artifact) / "adapter_model.safetensors"
    ).read_bytes()


def test_the_estimate_counts_the_smaller_weights(base):
    plain, small = (estimate(user_plan(adapter=Adapter(r=4, quantise=kind)), make_rows(8), base=base) for kind in ("none", "nf4"))
    inner = 2 * (48 * 48 * 2 + 48 * 16 * 2 + 48 * 80 * 3)
    assert plain.memory.weights - small.memory.weights == pytest.approx(inner * (4 - 4.127 / 8), rel=1e-3)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (Adapter(quantise="nf4", dora=True), "quantise nf4 and dora exclude"),
        (Adapter(quantise="nf4", init="pissa"), "quantise nf4 and init pissa exclude"),
        (Adapter(start_from="x", init="olora"), "start_from and init olora exclude"),
        (Adapter(kind="none", quantise="nf4"), "quantise mean nothing"),
    ],
)
def test_what_excludes_each_other_is_refused(adapter, said):
    with pytest.raises(ConfigError, match=said):
        check(user_plan(adapter=adapter))


@pytest.mark.slow
def test_training_goes_on_from_an_adapter_and_the_card_says_what_is_known(base, tmp_path):
    rows, valid = make_rows(8), make_rows(4, seed=9)
    first = train(user_plan(), rows, valid, base=base, out=tmp_path / "first")
    events: list[dict] = []
    wanted = user_plan(adapter=Adapter(start_from=first.artifact), epochs=1, learning_rate=1e-3)
    second = train(wanted, rows, valid, base=base, out=tmp_path / "second", on_event=events.append)
    assert next(e["valid_loss"] for e in events if e["event"] == "evaluation") == pytest.approx(first.valid_loss, abs=1e-6)
    stored = json.loads((tmp_path / "second" / "run.json").read_text())["resolved"]["adapter"]
    assert (stored.get("r", 16), stored.get("alpha", 32.0)) == (4, 8.0)
    card = (Path(second.artifact) / "README.md").read_text()
    assert f"| validation loss | {second.valid_loss:.4f} |" in card
    assert "rank 4" in card
    assert "8 rows were given, 32 trained tokens" in card
    assert "Started from the adapter `adapter`" in card
    assert "None" not in card

    with pytest.raises(ConfigError, match="r is 8, and 4 in the adapter"):
        train(user_plan(adapter=Adapter(r=8, start_from=first.artifact)), rows, base=base, out=tmp_path / "third")
    with pytest.raises(TrainingError, match="tensors differ"):
        train(user_plan(adapter=Adapter(start_from=first.artifact, targets=("q_proj",))), rows, base=base, out=tmp_path / "fourth")
    with pytest.raises(TrainingError, match="no adapter to start from"):
        train(user_plan(adapter=Adapter(start_from=str(tmp_path))), rows, base=base, out=tmp_path / "fifth")
    changed = tmp_path / "second" / "adapter" / "adapter_model.safetensors"
    (Path(first.artifact) / "adapter_model.safetensors").write_bytes(changed.read_bytes())
    with pytest.raises(TrainingError, match="another base or adapter to start from"):
        train(wanted, rows, valid, base=base, out=tmp_path / "second")


@pytest.mark.slow
def test_an_artifact_of_another_base_fails_its_own_test(base, tmp_path):
    trainable = awake(base, QUANTISED)
    trainable.model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(TrainingError, match="in memory and"):
        self_test(tmp_path / "adapter", base, trainable, make_rows(2), [0.123, 0.123], QUANTISED)
    assert any(isinstance(m, Nf4Linear) for m in prepare(base, QUANTISED).model.modules())
