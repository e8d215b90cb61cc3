"""The sides of the training benchmark: `python train_sides.py SIDE FOLDER STEPS TRAINED` trains once and prints its figures as a JSON line.

Runs in the project's environment or in TRL's. FOLDER holds a base of SmolLM2-135M's shape; rows are random tokens of lognormal length (mean
about 150, at most 512), eight a step, TRAINED is the share of each row that carries loss. The first WARM steps are not counted.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM, BATCH = 2, 8


def build(folder: Path) -> None:
    """A Llama of SmolLM2-135M's shape with random weights in bfloat16, and a tokenizer that TRL insists on."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(100)}, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<2>", eos_token="<2>").save_pretrained(folder)


def rows(steps: int, trained: float) -> list[tuple[list[int], list[int]]]:
    """Tokens and mask of each row."""
    import numpy as np

    rng = np.random.default_rng(7)
    found = []
    for _ in range(steps * BATCH):
        length = int(np.clip(rng.lognormal(4.85, 0.55), 16, 512))
        prompt = max(1, round(length * (1 - trained)))
        found.append((rng.integers(10, 49000, length).tolist(), [0] * prompt + [1] * (length - prompt)))
    return found


class Clock:
    """CPU and wall time from the end of the warm-up to the end of the last step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def step(self) -> None:
        """One optimiser step has ended."""
        self.marks.append((time.process_time(), time.perf_counter()))

    def figures(self, work: int) -> dict[str, Any]:
        """The harness's line."""
        (cpu, wall), (cpu_end, wall_end) = self.marks[WARM - 1], self.marks[-1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"work": work, "cpu_s": cpu_end - cpu, "wall_s": wall_end - wall, "peak_mb": peak, "versions": {"torch": version("torch")}}


def ours(folder: Path, data: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    import tempfile

    import numpy as np

    from tunesmith.core.chat import Rendered
    from tunesmith.train.loop import train
    from tunesmith.train.plan import Adapter, Plan

    clock, tokens, shares = Clock(), [], []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            clock.step()
            tokens.append(event["tokens"])
            shares.append(event["limit_share"])

    rendered = [Rendered(str(i), np.asarray(ids, np.int32), np.asarray(mask, np.uint8)) for i, (ids, mask) in enumerate(data)]
    with tempfile.TemporaryDirectory() as out:
        train(Plan(epochs=1, batch_size=BATCH, adapter=Adapter(r=16)), rendered, base=folder, out=Path(out), on_event=on_event)
    return clock.figures(sum(tokens[WARM:])) | {"limit_share": sorted(shares)[len(shares) // 2]}


def trl(folder: Path, data: list[tuple[list[int], list[int]]], *, best: bool) -> dict[str, Any]:
    """SFTTrainer with peft at its defaults; `best`: bfloat16 weights, no activation checkpointing, packed without padding."""
    import tempfile

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock = Clock()

    class Marks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if best else torch.float32)
    faster = {"gradient_checkpointing": False, "padding_free": True} if best else {}
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, per_device_train_batch_size=BATCH, num_train_epochs=1, report_to=[], save_strategy="no", use_cpu=True,
            logging_steps=1000, disable_tqdm=True, train_sampling_strategy="sequential", max_length=None, learning_rate=1e-3, **faster,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list([{"input_ids": ids, "completion_mask": mask} for ids, mask in data]),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"),
            callbacks=[Marks()],
        )
        trainer.train()
    return clock.figures(sum(len(ids) for ids, _ in data[WARM * BATCH :]))


def main(side: str, folder: str, steps: str, trained: str) -> None:
    """One side once."""
    place = Path(folder)
    if side == "build":
        build(place)
        print(json.dumps({"work": 1, "cpu_s": 1.0, "wall_s": 1.0}))
        return
    data = rows(int(steps), float(trained))
    found = ours(place, data) if side == "ours" else trl(place, data, best=side == "trl_best")
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
