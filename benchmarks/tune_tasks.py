"""Tasks whose plans are all trained once, so that searches can be compared on the same numbers: each plan of a 4 × 4 × 3 grid, looked at
on every rung by the product's own study. One has real rows and the small trained Llama of the package glassllm; in the other a random
model learns a rule.

The measured curves are kept beside the peers, under a name that follows from all that they depend on.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import ROOT

RUNGS = (1 / 9, 1 / 3, 1.0)  # every search looks where it does
Rows = list[dict[str, Any]]
Curve = list[tuple[int, float, float | None]]  # (tokens so far, value, validation loss) at each rung
_AT_ONCE = 8
_GLASS = "glassllm==0.1.0"
_SPLIT = 'split: {validation: 0.25, test: 0.1, semantic: {action: "off"}}'


class Grid(NamedTuple):
    """What each plan has on each rung, by its parameters as JSON, and which one is the default."""

    curves: dict[str, Curve]
    default: str
    space: dict[str, dict[str, list[Any]]]

    @property
    def tokens(self) -> int:
        """Of all its trainings together."""
        return sum(curve[-1][0] for curve in self.curves.values())

    @property
    def best(self) -> float:
        """The best value of a whole training."""
        return max(curve[-1][1] for curve in self.curves.values())


class Task(NamedTuple):
    """A task of the benchmark: what it is, its project, its rows, its base and what varies."""

    name: str
    about: str
    yaml: str
    rows: Callable[[], Rows]
    base: Callable[[Path], object]
    space: dict[str, dict[str, list[Any]]]


def _turns(asked: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def toy_rows() -> Rows:
    """A toy task that takes some learning: say which of two words comes first in a sentence."""
    rng, rows = random.Random(0), []
    words = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
    for _ in range(480):
        asked = " ".join(rng.sample(words, 6))
        answer = "yes" if "bank" in asked and "credit" in asked else "no" if "bank" in asked else "nobody"
        rows.append(_turns(asked, answer))
    return rows


def occupation_rows() -> Rows:
    """Job titles with the last word of their occupation, of the six commonest."""
    from tunesmith.models.catalog import Catalog

    known: dict[str, str] = {}
    for line in Catalog().dataset("soc_codes").read_text("utf-8").splitlines():
        row = json.loads(line)
        title = str(row["input"][-1]["content"]).removeprefix("What is the SOC Code for the job title ").rstrip("' ")
        known[title] = str(row["ideal"]).strip().removesuffix(", All Other").split()[-1].lower()
    common = [word for word, _ in Counter(known.values()).most_common(6)]
    return [_turns(title, word) for title, word in sorted(known.items()) if word in common]


def _toy(folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    tiny.model(folder, context=128)


def glass(folder: Path) -> None:
    """The English model of the package glassllm (853 thousand parameters, MIT licence) as transformers has a Llama; nothing of the package
    is imported. Its rotary positions turn neighbouring numbers, a Llama's the two halves of a head."""
    import numpy as np
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = _package()
    config, merges = json.loads(str(np.load(place / "en.npz")["__config__"])), json.loads((place / "en.tokenizer.json").read_text("utf-8"))
    vocabulary = ["<pad>", "<unk>", "<bos>", "<eos>", *merges["alphabet"], *("".join(pair) for pair in merges["merges"])]
    raw = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, [tuple(pair) for pair in merges["merges"]], unk_token="<unk>")
    )
    raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("\n|▁*[^▁\n]+|▁+"), "isolated")
    raw.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = "<bos>{% for m in messages %}{{ m.content + ('\n' if m.role == 'user' else '<eos>') }}{% endfor %}"
    fast.save_pretrained(folder)
    arrays = np.load(place / "en.npz")
    width, heads, groups = config["d_model"], config["n_heads"], config["n_kv_heads"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=width, intermediate_size=arrays["blocks.0.ffn.W1"].shape[1],
            num_hidden_layers=config["n_layers"], num_attention_heads=heads, num_key_value_heads=groups, rms_norm_eps=config["eps"],
            max_position_embeddings=config["max_len"], rope_theta=config["rope_base"], tie_word_embeddings=True, bos_token_id=2,
            eos_token_id=3, pad_token_id=0,
        )
    )  # fmt: skip

    def halves(weight: Any, count: int) -> Any:
        rows = weight.T.reshape(count, -1, 2, width)  # head, pair, which of the pair
        return rows.transpose(0, 2, 1, 3).reshape(-1, width)

    names = {"q_proj": ("attn.W_Q", heads), "k_proj": ("attn.W_K", groups), "v_proj": ("attn.W_V", 0), "o_proj": ("attn.W_O", 0)}
    state = {"model.embed_tokens.weight": arrays["E"], "model.norm.weight": arrays["norm_f.gamma"]}
    for i in range(config["n_layers"]):
        own, theirs = f"model.layers.{i}", f"blocks.{i}"
        for name, (key, count) in names.items():
            weight = arrays[f"{theirs}.{key}"]
            state[f"{own}.self_attn.{name}.weight"] = halves(weight, count) if count else weight.T
        for name, key in (("gate_proj", "W1"), ("up_proj", "W3"), ("down_proj", "W2")):
            state[f"{own}.mlp.{name}.weight"] = arrays[f"{theirs}.ffn.{key}"].T
        state[f"{own}.input_layernorm.weight"] = arrays[f"{theirs}.norm1.gamma"]
        state[f"{own}.post_attention_layernorm.weight"] = arrays[f"{theirs}.norm2.gamma"]
    left = model.load_state_dict({key: torch.from_numpy(np.array(value, np.float32)) for key, value in state.items()}, strict=False)
    if left.unexpected_keys or left.missing_keys != ["lm_head.weight"]:
        raise RuntimeError(f"glassllm's weights do not fit: {left}")
    model.tie_weights()
    model.save_pretrained(folder)


