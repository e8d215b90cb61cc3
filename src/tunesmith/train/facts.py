"""What a plan is resolved from: the base's size, the rows' lengths, and this machine's arithmetic, timed. Knows nothing about training."""

from __future__ import annotations

import json
import os
import platform
import struct
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.train.items import Item
from tunesmith.train.plan import Adapter, Facts, Plan

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def require_safetensors(base: Path) -> None:
    """Raises TrainingError when the folder `base` has no safetensors weights; pickled ones are never read."""
    if any(base.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in base.glob(pattern))
    found = f"only pickled weights, which can run code when they are read ({', '.join(pickled)})" if pickled else "no weights"
    raise TrainingError(f"the base has {found}", where=str(base), allowed="*.safetensors", remedy="prepare it with save_pretrained")


def base_shape(base: Path) -> dict[str, Any]:
    """The base's config.json with `parameters` (unique weights, read from the safetensors headers) added. Raises TrainingError."""
    try:
        config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"no readable config.json: {error}", where=str(base), remedy="give the folder of a prepared base") from error
    require_safetensors(base)
    config["parameters"] = sum(_numbers(path) for path in sorted(base.glob("*.safetensors")))
    return config


def _numbers(path: Path) -> int:
    total = 0
    for name, tensor in header(path).items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            total += count
    return total


def header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: names, types and shapes, without reading a weight."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        parsed: dict[str, Any] = json.loads(file.read(length))
    return parsed


def bfloat16_in_hardware() -> bool:
    """Whether this processor multiplies bfloat16 itself (AVX512-BF16 or AMX on x86; on Arm, the bf16 flag)."""
    import torch

    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported())
    try:
        return " bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def product_rate(threads: int, *, bfloat16: bool, hidden: int, seconds: float = 0.15) -> float:
    """Matrix products at a width of `hidden`: GFLOP per second with this many threads, the best of several runs within `seconds`."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        x, w = torch.randn(1024, hidden).to(dtype), torch.randn(2 * hidden, hidden).to(dtype)
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            x @ w.T
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 4e-9 * 1024 * hidden * hidden / best


def gather(plan: Plan, items: Sequence[Item], base: Path) -> Facts:
    """Everything `resolve` wants to know. Takes about a third of a second (it times matrix products)."""
    import torch

    shape = base_shape(base)
    hidden = int(shape["hidden_size"])
    rank, alpha = start_of(plan.adapter)
    bf16 = plan.dtype == "bfloat16" or (plan.dtype == "auto" and bfloat16_in_hardware())
    return Facts(
        parameters=shape["parameters"],
        hidden_size=hidden,
        layers=int(shape["num_hidden_layers"]),
        positions=int(shape.get("max_position_embeddings", 1 << 20)),
        rows=len(items),
        trained_tokens=sum(row.trained for item in items for row in item.rows),
        longest=max((len(row.ids) for item in items for row in item.rows), default=0),
        cores=cores(),
        gflops=round(product_rate(1, bfloat16=bf16, hidden=hidden), 1),
        bfloat16=bf16,
        cuda=torch.cuda.is_available(),
        start_rank=rank,
        start_alpha=alpha,
    )


def start_of(adapter: Adapter) -> tuple[int | None, float | None]:
    """Rank and alpha of the adapter that training starts from. Raises ConfigError when the plan says otherwise, TrainingError for none."""
    if adapter.start_from is None:
        return None, None
    place = Path(adapter.start_from) / SETTINGS
    try:
        found = json.loads(place.read_text("utf-8"))
        rank, alpha = int(found["r"]), float(found["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"no adapter to start from: {error}"
        raise TrainingError(what, where=str(place), remedy="start_from: a folder with a LoRA adapter in peft's format") from error
    given = {"r": adapter.r, "alpha": adapter.alpha, "rslora": adapter.rslora, "dora": adapter.dora}
    there = {"r": rank, "alpha": alpha, "rslora": bool(found.get("use_rslora")), "dora": bool(found.get("use_dora"))}
    for name, value in there.items():
        if given[name] not in ("auto", value):
            raise ConfigError(
                f"{name} is {given[name]}, and {value} in the adapter to start from",
                where=f"train.adapter.{name}",
                remedy=f"{name}: {value}",
            )
    return rank, alpha


def environment() -> dict[str, str]:
    """What the bytes of a result depend on besides plan, data and base: packages, processor, system."""
    import torch

    found = {"python": platform.python_version(), "system": platform.platform(), "processor": torch.backends.cpu.get_cpu_capability()}
    for name in ("tunesmith", "torch", "transformers", "peft", "safetensors", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found
