"""Faults that are known from other trainers, each with a run or an artifact that would show it. The table is in docs/training.md."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from train_parts import make_pairs, make_rows, padded_loss, plan, tiny_base, user_plan
from tunesmith.core.chat import Renderer
from tunesmith.core.config import convert
from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.core.types import Example, Message, Prompt, Sampling
from tunesmith.train.adapters import load_base, prepare
from tunesmith.train.artifact import save_artifact, self_test
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter, Plan, ResolvedAdapter

TESTS = Path(__file__).parent
ANSWERS = {"Who signed it?": "Nobody did", "Say yes or no.": "yes", "List the named entities": "Acme Holdings"}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A tiny base with a tokenizer, a template, and a token that was added to both."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.model(tmp_path_factory.mktemp("speaking"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<|party|>"]}) == 1
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


def conversation(asked: str, said: str) -> Example:
    return Example(id=asked, messages=(Message(role="user", content=asked), Message(role="assistant", content=said)))


@pytest.fixture(scope="module")
def learned(speaking, tmp_path_factory):
    """The adapter of a run that knows three answers by heart."""
    renderer = Renderer.load(speaking)
    rows = [renderer.example(conversation(*pair)) for pair in ANSWERS.items()]
    wanted = user_plan(epochs=40, batch_size=3, learning_rate=2e-2, adapter=Adapter(r=8))
    return Path(train(wanted, rows, base=speaking, out=tmp_path_factory.mktemp("learned")).artifact)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


@pytest.mark.slow
def test_what_was_learned_is_said_and_then_it_stops(speaking, learned):
    from tunesmith.models.local import LocalModel

    model = LocalModel(speaking, learned, name="x", dtype="float32")
    prompts = [Prompt(messages=(Message(role="user", content=asked),)) for asked in ANSWERS]
    answers = model.answer(prompts, Sampling(max_tokens=40))
    assert [answer.text.strip() for answer in answers] == list(ANSWERS.values())
    assert {answer.finish_reason for answer in answers} == {"stop"}


@pytest.mark.slow
def test_added_tokens_and_the_template_come_with_the_result(speaking, learned):
    from transformers import AutoTokenizer

    before, after = AutoTokenizer.from_pretrained(speaking), AutoTokenizer.from_pretrained(learned)
    text = "between <|party|> and <|party|>"
    assert before(text)["input_ids"].count(before.convert_tokens_to_ids("<|party|>")) == 2
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.chat_template == before.chat_template


@pytest.mark.slow
def test_training_serving_and_the_artifact_render_the_same_tokens(speaking, learned):
    from tunesmith.models.local import LocalModel

    row = conversation("Who signed it?", "Nobody did")
    trained = Renderer.load(speaking).example(row).ids.tolist()
    prompt = LocalModel(speaking, learned, name="x").renderer.prompt(Prompt(messages=row.messages[:1]))
    assert prompt == trained[: len(prompt)]
    assert Renderer.load(learned).example(row).ids.tolist() == trained


@pytest.mark.slow
def test_the_saved_adapter_is_whole_and_in_the_form_that_peft_and_vllm_read(learned):
    found = tensors(learned)
    parts = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}
    expected = {
        f"base_model.model.model.layers.{layer}.{group}.{part}_proj.lora_{half}.weight"
        for layer in range(2)
        for group, names in parts.items()
        for part in names
        for half in "AB"
    }
    assert found.keys() == expected
    assert all(value.dtype == torch.float32 and value.shape.numel() and bool(value.any()) for value in found.values())
    settings = json.loads((learned / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["bias"], settings["modules_to_save"]) == ("LORA", "none", None)
    assert {name.rsplit(".", 1)[-1] for name in settings["target_modules"]} == {name.split(".")[-3] for name in expected}
    assert (settings["r"], settings["lora_alpha"]) == (8, 16.0)


@pytest.mark.slow
def test_an_adapter_that_does_nothing_fails_the_artifacts_own_test(base, tmp_path):
    """peft starts B at zero: what is saved untrained is the base (unsloth 2142), and so is what was emptied on its way (trl 4416)."""
    resolved, rows = plan(), make_rows(4)
    trainable = prepare(base, resolved)
    folder = save_artifact(tmp_path, base, trainable)
    with torch.no_grad():
        loss = padded_loss(load_base(base, torch.float32), rows).item()
    with pytest.raises(TrainingError, match=r"every adapter weight is zero.*the base's own"):
        self_test(folder, base, trainable, rows, [loss] * len(rows), resolved)


@pytest.mark.slow
def test_the_merge_is_judged_in_float32_where_the_base_is_bfloat16(base, tmp_path):
    from peft import PeftModel

    result = train(user_plan(dtype="bfloat16", epochs=8, learning_rate=2e-2), make_rows(8), base=base, out=tmp_path)
    assert result.test is not None
    assert result.test.merge_error is not None
    assert result.test.merge_error < 1e-5
    rounded = PeftModel.from_pretrained(load_base(base, torch.bfloat16), result.artifact).merge_and_unload()
    exact = PeftModel.from_pretrained(load_base(base, torch.float32), result.artifact).merge_and_unload()
    worst = max(
        float((low - high).abs().max() / high.abs().max())
        for low, high in zip(rounded.state_dict().values(), exact.state_dict().values(), strict=True)
    )
    assert worst > 1e-3  # what peft gives when asked to merge into bfloat16 (peft 2321): the check above would not let it pass


@pytest.mark.slow
def test_full_training_keeps_tied_embeddings_tied(base, tmp_path):
    from safetensors import safe_open

    result = train(user_plan(adapter=Adapter(kind="none"), learning_rate=1e-3), make_rows(8), base=base, out=tmp_path)
    with safe_open(Path(result.artifact) / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 no mapping
    model = load_base(Path(result.artifact), torch.float32)
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not torch.equal(model.get_input_embeddings().weight, load_base(base, torch.float32).get_input_embeddings().weight)


@pytest.mark.slow
def test_rows_beyond_1024_tokens_are_trained_whole_unless_the_plan_says_otherwise(tmp_path):
    base = tiny_base(tmp_path / "base", max_position_embeddings=4096)
    rows = make_rows(2, prefix=1500)
    longest = max(len(row.ids) for row in rows)
    events: list[dict] = []
    result = train(user_plan(epochs=1, batch_size=2), rows, base=base, out=tmp_path / "out", on_event=events.append)
    assert (result.dropped, result.truncated) == ((), ())
    start, step = (next(e for e in events if e["event"] == kind) for kind in ("start", "step"))
    assert start["plan"]["max_length"] == longest > 1500
    with torch.no_grad():
        assert step["train_loss"] == pytest.approx(padded_loss(load_base(base, torch.float32), rows).item(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_stored_in_bfloat16_is_held_in_the_plans_type_and_the_adapter_in_float32(base, tmp_path, dtype):
    load_base(base, torch.bfloat16).save_pretrained(tmp_path)
    trainable = prepare(tmp_path, plan(dtype=dtype))
    assert {p.dtype for p in trainable.parameters().values()} == {torch.float32}
    assert {p.dtype for p in trainable.model.parameters() if not p.requires_grad} == {getattr(torch, dtype)}
    full = prepare(tmp_path, plan(dtype=dtype, adapter=ResolvedAdapter(kind="none")))
    assert {p.dtype for p in full.parameters().values()} == {torch.float32}


@pytest.mark.slow
def test_references_of_another_run_are_not_used(base, tmp_path):
    wanted, pairs = user_plan(method="dpo", epochs=1), make_pairs(6)
    train(wanted, make_pairs(6, seed=8), base=base, out=tmp_path / "other")
    whole = train(wanted, pairs, base=base, out=tmp_path / "whole")
    (tmp_path / "planted").mkdir()
    shutil.copy(tmp_path / "other" / "reference-train.safetensors", tmp_path / "planted")
    planted = train(wanted, pairs, base=base, out=tmp_path / "planted")
    assert (Path(planted.artifact) / WEIGHTS).read_bytes() == (Path(whole.artifact) / WEIGHTS).read_bytes()


@pytest.mark.parametrize(("old", "new"), [("max_seq_length", "max_length"), ("batch_sise", "batch_size")])
def test_an_option_under_another_name_is_refused_with_the_name_it_has_here(old, new):
    with pytest.raises(ConfigError, match=f"unknown key '{old}'") as caught:
        convert({old: 5}, Plan)
    assert f"did you mean '{new}'" in str(caught.value)


@pytest.mark.slow
def test_every_test_that_the_documentation_names_exists():
    page = (TESTS.parent / "docs" / "training.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+)::(test_\w+)`", page)
    assert len(set(re.findall(r"^\| (\d+) \|", page, re.MULTILINE))) == 27
    assert len(named) >= 27
    for file, test in named:
        tree = ast.parse((TESTS / f"{file}.py").read_text("utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


def test_each_trap_has_a_fault_that_can_be_put_into_the_code(monkeypatch):
    """`make bench-traps` puts them in and shows that the named tests fail."""
    monkeypatch.syspath_prepend(str(TESTS.parent))
    traps = importlib.import_module("benchmarks.traps")
    assert {fault.trap for fault in traps.FAULTS} == set(range(1, 28))
    page = (TESTS.parent / "docs" / "training.md").read_text("utf-8")
    for fault in traps.FAULTS:
        assert (TESTS.parent / fault.file).read_text("utf-8").count(fault.good) == 1, f"trap {fault.trap}: mend benchmarks/traps.py"
        (line,) = re.findall(rf"^\| {fault.trap} \|.*$", page, re.MULTILINE)
        assert fault.test.partition("[")[0] in line
