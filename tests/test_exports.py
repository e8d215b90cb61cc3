"""Models written out for other programs, each loaded by the program that it is for: peft, transformers, llama.cpp."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tiny
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.seal import check_folder

IDS = [[1, 40, 41, 90, 7, 200, 13, 2, 1, 55, 60]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base in bfloat16, an adapter on it, one that also changes the output layer of a tied base, and rows to answer."""
    folder = tmp_path_factory.mktemp("exports")
    stored_in(tiny.model(folder / "base"), "bfloat16")
    tiny.adapter(folder / "base", folder / "adapter")
    tied = tiny.model(folder / "tied", seed=3)
    settings = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    stored_in(tied, "float32")
    tiny.adapter(tied, folder / "head", target_modules=["q_proj", "lm_head"])
    rows = [
        {"messages": [{"role": "user", "content": f"Who signed {word}?"}, {"role": "assistant", "content": "Nobody did."}]}
        for word in ("it", "in Ohio", "York")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stored_in(folder: Path, dtype: str) -> None:
    """Save a model's weights again in the type, but for one norm that stays in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, p in model.named_parameters():
        p.data = p.data.to(torch.float32 if "layers.0.input_layernorm" in name else getattr(torch, dtype))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)


@pytest.fixture
def call(place, capsys, monkeypatch):
    monkeypatch.chdir(place)

    def run(*words: str) -> tuple[int, dict, str]:
        code = guarded(app, [*words, "--json"])
        printed = capsys.readouterr()
        return code, json.loads(printed.out.splitlines()[-1]), printed.err

    return run


def logits(folder: Path, adapter: Path | None = None):
    """What transformers (and peft) compute from folders, in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(IDS)).logits[0]


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def test_an_adapter_is_what_peft_loads(place, call):
    import torch

    code, written, err = call("export", "base+adapter", "--to", "adapter", "--out", "out/adapter")
    assert code == 0, err
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {*written["files"]}
    assert torch.equal(logits(place / "base", place / "out/adapter"), logits(place / "base", place / "adapter"))
    assert json.loads((place / "out/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(place / "base")
    check_folder(place / "out/adapter")


def test_a_merged_model_is_base_plus_adapter_cast_once(place, call):
    import torch

    code, _, err = call("export", "base+adapter", "--to", "merged", "--out", "out/merged")
    assert code == 0, err
    base, merged, adapter = (tensors(place / name) for name in ("base", "out/merged", "adapter"))
    assert {name: value.dtype for name, value in merged.items()} == {name: value.dtype for name, value in base.items()}
    changed = 0
    for name, value in base.items():
        low = "base_model.model." + name.removesuffix(".weight") + ".lora_{}.weight"
        if low.format("A") not in adapter:
            assert torch.equal(merged[name], value), name
            continue
        exact = value.double() + 16 / 4 * adapter[low.format("B")].double() @ adapter[low.format("A")].double()
        assert ((merged[name].double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-6).all(), name
        changed += 1
    assert changed == 14, "every linear layer but the last"
    config = json.loads((place / "out/merged/config.json").read_text())
    assert (config["dtype"], config["rope_theta"]) == ("bfloat16", config["rope_parameters"]["rope_theta"])
    wide = logits(place / "base", place / "adapter")
    assert (logits(place / "out/merged") - wide).abs().max() < 0.05 * wide.abs().max()
    check_folder(place / "out/merged")


def test_an_output_layer_that_the_adapter_changes_is_untied(place, call):
    import torch

    code, _, err = call("export", "tied+head", "--to", "merged", "--out", "out/untied")
    assert code == 0, err
    torch.testing.assert_close(logits(place / "out/untied"), logits(place / "tied", place / "head"), rtol=1e-4, atol=1e-4)


def test_whole_weights_are_copied(place, call):
    code, _, err = call("export", "base", "--to", "merged", "--out", "out/whole")
    assert code == 0, err
    assert (place / "out/whole/model.safetensors").read_bytes() == (place / "base/model.safetensors").read_bytes()


def test_what_cannot_be_exported_is_one_clear_error(place, call):
    (place / "there").mkdir(exist_ok=True)
    for words, expected in {
        ("base", "--to", "mergde", "--out", "new"): "did you mean 'merged'?",
        ("base", "--to", "merged", "--out", "there"): "'there' is already there",
        ("base", "--to", "adapter", "--out", "new"): "has no adapter",
        ("echo", "--to", "merged", "--out", "new"): "has no weights here",
        ("http://127.0.0.1:1/v1#m", "--to", "merged", "--out", "new"): "has no weights here",
        ("nobody", "--to", "merged", "--out", "new"): "no model 'nobody'",
    }.items():
        code, _, err = call("export", *words)
        assert (code, expected in err) == (2, True), f"{words}: {err}"
    assert not (place / "new").exists()
    assert not list(place.glob(".*.part"))


def test_an_adapter_without_all_of_its_tensors_leaves_nothing(place, call):
    from safetensors.torch import save_file

    shutil.copytree(place / "adapter", place / "partial")
    held = tensors(place / "adapter")
    save_file(
        {name: value for name, value in held.items() if "layers.1.mlp.up_proj" not in name}, place / "partial/adapter_model.safetensors"
    )
    code, _, err = call("export", "base+partial", "--to", "merged", "--out", "new")
    assert (code, "does not fit the base: 2 of its tensors" in err) == (2, True), err
    assert not (place / "new").exists()
    assert not list(place.glob(".*.part"))
