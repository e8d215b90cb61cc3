"""Weights packed for decoding: the same products, shared by copies, taken where they were timed to be faster."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import tiny
from tunesmith.core.types import Message, Prompt, Sampling
from tunesmith.models import packing
from tunesmith.models.local import LocalModel
from tunesmith.nets import packed_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this processor has no packed product")


def layers(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 256, bias=False), torch.nn.Linear(16, 16))
    return made.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_ordinary_layer_for_any_number_of_rows(dtype):
    model = layers(dtype)
    if not packed_linear.can_pack(model):
        pytest.skip("not for this type here")
    plain = copy.deepcopy(model)
    least = dict.fromkeys(packed_linear.shapes(model), 2)
    assert packed_linear.pack(model, least) == 2  # the third is small
    for rows in (1, 2, 7, 96, 97):
        x = torch.randn(1, rows, 256, dtype=dtype)
        with torch.inference_mode():
            out, expected = model[1](model[0](x)), plain[1](plain[0](x))
        assert out.shape == expected.shape
        torch.testing.assert_close(
            out, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=2e-2 if dtype == torch.bfloat16 else 1e-5
        )
    shared = {id(p): p for p in model.parameters()}
    assert copy.deepcopy(model, shared)[0]._packed is model[0]._packed


def test_what_was_timed_is_remembered_and_no_room_is_no_packing(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "user_folder", lambda: tmp_path)
    times: list[int] = []

    def timed(model):
        times.append(1)
        return dict.fromkeys(packed_linear.shapes(model)[:1], 4)

    monkeypatch.setattr(packed_linear, "timed", timed)
    assert packing.pack_for_decoding(layers()).startswith("1 matrices packed")
    assert packing.pack_for_decoding(layers()).startswith("1 matrices packed")
    assert len(times) == 1
    (file,) = (tmp_path / "speeds").iterdir()
    assert list(json.loads(file.read_text()).values()) == [4]
    file.write_text("{}")
    assert "no faster" in packing.pack_for_decoding(layers())
    file.write_text("broken")
    assert packing.pack_for_decoding(layers()).startswith("1 matrices packed")
    monkeypatch.setattr(packing, "_free_bytes", lambda: 1 << 20)
    assert "are free" in packing.pack_for_decoding(layers())
    assert "no packed product" in packing.pack_for_decoding(layers().requires_grad_(True))


@pytest.mark.slow
def test_answers_of_packed_weights_are_those_of_transformers(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(packed_linear, "_LEAST", 1)
    monkeypatch.setattr(packing, "user_folder", lambda: tmp_path)
    monkeypatch.setattr(packed_linear, "timed", lambda model: dict.fromkeys(packed_linear.shapes(model), 1))
    base = tiny.model(tmp_path / "base")
    model = LocalModel(base, name="base", dtype="float32")
    assert model.route.fastest
    tree = model.engine.fast.model  # type: ignore[union-attr]
    assert sum(isinstance(module, packed_linear.PackedLinear) for module in tree.modules()) == 15
    prompts = [Prompt(messages=(Message(role="user", content=text),)) for text in ("Who signed it?", "New York", "1 2 3", "Nobody did")]
    tuned = model.with_adapter(tiny.adapter(base, tmp_path / "adapter"), "tuned")
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for prompt, answer in zip(prompts, model.answer(prompts, Sampling(max_tokens=16, temperature=0.0)), strict=True):
        ids = model.renderer.prompt(prompt)
        out = theirs.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=sorted(model.renderer.stop_ids), pad_token_id=0
        )
        new = [number for number in out[0, len(ids) :].tolist() if number not in model.renderer.stop_ids]
        assert model.renderer.decode(new) == answer.text
    assert tuned.route.fastest
    assert tuned.answer(prompts, Sampling(max_tokens=4, temperature=0.0))
