"""What a plan is resolved from: the base's size, the rows' lengths, and this machine's arithmetic, timed. Knows nothing about training."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import struct
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.models.trust import refuse_code
from tunesmith.train.devices import device_of, multiplies_bfloat16
from tunesmith.train.items import Item
from tunesmith.train.plan import Adapter, Facts, Plan, ResolvedPlan

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def require_safetensors(base: Path) -> None:
    """Raises TrainingError when the folder `base` has no safetensors weights; pickled ones are never read."""
    if any(base.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in base.glob(pattern))
    what = f"only pickled weights, which can run code when they are read ({', '.join(pickled)})" if pickled else "no weights"
    raise TrainingError(f"the base has {what}", where=str(base), allowed="*.safetensors", remedy="prepare it with save_pretrained")


def base_shape(base: Path) -> dict[str, Any]:
    """The sizes of the base's text part as its config.json has them, with `parameters` (unique weights) and `linears` (the matrices inside
    its blocks, (out, in) by name) from the safetensors headers.

    Raises TrainingError for a folder without them, UsageError for a base that wants code of its own and may not.
    """
    try:
        config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"no readable config.json: {error}", where=str(base), remedy="give the folder of a prepared base") from error
    refuse_code(config, base / "config.json")
    require_safetensors(base)
    shape = text_shape(config)
    headers = [header(path) for path in sorted(base.glob("*.safetensors"))]
    shape["parameters"] = sum(map(_numbers, headers))
    shape["linears"] = {name: size for tensors in headers for name, size in _linears(tensors)}
    return shape


# Matrices that are looked up, read once a token, or belong to what sees and hears.
_NOT_INNER = re.compile(r"embed|lm_head|wte|wpe|norm|vision|visual|audio|(^|\.)(head|output|score)\.weight$|conv1d|rotary|A_log")


def _linears(tensors: dict[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (out, in)) of every matrix inside the blocks; fused experts count one by one."""
    for name, tensor in tensors.items():
        sides: list[int] = tensor.get("shape", []) if name != "__metadata__" else []
        if name.endswith("_blocks") and len(sides) == 4:  # MXFP4: 32 weights in 16 bytes
            sides = [sides[0], sides[1], 2 * sides[2] * sides[3]]
        if _NOT_INNER.search(name) or name.endswith(_SCALES) or len(sides) not in (2, 3) or min(sides) < 2:
            continue
        if len(sides) == 2:
            yield name, (sides[0], sides[1])
        else:
            yield from ((f"{name}.{i}", (sides[1], sides[2])) for i in range(sides[0]))


# What configurations call the sizes of a decoder; the first that is there counts.
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim", "embed_dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "ffn_hidden_size", "decoder_ffn_dim", "moe_intermediate_size"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length"),
}
_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")


