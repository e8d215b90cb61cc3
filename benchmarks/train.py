"""Training against TRL's SFTTrainer with peft, at its defaults and at its best stock setting: tokens per CPU-second and peak memory.

A base of SmolLM2-135M's shape with random weights, LoRA of rank 16 on all linear layers, eight rows a step; tokens counted without padding.
TUNESMITH_BENCH_STEPS sets the steps of a round (default 12), TUNESMITH_BENCH_ROUNDS the rounds (default 3).
"""

from __future__ import annotations

import os
import sys
import tempfile

from benchmarks.harness import ROOT, Side, alternate, once, peer_python, ratio, table, write_section

HEADLINES = ("lora_vs_trl_defaults", "lora_vs_trl_best", "lora_long_prompts_vs_trl_defaults", "memory_vs_trl_best", "share_of_gemm_limit")
PEER = ("trl==1.16.0", "transformers==5.23.0", "peft==0.21.2")
SIDES = str(ROOT / "benchmarks" / "train_sides.py")


def case(folder: str, peer: str, trained: float, labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """One case: tokens per CPU-second and per second, peak GB, share of the limit, by side."""
    steps, rounds = os.environ.get("TUNESMITH_BENCH_STEPS", "12"), int(os.environ.get("TUNESMITH_BENCH_ROUNDS", "3"))
    python = {"ours": sys.executable}
    sides = [Side(label, [python.get(label, peer), SIDES, label, folder, steps, str(trained)]) for label in labels]
    found = {}
    for label, result in alternate(sides, rounds).items():
        wall = sorted(entry["work"] / entry["wall_s"] for entry in result.rounds)[rounds // 2]
        share = sorted(entry.get("limit_share", 0.0) for entry in result.rounds)[rounds // 2]
        found[label] = {"cpu": result.per_cpu_s, "wall": wall, "gb": result.median("peak_mb") / 1024, "share": share}
    return found


def main() -> None:
    """All cases; writes the page's section."""
    peer = peer_python("trl", PEER, torch=True)
    with tempfile.TemporaryDirectory() as folder:
        once(Side("build", [sys.executable, SIDES, "build", folder, "0", "0"]))
        plain = case(folder, peer, 0.7, ("ours", "trl_best", "trl_defaults"))
        prompts = case(folder, peer, 0.3, ("ours", "trl_defaults"))
    lines = [
        ratio("lora_vs_trl_defaults", plain["ours"]["cpu"] / plain["trl_defaults"]["cpu"]),
        ratio("lora_vs_trl_best", plain["ours"]["cpu"] / plain["trl_best"]["cpu"]),
        ratio("lora_long_prompts_vs_trl_defaults", prompts["ours"]["cpu"] / prompts["trl_defaults"]["cpu"]),
        ratio("memory_vs_trl_best", plain["ours"]["gb"] / plain["trl_best"]["gb"]),
        ratio("share_of_gemm_limit", plain["ours"]["share"]),
    ]
    rows = [
        [name, label, figures["cpu"], figures["wall"], figures["gb"], figures["share"] or "–"]
        for name, found in (("70 % trained", plain), ("30 % trained", prompts))
        for label, figures in found.items()
    ]
    header = ("case", "side", "tokens per CPU-s", "tokens per s", "peak GB", "share of the limit")
    body = table(header, rows) + f"\n\nPeer: {', '.join(PEER)}, torch 2.13.0.\n\n```\n" + "\n".join(lines) + "\n```"
    write_section("train", "Training: LoRA on SmolLM2-135M's shape", body)
