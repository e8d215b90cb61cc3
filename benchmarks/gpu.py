"""LoRA and QLoRA on one GPU against TRL at its best: tokens per second, share of the data sheet's rate (MFU), peak memory.

Llamas of 1 B and 8 B parameters with random weights, rows of 2,048 and 8,192 tokens, 16,384 tokens a step. Skips, with the reason, where
torch finds no GPU. `python -m benchmarks.gpu --device cpu` walks the same script with a tiny shape, which is no result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from statistics import median
from typing import Any

from benchmarks.gpu_sides import WARM, flops_per_token
from benchmarks.harness import ROOT, Side, once, peer_python, ratio, table, write_section

HEADLINES = ("gpu_lora_vs_trl", "gpu_qlora_vs_trl", "gpu_mfu")
PEER = ("trl==1.16.0", "transformers==5.23.0", "peft==0.21.2")
PEER_GPU = (*PEER, "bitsandbytes==0.50.2", "liger-kernel")
SIDES = str(ROOT / "benchmarks" / "gpu_sides.py")
# Tokens computed at once: what 80 GB hold without activation checkpointing, when they do.
PACK = {"1b": 16_384, "8b": 8_192, "tiny": 2_048}


def gpu() -> tuple[str, float] | None:
    """The GPU's name and its dense bfloat16 FLOP/s by the project's table (0 where it is not listed); None without one."""
    import torch

    from tunesmith.train.gpus import table as known

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    words = name.upper().replace("-", " ").split()
    peak = next((card.bfloat16 or 0.0 for short, card in known().gpus.items() if short in words), 0.0)
    return name, 1e12 * peak


def run(python: str, side: str, folder: str, case: dict[str, Any]) -> dict[str, Any] | None:
    """One round; out of memory, once more with activation checkpointing; None when the side cannot do the case at all."""
    for checkpointing in (False, True):
        try:
            return once(Side(side, [python, SIDES, side, folder, json.dumps(case | {"checkpointing": checkpointing})]))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"  {side}, checkpointing {checkpointing}: {str(error).strip().splitlines()[-1][:200]}", flush=True)
            if "out of memory" not in str(error).lower():
                return None
    return None


def compare(peer: str, folder: str, case: dict[str, Any], rounds: int) -> dict[str, dict[str, Any]]:
    """Both sides, alternating: medians of tokens per second and peak GB."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for _ in range(rounds):
        for side, python in (("ours", sys.executable), ("trl", peer)):
            if (entry := run(python, side, folder, case)) is not None:
                found[side].append(entry)
    return {
        side: {
            "rate": median(entry["work"] / entry["wall_s"] for entry in entries),
            "gb": median(entry["peak_mb"] for entry in entries) / 1024,
            "recomputed": entries[-1]["checkpointing"],
            "versions": entries[-1]["versions"],
        }
        for side, entries in found.items()
        if entries
    }


def cases(device: str, steps: int) -> list[dict[str, Any]]:
    """Shape by method by length of the rows; on a CPU one length of a tiny shape."""
    real = device == "cuda"
    every = itertools.product(("1b", "8b") if real else ("tiny",), ("lora", "qlora"), (2048, 8192) if real else (256,))
    return [
        {"shape": shape, "kind": kind, "tokens": tokens, "pack": PACK[shape], "steps": steps, "device": device}
        for shape, kind, tokens in every
    ]


def measured(peer: str, device: str) -> list[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Every case with what its sides gave."""
    steps = int(os.environ.get("TUNESMITH_BENCH_STEPS", "10" if device == "cuda" else str(WARM + 1)))
    rounds = int(os.environ.get("TUNESMITH_BENCH_ROUNDS", "3" if device == "cuda" else "1"))
    found = []
    for shape, group in itertools.groupby(cases(device, steps), lambda case: case["shape"]):
        with tempfile.TemporaryDirectory() as folder:
            once(Side("build", [sys.executable, SIDES, "build", folder, json.dumps({"shape": shape})]))
            found += [(case, compare(peer, folder, case, rounds)) for case in group]
    return found


def page(found: list[tuple[dict[str, Any], dict[str, dict[str, Any]]]], peak: float | None) -> str:
    """The table and the versions of both sides; the headlines, each the smallest over its cases, unless the peak is None: no result."""
    rows, lines, shares = [], [], []
    for case, sides in found:
        for side, figures in sides.items():
            share = figures["rate"] * flops_per_token(case["shape"], case["tokens"]) / peak if peak else None
            shown = "–" if share is None else f"{share:.1%}"
            recomputed = "yes" if figures["recomputed"] else "no"
            rows.append([case["shape"], case["kind"], case["tokens"], side, figures["rate"], shown, figures["gb"], recomputed])
            if share is not None and (case["shape"], case["kind"], side) == ("8b", "lora", "ours"):
                shares.append(share)
    for kind in ("lora", "qlora") if peak is not None else ():
        ratios = [sides["ours"]["rate"] / sides["trl"]["rate"] for case, sides in found if case["kind"] == kind and len(sides) == 2]
        lines += [ratio(f"gpu_{kind}_vs_trl", min(ratios))] if ratios else []
    lines += [ratio("gpu_mfu", min(shares))] if shares else []
    header = ("shape", "method", "tokens a row", "side", "tokens per s", "MFU", "peak GB", "activations recomputed")
    versions = json.dumps({side: figures["versions"] for _, sides in found for side, figures in sides.items()})
    return "\n".join(
        [table(header, rows), "", f"Headlines are the smallest over their cases. Versions: {versions}", "", "```", *lines, "```"]
    )


def main(device: str = "cuda") -> None:
    """All cases; writes the page's section where there is a GPU."""
    card = gpu()
    if device == "cpu":
        print(page(measured(peer_python("trl", PEER, torch=True), device), None))
        print("NO RESULT: a tiny shape on a CPU, to see that the script runs.")
    elif card is None:
        print("skipped: torch finds no CUDA GPU here; `python -m benchmarks.gpu --device cpu` tries the script itself")
    else:
        name, peak = card
        write_section("gpu", f"Training on one {name}", page(measured(peer_python("trl-gpu", PEER_GPU, torch=True), device), peak))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    main(parser.parse_args().device)
