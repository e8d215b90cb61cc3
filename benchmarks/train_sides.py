"""The sides of the training benchmark: `python train_sides.py SIDE CASE FOLDER STEPS TRAINED` trains once and prints its figures as JSON.

Runs in the project's environment or in TRL's. FOLDER holds a base of SmolLM2-135M's shape; rows are random tokens of lognormal length (mean
about 150, at most 512), eight a step (dpo: four pairs that share their prompt), TRAINED is the share of each row that carries loss. The
first WARM steps are not counted. The case `start` ends where the first step begins, and counts from the start of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM, BATCH = 1, 8
HIDDEN, MIDDLE, LAYERS, HEADS, GROUPS, VOCABULARY = 576, 1536, 30, 9, 3, 49152
RANK, RATE = 16, 1e-3

Row = tuple[list[int], list[int]]


def build(folder: Path) -> None:
    """A Llama of SmolLM2-135M's shape with random weights in bfloat16, and a tokenizer that TRL insists on."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=MIDDLE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(100)}, unk_token="<0>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<2>", eos_token="<2>").save_pretrained(folder)


def rows(steps: int, trained: float) -> list[Row]:
    """Tokens and mask of each row."""
    import numpy as np

    rng = np.random.default_rng(7)
    found = []
    for _ in range(steps * BATCH):
        length = int(np.clip(rng.lognormal(4.85, 0.55), 16, 512))
        prompt = max(1, round(length * (1 - trained)))
        found.append((rng.integers(10, 49000, length).tolist(), [0] * prompt + [1] * (length - prompt)))
    return found


def pairs(data: list[Row]) -> list[tuple[Row, Row]]:
    """Every two rows as a pair for DPO: the answers of both to the prompt of the first."""
    found = []
    for (ids, mask), (other, other_mask) in zip(data[::2], data[1::2], strict=True):
        prompt, answer = ids[: mask.count(0)], other[other_mask.count(0) :]
        found.append(((ids, mask), (prompt + answer, [0] * len(prompt) + [1] * len(answer))))
    return found


class Clock:
    """CPU and wall time at the start of the first step and at the end of each."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.environment: dict[str, Any] = {}

    def mark(self) -> None:
        """The first step begins, or a step has ended: peak memory up to here (ours goes on to test its artifact), and torch's version."""
        self.marks.append((time.process_time(), time.time()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.environment = {"peak_mb": peak, "versions": {"torch": version("torch")}}

    def figures(self, work: int, more_cpu_s: float = 0.0) -> dict[str, Any]:
        """The harness's line; `work` is what the steps after the warm-up did."""
        (cpu, wall), (cpu_end, wall_end) = self.marks[WARM], self.marks[-1]
        spent = cpu_end - cpu + more_cpu_s
        return {"work": work, "cpu_s": spent, "wall_s": wall_end - wall} | self.environment

    def start(self) -> dict[str, Any]:
        """The line of the case `start`."""
        import psutil

        cpu, wall = self.marks[0]
        return {"work": 1, "cpu_s": cpu, "wall_s": wall - psutil.Process().create_time()} | self.environment


def best_of(work: Callable[[], Any], seconds: float = 0.1) -> float:
    """The least seconds that a call took."""
    least, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - begin)
    return least


def limit_s(computed: float, data: list[Row], trained: int) -> float:
    """Core-seconds that the products of these rows alone would take at the rates that one core reaches at the model's own shapes.

    Frozen weights: forward and to the input, 4 FLOP a weight and computed token; the output layer the same for trained positions only;
    adapters 6 (their own gradients too); attention 12 · heads · width for each pair of tokens that see each other.
    """
    import torch

    torch.set_num_threads(1)
    tokens, seconds, layer = 1024, 0.0, 0
    narrow = HIDDEN // HEADS * GROUPS
    for count, wide, deep in ((2, HIDDEN, HIDDEN), (2, narrow, HIDDEN), (2, MIDDLE, HIDDEN), (1, HIDDEN, MIDDLE)):
        x, weight = torch.randn(tokens, deep).bfloat16(), torch.randn(wide, deep).bfloat16()
        y = x @ weight.T
        least = best_of(lambda x=x, weight=weight: x @ weight.T) + best_of(lambda y=y, weight=weight: y @ weight)  # type: ignore[misc]
        seconds += count * least / tokens
        layer += count * wide * deep
    hidden, head = torch.randn(256, HIDDEN).bfloat16(), torch.randn(VOCABULARY, HIDDEN).bfloat16()
    logits = hidden @ head.T
    output = (best_of(lambda: torch.mm(hidden, head.T, out=logits), 0.5) + best_of(lambda: logits @ head, 0.5)) / len(hidden)
    adapters = RANK * (2 * 2 * HIDDEN + 2 * (narrow + HIDDEN) + 3 * (MIDDLE + HIDDEN))
    seen = sum(len(ids) * (len(ids) + 1) / 2 for ids, _ in data)
    rate = 4 * layer / seconds
    rest = (6 * adapters * computed + 12 * HIDDEN * seen) / rate
    return LAYERS * (seconds * computed + rest) + output * trained


def ours(case: str, folder: Path, data: list[Row]) -> dict[str, Any]:
    import numpy as np

    from tunesmith.core.chat import Rendered
    from tunesmith.train import loop
    from tunesmith.train.plan import Adapter, Plan

    clock, events, reference_s = Clock(), [], []
    plain = loop.references

    def references(*parts: Any) -> Any:
        """Reference log-probabilities come before the first step: their time is added to that of the steps."""
        begin = time.process_time()
        found = plain(*parts)
        reference_s.append(time.process_time() - begin)
        return found

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] in ("start", "step"):
            clock.mark()
            events.append(event)

    def rendered(number: int, row: Row) -> Rendered:
        return Rendered(str(number), np.asarray(row[0], np.int32), np.asarray(row[1], np.uint8))

    loop.references = references
    dpo, size = case == "dpo", BATCH // 2 if case == "dpo" else BATCH
    items = [tuple(rendered(i, r) for r in pair) for i, pair in enumerate(pairs(data))] if dpo else [rendered(*r) for r in enumerate(data)]
    plan = Plan(
        method="dpo" if dpo else "sft",
        epochs=1,
        batch_size=size,
        learning_rate=RATE,
        adapter=Adapter(r=RANK, alpha=32.0, quantise="nf4" if case == "qlora" else "none"),
    )
    with tempfile.TemporaryDirectory() as out:
        loop.train(plan, items, base=folder, out=Path(out), on_event=on_event)
    if case == "start":
        return clock.start()
    counted = events[1 + WARM :]
    found = clock.figures(sum(e["tokens"] for e in counted), sum(reference_s) * len(counted) / (len(events) - 1))
    if case != "lora":
        return found
    computed, kept = sum(e["computed_tokens"] for e in counted), data[WARM * BATCH :]
    limit = limit_s(computed, kept, sum(sum(mask) for _, mask in kept))
    return found | {"limit_share": limit / found["cpu_s"]}