def text_shape(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the part that reads and writes text, with its sizes under one name each; the kind of the whole stays.

    Raises TrainingError where no size of the states, or no number of layers, is said.
    """
    inner: dict[str, Any] = next((config[name] for name in _TEXT if isinstance(config.get(name), dict)), {})
    shape = {**config, **(text_shape(inner) if inner else {}), "model_type": config.get("model_type", "unknown")}
    for name, others in _NAMES.items():
        value = next((shape[other] for other in others if shape.get(other) is not None), None)
        if isinstance(value, list):  # one number a layer
            value = max(value)
        if value is not None:
            shape[name] = value
    if inner or not config.get("architectures"):
        return shape
    if "num_hidden_layers" not in shape and isinstance(shape.get("layers_block_type"), list):
        shape["num_hidden_layers"] = len(shape["layers_block_type"])
    missing = [name for name in ("hidden_size", "num_hidden_layers") if name not in shape]
    if missing:
        raise TrainingError(
            f"config.json does not say {' and '.join(missing)}", where=shape["model_type"], allowed=", ".join(_NAMES[missing[0]])
        )
    shape.setdefault("num_attention_heads", 1)
    shape.setdefault("intermediate_size", 4 * int(shape["hidden_size"]))
    return shape


# Scales beside weights in FP8 and MXFP4, which are no weights; a byte of MXFP4's blocks holds two.
_SCALES = ("_scale_inv", "_scales")


def _numbers(tensors: dict[str, Any]) -> int:
    total = 0
    for name, tensor in tensors.items():
        if name != "__metadata__" and not name.endswith(_SCALES):
            total += math.prod(tensor["shape"]) * (2 if name.endswith("_blocks") and tensor.get("dtype") == "U8" else 1)
    return total


def header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: names, types and shapes, without reading a weight."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        parsed: dict[str, Any] = json.loads(file.read(length))
    return parsed


def require_same_tokens(base: Path, teacher: Path) -> None:
    """Raises ConfigError unless the two models number the same tokens alike: else their distributions are over different things."""
    vocabularies = []
    for folder in (base, teacher):
        try:
            tree = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no readable tokenizer.json: {error}", where=str(folder), remedy="give the folder of a whole model"
            ) from error
        added = {token["content"]: token["id"] for token in tree.get("added_tokens", ())}
        vocabulary = tree["model"]["vocab"]
        plain = vocabulary if isinstance(vocabulary, dict) else {token: number for number, (token, _) in enumerate(vocabulary)}
        vocabularies.append(plain | added)
    own, other = vocabularies
    if own != other:
        differ = sum(own.get(token) != other.get(token) for token in {*own, *other})
        raise ConfigError(
            f"the teacher has another tokenizer: {differ} of {len({*own, *other})} tokens differ",
            where="train.distillation.teacher",
            allowed=f"a model with the tokens of {base.name}",
            remedy="a teacher of the same family, or answers of this one as rows for method: sft",
        )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def product_rate(device: str, *, bfloat16: bool, hidden: int, seconds: float = 0.15) -> float:
    """Matrix products at a width of `hidden`: GFLOP per second of one thread, or of the GPU, the best of several runs within `seconds`.
    Timed once a process: the machine stays the same, and an estimate is then of the training that follows."""
    import torch

    before, rows = torch.get_num_threads(), 1024 if device == "cpu" else 8192
    torch.set_num_threads(1)
    try:
        dtype = torch.bfloat16 if bfloat16 else torch.float32
        x, w = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, hidden), (2 * hidden, hidden)))
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            x @ w.T
            if device != "cpu":
                torch.accelerator.synchronize()
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 4e-9 * rows * hidden * hidden / best


def machine_rate(facts: Facts, plan: ResolvedPlan) -> float:
    """FLOP per second of the matrix products that were timed, on all the plan's threads or on the GPU: the limit of a run's speed."""
    return 1e9 * facts.gflops * (plan.threads if plan.device == "cpu" else 1)


def gather(plan: Plan, items: Sequence[Item], base: Path) -> Facts:
    """Everything `resolve` wants to know. The first time takes about a third of a second (it times matrix products).

    Raises ConfigError for a device that is not there, TrainingError for tokens that the base has no embeddings for.
    """
    device, shape = device_of(plan.device), base_shape(base)
    _refuse_unknown_tokens(items, shape, base)
    hidden = int(shape["hidden_size"])
    rank, alpha = start_of(plan.adapter)
    bf16 = plan.dtype == "bfloat16" or (plan.dtype == "auto" and multiplies_bfloat16(device))
    return Facts(
        parameters=shape["parameters"],
        hidden_size=hidden,
        layers=int(shape["num_hidden_layers"]),
        positions=int(shape.get("max_position_embeddings", 1 << 20)),
        rows=len(items),
        trained_tokens=sum(row.trained for item in items for row in item.rows),
        longest=max((len(row.ids) for item in items for row in item.rows), default=0),
        cores=cores(),
        gflops=round(product_rate(device, bfloat16=bf16, hidden=hidden), 1),
        bfloat16=bf16,
        device=device,
        start_rank=rank,
        start_alpha=alpha,
    )


def _refuse_unknown_tokens(items: Sequence[Item], shape: dict[str, Any], base: Path) -> None:
    """Raises TrainingError naming a row with a token beyond the embeddings: it was added to the tokenizer alone."""
    limit = int(shape.get("vocab_size", 1 << 31))
    beyond = next((row for item in items for row in item.rows if len(row.ids) and int(row.ids.max()) >= limit), None)
    if beyond is not None:
        raise TrainingError(
            f"row {beyond.example_id} has token {int(beyond.ids.max())}, and the base has {limit} embeddings: "
            "its tokenizer has tokens that were never added to its weights",
            where=str(base),
            remedy="model.resize_token_embeddings(len(tokenizer)), save it, and name the new ones in train.adapter.trainable_tokens",
        )


def start_of(adapter: Adapter) -> tuple[int | None, float | None]:
    """Rank and alpha of the adapter that training starts from. Raises ConfigError when the plan says otherwise, TrainingError for none."""
    if adapter.start_from is None:
        return None, None
    place = Path(adapter.start_from) / SETTINGS
    try:
        settings = json.loads(place.read_text("utf-8"))
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"no adapter to start from: {error}"
        raise TrainingError(what, where=str(place), remedy="start_from: a folder with a LoRA adapter in peft's format") from error
    given = {"r": adapter.r, "alpha": adapter.alpha, "rslora": adapter.rslora, "dora": adapter.dora}
    there = {"r": rank, "alpha": alpha, "rslora": bool(settings.get("use_rslora")), "dora": bool(settings.get("use_dora"))}
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

    versions = {"python": platform.python_version(), "system": platform.platform(), "processor": torch.backends.cpu.get_cpu_capability()}
    for name in ("tunesmith", "torch", "transformers", "peft", "safetensors", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions
