"""Training against TRL with peft (and bitsandbytes) at its defaults and at its best stock setting, and what each technique gives.

A base of SmolLM2-135M's shape with random weights, LoRA of rank 16 on all linear layers, eight rows a step; tokens counted without padding.
TUNESMITH_BENCH_STEPS sets the steps of a round (default 5, the first is not counted), TUNESMITH_BENCH_ROUNDS the rounds (default 3).
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import version

from benchmarks.harness import ROOT, Result, Side, alternate, once, peer_python, ratio, table, write_section
from benchmarks.train_ablation import TECHNIQUES

HEADLINES = (
    "lora_vs_trl_defaults",
    "lora_vs_trl_best",
    "lora_long_prompts_vs_trl_defaults",
    "memory_vs_trl_best",
    "share_of_gemm_limit",
    "dpo_vs_trl",
    "qlora_vs_peft",
    "start_vs_trl",
)
PEER = ("trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "bitsandbytes==0.50.2")
# Name of a case: what it is, the kind and the share of trained tokens for train_sides, the peer's settings that run.
CASES = {
    "lora": ("LoRA", "lora", "0.7", ("trl_best", "trl_defaults")),
    "prompts": ("LoRA, 30 % trained", "lora", "0.3", ("trl_defaults",)),
    "dpo": ("DPO", "dpo", "0.5", ("trl_best", "trl_defaults")),
    "qlora": ("QLoRA NF4, double quantisation", "qlora", "0.7", ("trl_best",)),
    "start": ("start: command to first step", "start", "0.7", ("trl_best",)),
}
HOW = """{steps} steps a round of which the first is not counted, medians of {rounds} rounds, sides in turn; rows are lognormal, mean \
about 150 tokens, at most 512, 70 % of each trained unless said otherwise. DPO: four pairs a step that share their prompts, half of each \
row trained, the reference log-probabilities counted. `trl_best`: bfloat16 weights, no activation checkpointing, `padding_free` (which \
TRL's DPOTrainer takes and ignores). QLoRA's peer is SFTTrainer with bitsandbytes' NF4 (`support_avx512bf16_for_cpu = False`, else its \
gradients are wrong). Start: a fresh process until its first step begins. Share of the limit: what the products of the counted tokens \
alone would take at the rates that one core reaches at the model's own shapes in the same run (frozen weights 4 FLOP each, output layer at \
trained positions, adapters 6, causal attention 12 × width for each pair)."""


def compare(name: str, folder: str, peer: str, steps: int, rounds: int) -> dict[str, Result]:
    """The sides of one case in turn."""
    _, kind, trained, settings = CASES[name]
    script = str(ROOT / "benchmarks" / "train_sides.py")
    pythons = {"ours": sys.executable} | dict.fromkeys(settings, peer)
    sides = [Side(label, [python, script, label, kind, folder, str(steps), trained]) for label, python in pythons.items()]
    return alternate(sides, rounds)


def gain(sides: dict[str, Result], peer: str) -> float:
    """How many times the peer's tokens per CPU-second ours has."""
    return sides["ours"].per_cpu_s / sides[peer].per_cpu_s


def ablation(folder: str, steps: int, rounds: int) -> str:
    """The table of techniques."""
    module = [sys.executable, "-m", "benchmarks.train_ablation"]
    sides = [Side(name, [*module, str(i + 1), folder, str(steps)]) for i, name in enumerate(TECHNIQUES)]
    found = list(alternate(sides, rounds).values())
    first = found[0].per_cpu_s
    rows = [
        [("+ " if i else "") + r.label, r.per_cpu_s, r.per_cpu_s / first, r.median("peak_mb") / 1024, r.rounds[-1]["loss"]]
        for i, r in enumerate(found)
    ]
    return table(("technique", "tokens per CPU-s", "times", "peak GB", "last loss"), rows)


def main() -> None:
    """All cases; writes the page's section."""
    steps, rounds = int(os.environ.get("TUNESMITH_BENCH_STEPS", "5")), int(os.environ.get("TUNESMITH_BENCH_ROUNDS", "3"))
    peer = peer_python("trl", PEER, torch=True)
    with tempfile.TemporaryDirectory() as folder:
        once(Side("build", [sys.executable, str(ROOT / "benchmarks" / "train_sides.py"), "build", "", folder, "0", "0"]))
        found = {name: compare(name, folder, peer, 1 if name == "start" else steps, rounds) for name in CASES}
        techniques = ablation(folder, steps, max(1, rounds - 1))
    lora, start = found["lora"], found["start"]
    share = lora["ours"].median("limit_share")
    lines = [
        ratio("lora_vs_trl_defaults", gain(lora, "trl_defaults")),
        ratio("lora_vs_trl_best", gain(lora, "trl_best")),
        ratio("lora_long_prompts_vs_trl_defaults", gain(found["prompts"], "trl_defaults")),
        ratio("memory_vs_trl_best", lora["ours"].median("peak_mb") / lora["trl_best"].median("peak_mb")),
        ratio("share_of_gemm_limit", share),
        ratio("dpo_vs_trl", gain(found["dpo"], "trl_best")),
        ratio("qlora_vs_peft", gain(found["qlora"], "trl_best")),
        ratio("start_vs_trl", start["ours"].median("cpu_s") / start["trl_best"].median("cpu_s")),
    ]
    rows = [
        [CASES[name][0], label, side.per_cpu_s, side.median("work") / side.median("wall_s"), side.median("peak_mb") / 1024]
        for name, sides in found.items()
        if name != "start"
        for label, side in sides.items()
    ]
    starts = [[label, side.median("cpu_s"), side.median("wall_s")] for label, side in start.items()]
    body = "\n\n".join(
        [
            HOW.format(steps=steps, rounds=rounds),
            table(("case", "side", "tokens per CPU-s", "tokens per s", "peak GB"), rows),
            table(("start", "CPU-s", "seconds"), starts),
            "One technique after the other, on one thread, in a plain loop:",
            techniques,
            f"Peer: {', '.join(PEER)}, torch 2.13.0. Ours: torch {version('torch')}, transformers {version('transformers')}, "
            f"peft {version('peft')}.",
            "```\n" + "\n".join(lines) + "\n```",
        ]
    )
    write_section("train", "Training: LoRA on SmolLM2-135M's shape", body)


if __name__ == "__main__":
    main()
