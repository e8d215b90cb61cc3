"""Bad input to training, as a user meets it: one clear message, the documented exit code, nothing trained."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from train_parts import adapter_bytes, make_rows, tiny_base, user_plan
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.errors import TrainingError
from tunesmith.train.loop import train
from tunesmith.train.plan import Adapter

APART = "split: {semantic: {action: off}}\n"  # the rows are alike on purpose


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"))


@dataclass
class Bench:
    """A project in a folder of its own, its base to be spoilt, and a call of the command line."""

    folder: Path
    base: Path
    capsys: Any

    def change(self, name: str, **values: object) -> None:
        path = self.base / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")

    def rows(self, weight: int = 1) -> None:
        words = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed"]
        lines = [
            {"messages": [{"role": "user", "content": " ".join(some)}, {"role": "assistant", "content": some[0], "weight": weight}]}
            for some in [*permutations(words, 3)][::6]
        ]
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    def train(self, *words: str) -> tuple[int, str]:
        code = guarded(app, ["train", "--config", str(self.folder / "tunesmith.yaml"), *words])
        said = self.capsys.readouterr().err
        assert "Traceback" not in said
        return code, said


@pytest.fixture
def bench(base, tmp_path, capsys):
    found = Bench(tmp_path, shutil.copytree(base, tmp_path / "base"), capsys)
    found.rows()
    plan = "{epochs: 1, dtype: float32, threads: 1, learning_rate: 0.01}"
    (tmp_path / "tunesmith.yaml").write_text(
        f"name: x\nsources: [{{path: rows.jsonl}}]\nbase: {found.base}\ntrain: {plan}\n{APART}", "utf-8"
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--train.adapter.targets", "[wqkv]"), 2, ["the base has no layer wqkv", "q_proj", "train.adapter.targets"]),
        (("--train.max_length", "5"), 1, ["no token of any row", "max_length is 5, and the shortest of"]),
        (("--train.adapter.kind", "none", "--train.adapter.r", "4"), 2, ["every weight, so r mean nothing", "kind: lora"]),
        (("--train.adapter.dora", "true", "--train.adapter.quantise", "nf4"), 2, ["nf4 and dora exclude each other"]),
        (("--train.method", "dppo"), 2, ["dppo", "train.method"]),
        (("--train.learning_rate", "-1"), 2, ["learning_rate is -1", "above 0"]),
        (("--train.lerning_rate", "1"), 2, ["unknown key 'lerning_rate'", "did you mean 'learning_rate'"]),
        (("--train.adapter.start_from", "nowhere"), 1, ["no adapter to start from", "nowhere"]),
        (("--backend", "openai"), 2, ["no backend 'openai'", "openai:MODEL"]),
        (("--overfit", "-3"), 2, ["--overfit", "greater than or equal to 0"]),
    ],
)
def test_what_a_plan_cannot_ask_for(bench, words, code, said):
    found, message = bench.train(*words)
    assert found == code, message
    for part in said:
        assert part in message


@pytest.mark.slow
def test_rows_that_train_nothing(bench):
    bench.rows(weight=0)
    code, said = bench.train()
    assert code == 1
    assert "no token of any row would be trained" in said
    assert "weight" in said


@pytest.mark.slow
def test_a_template_without_an_end_of_turn(bench):
    (bench.base / "generation_config.json").unlink()  # which would name the token that ends an answer
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        path = bench.base / name
        if path.exists():
            path.write_text(path.read_text("utf-8").replace("+ '<|end|>' }}{% endfor %}", "}}{% endfor %}").replace("{{ '<|end|>' }}", ""))
    code, said = bench.train()
    assert code == 1, said
    assert "never stop" in said


@pytest.mark.slow
@pytest.mark.parametrize("key", ["auto_map", "quantization_config", "_attn_implementation"])
def test_a_base_that_wants_code_of_its_own(bench, key):
    bench.change("config.json", **{key: {"AutoModelForCausalLM": "modeling.Own"}})
    code, said = bench.train()
    assert code == 2, said
    assert f"sets '{key}'" in said


class Opened:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


@pytest.mark.slow
def test_pickled_weights_are_never_opened(bench):
    (bench.base / "model.safetensors").unlink()
    (bench.base / "pytorch_model.bin").write_bytes(pickle.dumps(Opened(bench.folder / "opened")))
    code, said = bench.train()
    assert code in (1, 2)
    assert "safetensors" in said
    assert not (bench.folder / "opened").exists()


@pytest.mark.slow
def test_a_finished_folder_is_left_alone_by_a_plan_that_cannot_be(bench):
    assert bench.train()[0] == 0
    code, _ = bench.train("--fresh", "--train.epochs", "0")
    assert code == 2
    assert bench.train("--json")[0] == 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there(bench):
    code, said = bench.train("--train.device", "cuda")
    assert code == 2
    assert "torch finds no GPU" in said


@pytest.mark.slow
def test_a_checkpoint_of_another_plan_is_passed_over(tmp_path):
    """Copied into the folder, whole and sound, it still belongs to another run: nothing of it is used."""
    base, rows = tiny_base(tmp_path / "base"), make_rows(12)
    train(user_plan(epochs=3), rows, base=base, out=tmp_path / "other")
    train(user_plan(epochs=3, seed=1), rows, base=base, out=tmp_path / "whole")
    (tmp_path / "out").mkdir()
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "out" / "checkpoints")
    events: list[dict] = []
    train(user_plan(epochs=3, seed=1), rows, base=base, out=tmp_path / "out", on_event=events.append)
    assert not events[0]["resumed"]
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(tmp_path / "whole")


def test_an_adapter_in_pickle_is_not_read(tmp_path):
    base = tiny_base(tmp_path / "base")
    start = tmp_path / "start"
    start.mkdir()
    (start / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    (start / "adapter_model.bin").write_bytes(b"never read")
    with pytest.raises(TrainingError, match=r"adapter_model\.safetensors"):
        train(user_plan(adapter=Adapter(start_from=str(start))), make_rows(4), base=base, out=tmp_path / "out")


@pytest.mark.slow
def test_an_overfit_takes_the_rows_that_there_are_and_nothing_that_needs_others(bench):
    words = ("--train.metric_rows", "4", "--train.patience", "1", "--train.keep", "best", "--train.learning_rate", "0.02")
    code, said = bench.train("--overfit", "5000", *words)
    assert code == 0, said
    code, said = bench.train("--overfit", "4", "--train.method", "grpo")
    assert code == 2
    assert "by heart" in said