def _package() -> Path:
    """The folder of weights in an environment of its own."""
    from benchmarks.harness import peer_python

    return next(Path(peer_python("glassllm-0.1.0", ["--no-deps", _GLASS])).parent.parent.glob("lib/python*/site-packages/glassllm/weights"))


def _yaml(train: str, tokens: int) -> str:
    evaluate = f"evaluate: {{metrics: [exact_match], max_tokens: {tokens}}}\n"
    return f"name: bench\nsources: [{{path: rows.jsonl}}]\nbase: ./base\n{_SPLIT}\n{train}\n{evaluate}"


_REAL = "train: {epochs: 3, learning_rate: 0.001, batch_size: 8, dtype: float32, threads: 1, adapter: {r: 16}}"
_AROUND = {
    "learning_rate": {"choices": [3e-4, 1e-3, 3e-3, 1e-2]},
    "batch_size": {"choices": [4, 8, 16, 32]},
    "adapter.r": {"choices": [4, 16, 64]},
}
TASKS = (
    Task("occupations", "job titles: what are they? (0.85 M parameters)", _yaml(_REAL, 10), occupation_rows, glass, _AROUND),
    Task(
        "toy",
        "a rule over words, on a random model of two layers",
        _yaml(
            "train: {epochs: 3, learning_rate: 0.01, batch_size: 16, dtype: float32, threads: 1, warmup_ratio: 0.03, adapter: {r: 8}}", 4
        ),
        toy_rows,
        _toy,
        {
            "learning_rate": {"choices": [1e-3, 3e-3, 1e-2, 3e-2]},
            "batch_size": {"choices": [4, 8, 16, 32]},
            "adapter.r": {"choices": [2, 8, 32]},
        },
    ),
)


def key(params: dict[str, Any]) -> str:
    """A plan's parameters as the name of its curve."""
    return json.dumps(params, sort_keys=True)


def measured(task: Task) -> Grid:
    """The task's grid: read where it was trained before, else trained."""
    from tunesmith.core.types import digest

    path = ROOT / ".peers" / f"tune-grid-{digest(task.yaml, task.space, RUNGS, task.rows(), 'with losses')[:12]}.json"
    if not path.is_file():
        folder = path.with_suffix("")  # the study itself: killed, it goes on from here
        folder.mkdir(parents=True, exist_ok=True)
        curves, default = _trained(task, folder)
        path.write_text(json.dumps({"curves": curves, "default": default}))
        shutil.rmtree(folder)
    found = json.loads(path.read_text())
    curves = {name: [(tokens, value, loss) for tokens, value, loss in curve] for name, curve in found["curves"].items()}
    return Grid(curves, found["default"], task.space)


@contextmanager
def study_of(task: Task, folder: Path, **tune: Any) -> Iterator[Any]:
    """A study of the task, its rows tokenised."""
    from tunesmith.core.progress import Silent
    from tunesmith.flow.pipeline.run import opened
    from tunesmith.flow.project import load_project
    from tunesmith.flow.tuning.study import begin

    if not (folder / "rows.jsonl").is_file():
        task.base(folder / "base")
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task.rows()))
        (folder / "tunesmith.yaml").write_text(task.yaml)
    settings = {"space": task.space, "rungs": RUNGS, "eta": 2, "trials": 48, "sampler": "grid", "proxy": 0, **tune}
    project = load_project(folder / "tunesmith.yaml", ["--tune", json.dumps(settings)])
    with opened(project, folder, Silent()) as context:
        context.runner.run("tokens")
        yield begin(context, "")


def _trained(task: Task, folder: Path) -> tuple[dict[str, Curve], str]:
    """Every plan trained whole, several side by side, with a look on every rung; goes on where an earlier call was stopped."""
    from tunesmith.flow.tuning.study import Leg

    began = time.process_time()
    with study_of(task, folder) as study, (folder / "lock").open("w") as lock:
        while True:
            begun = [trial for trial in study.search.trials() if trial.state in ("running", "paused")]
            taken = begun or [trial for _ in range(_AT_ONCE) if (trial := study.search.next(48)) is not None]
            if not taken:
                break
            rung = min(len(trial.looks) for trial in taken)
            done = study.carry_out([Leg(trial, rung, lock) for trial in taken if len(trial.looks) == rung])
            values = ", ".join(f"{trial.value:.3f}" for trial in done)
            print(
                f"  {task.name}, to plan {done[-1].number + 1} of 48, rung {rung}: {values}; {time.process_time() - began:.0f} CPU-s",
                flush=True,
            )
        trials = study.search.trials()
    return {key(trial.params): [(look.tokens, look.value or 0.0, look.loss) for look in trial.looks] for trial in trials}, key(
        trials[0].params
    )


if __name__ == "__main__":  # python -m benchmarks.tune_tasks TASK: train its grid, or go on with it
    for each in TASKS:
        if each.name in sys.argv[1:]:
            print(f"{each.name}: {len(measured(each).curves)} plans")
