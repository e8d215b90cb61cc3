"""Bases whose weights are stored in FP8 or MXFP4, or whose configuration names code that transformers has itself: they train as any other."""

from __future__ import annotations

import json

import pytest
import torch

from test_train_routes import base_of
from train_parts import make_rows, plan, tiny_base, user_plan
from tunesmith.core.errors import UsageError
from tunesmith.models.load_causal import load_causal
from tunesmith.train.adapters import prepare
from tunesmith.train.facts import base_shape
from tunesmith.train.loop import train

# The sixteen numbers of E2M1, the element of MXFP4 (OCP Microscaling Formats 1.0, table 5).
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 = torch.tensor(E2M1 + [-value for value in E2M1])


def rewrite(base, change, config: dict) -> None:
    """Replace a base's weights by what `change` makes of each, and add to its configuration."""
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    save_file(
        {key: value for name, weight in weights.items() for key, value in change(name, weight).items()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    settings = json.loads((base / "config.json").read_text()) | config
    (base / "config.json").write_text(json.dumps(settings))


def to_fp8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A linear layer's weight in E4M3 with one scale for each block of 128 × 128, as DeepSeek stores it."""
    if "proj" not in name:
        return {name: weight}
    scale = weight.abs().amax() / 448
    blocks = [-(-side // 128) for side in weight.shape]
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.full(blocks, float(scale))}


def to_mxfp4(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Experts [E, in, out] as blocks of 32 numbers of 4 bits [E, out, in / 32, 16] and a power of two for each, as gpt-oss stores them."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return {name: weight}
    grouped = weight.transpose(1, 2).unflatten(2, (-1, 32))
    power = (grouped.abs().amax(-1, keepdim=True) / 6).log2().ceil()
    code = ((grouped / 2**power)[..., None] - E2M1).abs().argmin(-1).to(torch.uint8)
    return {f"{name}_blocks": code[..., 0::2] | (code[..., 1::2] << 4), f"{name}_scales": (power[..., 0] + 127).to(torch.uint8)}


@pytest.mark.slow
def test_a_base_in_fp8_trains_dequantised(tmp_path):
    base = tiny_base(tmp_path / "base")
    before = load_causal(base, dtype=torch.float32)
    whole = base_shape(base)["parameters"]
    rewrite(base, to_fp8, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}})
    assert base_shape(base)["parameters"] == whole
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        a, b = (model(input_ids=ids).logits for model in (before, load_causal(base, dtype=torch.float32)))
    assert float((a - b).norm() / a.norm()) < 0.3
    result = train(user_plan(epochs=1), make_rows(4), base=base, out=tmp_path / "run")
    assert result.test is not None
    assert result.test.reloaded_loss == pytest.approx(result.test.trained_loss, abs=1e-3)


@pytest.mark.slow
def test_a_base_in_mxfp4_trains_dequantised(tmp_path):
    base = base_of(tmp_path / "base", "gpt_oss", intermediate_size=64)
    before = load_causal(base, dtype=torch.float32)
    whole = base_shape(base)
    rewrite(base, to_mxfp4, {"quantization_config": {"quant_method": "mxfp4"}})
    assert base_shape(base)["parameters"] == whole["parameters"]
    assert sum(o * i for o, i in base_shape(base)["linears"].values()) == sum(o * i for o, i in whole["linears"].values())
    after = load_causal(base, dtype=torch.float32)
    for name in ("gate_up_proj", "down_proj"):
        a, b = (getattr(model.model.layers[1].mlp.experts, name) for model in (before, after))
        assert float((a - b).norm() / a.norm()) < 0.2  # four bits a number
    trainable = prepare(base, plan(), make_rows(3))
    assert trainable.choice.tried[-1].passed
    assert {p.dtype for p in trainable.causal.parameters()} == {torch.float32}


def test_a_base_stored_otherwise_is_refused_with_what_can_be_used(tmp_path):
    base = tiny_base(tmp_path / "base")
    rewrite(base, lambda name, weight: {name: weight}, {"quantization_config": {"quant_method": "awq", "bits": 4}})
    with pytest.raises(UsageError, match=r"(?s)stored as awq.*mxfp4 and fp8.*quantise: nf4"):
        train(user_plan(epochs=1), make_rows(4), base=base, out=tmp_path / "run")


def test_code_that_transformers_has_itself_is_not_needed(tmp_path):
    """Phi-4-mini and others name code that is older than transformers' own classes of the same names."""
    base = tiny_base(tmp_path / "base")
    named = {"AutoConfig": "configuration_llama.LlamaConfig", "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    rewrite(base, lambda name, weight: {name: weight}, {"auto_map": named})
    assert prepare(base, plan(), make_rows(3)).route.name == "fused"
    rewrite(base, lambda name, weight: {name: weight}, {"auto_map": named | {"AutoModelForCausalLM": "modeling_llama.OtherForCausalLM"}})
    with pytest.raises(UsageError, match="sets 'auto_map'"):
        train(user_plan(epochs=1), make_rows(4), base=base, out=tmp_path / "run")