def peer_model(case: str, folder: Path, *, best: bool) -> Any:
    """The base as the peer trains it: float32 under autocast by default, bfloat16 at its best, NF4 with double quantisation for QLoRA."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if best else torch.float32
    if case != "qlora":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=four, device_map="cpu")
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # else an evaluation repacks the weight, and input gradients are lost
    return model


def peer(case: str, folder: Path, data: list[Row], *, best: bool) -> dict[str, Any]:
    """TRL with peft at its defaults; `best`: bfloat16 weights, no activation checkpointing, packed without padding."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback

    clock = Clock()

    class Marks(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not clock.marks:
                clock.mark()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.mark()

    model, dpo = peer_model(case, folder, best=best), case == "dpo"
    faster = {"gradient_checkpointing": False, "padding_free": True} if best else {}
    if dpo:
        counted = [[len(ids) for ids, _ in pair] for pair in pairs(data)][WARM * BATCH // 2 :]
        work = sum(sum(pair) for pair in counted)
        dataset = Dataset.from_list([_pair(*pair) for pair in pairs(data)])
        trl.DPOTrainer._prepare_dataset = lambda self, dataset, *rest: dataset  # the rows are tokens already
    else:
        work = sum(len(ids) for ids, _ in data[WARM * BATCH :])
        dataset = Dataset.from_list([{"input_ids": ids, "completion_mask": mask} for ids, mask in data])
    kind, trainer_of = (trl.DPOConfig, trl.DPOTrainer) if dpo else (trl.SFTConfig, trl.SFTTrainer)
    with tempfile.TemporaryDirectory() as out:
        config = kind(
            output_dir=out, per_device_train_batch_size=BATCH // 2 if dpo else BATCH, num_train_epochs=1, report_to=[], save_strategy="no",
            use_cpu=True, logging_steps=1000, disable_tqdm=True, train_sampling_strategy="sequential", max_length=None, learning_rate=RATE,
            **faster,
        )  # fmt: skip
        trainer_of(
            model=model,
            args=config,
            train_dataset=dataset,
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=32, target_modules="all-linear"),
            callbacks=[Marks()],
        ).train()
    return clock.start() if case == "start" else clock.figures(work)


def _pair(chosen: Row, rejected: Row) -> dict[str, list[int]]:
    start = chosen[1].count(0)
    return {"prompt_ids": chosen[0][:start], "chosen_ids": chosen[0][start:], "rejected_ids": rejected[0][start:]}


def main(side: str, case: str, folder: str, steps: str, trained: str) -> None:
    """One side once."""
    place = Path(folder)
    if side == "build":
        build(place)
        print(json.dumps({"work": 1, "cpu_s": 1.0, "wall_s": 1.0}))
        return
    data = rows(int(steps), float(trained))
    found = ours(case, place, data) if side == "ours" else peer(case, place, data, best=side == "trl_best")
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
