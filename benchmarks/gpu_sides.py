"""The sides of the GPU benchmark: `python gpu_sides.py SIDE FOLDER CASE` trains once and prints its figures as a JSON line.

CASE is a JSON object: shape, tokens (of each row), pack (tokens computed at once), kind (lora or qlora), steps, checkpointing, device. Runs
in the project's environment or in TRL's. FOLDER holds a Llama of that shape with random weights. The first WARM steps are not counted; peak
memory is the allocator's on a GPU, the process's elsewhere.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

WARM = 2
STEP_TOKENS = 16_384  # of one optimiser step, on both sides
# Llama 3.2 1B and Llama 3.1 8B; the tiny one shows that the script runs.
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "head_dim": 64},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "head_dim": 128},
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "head_dim": 8,
        "vocab_size": 512,
    },
}


def config_of(shape: str) -> dict[str, Any]:
    """The whole configuration of a shape."""
    common = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 16_384, "tie_word_embeddings": shape != "8b"}
    return common | SHAPES[shape]


def build(folder: Path, shape: str) -> None:
    """Random weights in bfloat16, and a tokenizer that TRL insists on."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**config_of(shape))).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(100)}, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<2>", eos_token="<2>").save_pretrained(folder)


def flops_per_token(shape: str, tokens: int) -> float:
    """What LoRA cannot avoid: 4 per weight of linear and output layers, 6 per pair of tokens and width in causal attention."""
    c = config_of(shape)
    hidden, width = c["hidden_size"], c["num_attention_heads"] * c["head_dim"]
    block = hidden * (2 * width + 2 * c["num_key_value_heads"] * c["head_dim"]) + 3 * hidden * c["intermediate_size"]
    return 4.0 * (c["num_hidden_layers"] * block + hidden * c["vocab_size"]) + 6.0 * c["num_hidden_layers"] * width * tokens


def rows(case: dict[str, Any]) -> list[list[int]]:
    """Random tokens, each row of the case's length, all of a step with STEP_TOKENS together."""
    import numpy as np

    rng = np.random.default_rng(7)
    count = case["steps"] * max(1, STEP_TOKENS // case["tokens"])
    return rng.integers(10, config_of(case["shape"])["vocab_size"] - 10, (count, case["tokens"])).tolist()


class Done(Exception):
    """Enough steps were timed; saving and testing the result is not the benchmark's business."""


class Clock:
    """Wall and CPU time from the end of the warm-up to the end of the last step."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.marks: list[tuple[float, float]] = []

    def step(self) -> None:
        """One optimiser step has ended."""
        if self.case["device"] == "cuda":
            import torch

            torch.cuda.synchronize()
        self.marks.append((time.process_time(), time.perf_counter()))

    def figures(self) -> dict[str, Any]:
        """The harness's line."""
        import torch

        (cpu, wall), (cpu_end, wall_end) = self.marks[WARM - 1], self.marks[-1]
        work = (len(self.marks) - WARM) * max(1, STEP_TOKENS // self.case["tokens"]) * self.case["tokens"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if self.case["device"] == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
        found = {"work": work, "cpu_s": cpu_end - cpu, "wall_s": wall_end - wall, "peak_mb": peak, "versions": versions()}
        return found | {"checkpointing": self.case["checkpointing"]}


def versions() -> dict[str, str]:
    """Of what matters here and is installed."""
    found = {}
    for name in ("torch", "transformers", "peft", "trl", "bitsandbytes", "liger-kernel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def ours(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from tunesmith.core.chat import Rendered
    from tunesmith.train.loop import train
    from tunesmith.train.plan import Adapter, Plan

    clock = Clock(case)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            clock.step()
            if event["step"] == case["steps"]:
                raise Done

    data = rows(case)
    rendered = [Rendered(str(i), np.asarray(ids, np.int32), np.asarray([0] + [1] * (len(ids) - 1), np.uint8)) for i, ids in enumerate(data)]
    plan = Plan(
        epochs=1,
        batch_size=len(data) // case["steps"],
        micro_batch_tokens=max(case["pack"], case["tokens"]),
        activation_checkpointing=case["checkpointing"],
        dtype="bfloat16",
        device=case["device"],
        adapter=Adapter(r=16, quantise="nf4" if case["kind"] == "qlora" else "none"),
    )
    with tempfile.TemporaryDirectory() as out:
        try:
            train(plan, rendered, base=folder, out=Path(out), on_event=on_event)
        except Done:
            return clock.figures()
    raise RuntimeError("the run ended before its steps were counted")


def trl(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer at its best: bfloat16 weights, rows of equal length (nothing is padded), SDPA, Liger on a GPU."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock = Clock(case)

    class Marks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    four = None
    if case["kind"] == "qlora":
        four = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
        )
    place = {"device_map": {"": 0}} if case["device"] == "cuda" else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", quantization_config=four, **place
    )
    data = rows(case)
    together = max(1, case["pack"] // case["tokens"])
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, per_device_train_batch_size=together, gradient_accumulation_steps=len(data) // case["steps"] // together,
            num_train_epochs=1, report_to=[], save_strategy="no", use_cpu=case["device"] == "cpu", bf16=True, logging_steps=1000,
            disable_tqdm=True, max_length=None, learning_rate=1e-4, gradient_checkpointing=case["checkpointing"],
            use_liger_kernel=case["device"] == "cuda", optim="adamw_torch_fused",
        )  # fmt: skip
        SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list([{"input_ids": ids, "completion_mask": [0] + [1] * (len(ids) - 1)} for ids in data]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
            callbacks=[Marks()],
        ).train()
    return clock.figures()


def main(side: str, folder: str, words: str) -> None:
    """One side once."""
    case = json.loads(words)
    if side == "build":
        build(Path(folder), case["shape"])
        print(json.dumps({"work": 1, "cpu_s": 1.0, "wall_s": 1.0}))
        return
    print(json.dumps((ours if side == "ours" else trl)(Path(folder), case)))


if __name__ == "__main__":
    main(*sys.argv[1:])
