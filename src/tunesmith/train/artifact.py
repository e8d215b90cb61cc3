"""The result of a run on disk, and its test of itself: reloaded without our kernels, it must be the model that was trained.

Knows nothing about plans' meaning or the loop; it is handed losses to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tunesmith.core.atomic import atomic_folder
from tunesmith.core.chat import Rendered
from tunesmith.core.errors import StoreError, TrainingError
from tunesmith.core.model_ref import ADAPTER_FOLDER, MODEL_FOLDER
from tunesmith.core.seal import seal
from tunesmith.core.types import Record
from tunesmith.models.decode_check import moved
from tunesmith.train.adapters import Trainable, load_base, quantise_decoder
from tunesmith.train.checkpoint import copy_tokenizer, save_adapter, save_whole
from tunesmith.train.plan import ResolvedPlan

# What a row's loss may differ by between the model in memory and the reloaded one, relative to it (to 1 nat at least): this much, or this
# many times what rounding alone does to the losses of the reloaded model (other tokens follow a row, which a causal model does not see;
# embeddings are moved by about their last bit), at most so many times as much. A row of a few trained tokens has no mean that rounding
# vanishes in: 0.016 nats were seen over six of them in bfloat16.
LOSS_TOLERANCE = {"float32": 2e-4, "bfloat16": 1e-2}
NOISE_FACTOR, JITTER_FACTOR, NOISE_MOST = 6.0, 3.0, 10.0
FOLLOWING, JITTERS = 7, 3  # tokens; draws


class SelfTest(Record, frozen=True):
    """What the saved artifact showed. Losses in nats per trained token over the same few rows; `merge_error` is relative to the weight.

    `largest_difference` is that of any single row's loss before and after reloading, `tolerance` what it may be: measured on the base.
    After training on a base in 4 bits, `trained_loss`, `reloaded_loss` and `base_loss` are with that one, `full_loss` with the full base.
    """

    trained_loss: float
    reloaded_loss: float
    base_loss: float
    largest_weight: float
    merge_error: float | None = None
    full_loss: float | None = None
    largest_difference: float = 0.0
    tolerance: float = 0.0


def save_artifact(out: Path, base: Path, trainable: Trainable) -> Path:
    """Write `out/adapter` (peft's format) or `out/model` (full training), with the base's tokenizer and template; returns the folder."""
    final = out / (ADAPTER_FOLDER if trainable.lora else MODEL_FOLDER)
    try:
        with atomic_folder(final) as work:
            if trainable.lora:
                save_adapter(trainable, work)
                copy_tokenizer(base, work)
            else:
                save_whole(trainable, base, work)
            seal(work)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the result cannot be written: {error}", where=str(final), remedy="free space on the disk, then run again"
        ) from error
    return final


def _plain_losses(model: Any, rows: Sequence[Rendered], after: int = 0, *, mixed: bool = False) -> list[float]:
    """Nats per trained token of each row alone, by transformers alone; with `after`, other tokens follow it, which changes nothing but
    rounding. `mixed`: products in bfloat16 over weights in float32, as full training multiplies."""
    losses = []
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's own forward passes on more than some take
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        for row in rows:
            own = torch.from_numpy(row.ids.astype("int64"))
            ids = torch.cat([own, own.roll(3)[:after]])[None]
            logits = causal(input_ids=ids, use_cache=False).logits[0, : len(own) - 1].float()
            trained = torch.from_numpy(row.mask[1:].astype(bool))
            losses.append(float(torch.nn.functional.cross_entropy(logits[trained], own[1:][trained])))
    return losses


def _noise(model: Any, rows: Sequence[Rendered], losses: Sequence[float], *, mixed: bool = False) -> float:
    """The largest change of a row's loss by tokens that a causal model does not see, in one model."""
    return max(abs(a - b) for a, b in zip(losses, _plain_losses(model, rows, FOLLOWING, mixed=mixed), strict=True))


def _jitter(model: Any, rows: Sequence[Rendered], losses: Sequence[float], kind: torch.dtype, *, mixed: bool = False) -> float:
    """The largest change of a row's loss when the embeddings are moved by about the last bit of `kind`, at random."""
    with moved(model, kind):
        several = [_plain_losses(model, rows, mixed=mixed) for _ in range(JITTERS)]
    return max(abs(a - b) for each in several for a, b in zip(losses, each, strict=True))


def _mean(losses: Sequence[float], rows: Sequence[Rendered]) -> float:
    """Nats per trained token over all rows."""
    counts = [int(row.mask[1:].astype(bool).sum()) for row in rows]
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def _merge_error(model: Any) -> float:
    """Largest relative difference, over a few layers, between adapter and merged weight, both in float32."""
    adapted = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "get_delta_weight")]
    layers = [m for m in adapted if type(m.get_base_layer()) is torch.nn.Linear]
    worst = 0.0
    for layer in layers[:: max(1, len(layers) // 4)]:
        x = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(0))
        a, b = (m["default"].weight.detach().float() for m in (layer.lora_A, layer.lora_B))
        w = layer.get_base_layer().weight.detach().float()
        apart = x @ w.T + layer.scaling["default"] * (x @ a.T) @ b.T
        merged = x @ (w + layer.get_delta_weight("default").detach().float()).T
        worst = max(worst, float((apart - merged).abs().max() / apart.abs().max()))
    return worst


def self_test(
    folder: Path, base: Path, trainable: Trainable, rows: Sequence[Rendered], trained: Sequence[float], plan: ResolvedPlan
) -> SelfTest:
    """Reload the artifact with plain transformers and peft and compare. Raises TrainingError saying which of the checks failed.

    `trained` are the losses of the model in memory, row by row. Checked: some weight is not zero; each row's loss is the same after
    reloading; the output differs from the base's; the merged weight equals base plus adapter.
    """
    kind, full = torch.bfloat16 if plan.dtype == "bfloat16" else torch.float32, None
    if trainable.lora:
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_base(base, kind), folder).eval()
        if plan.adapter.quantise == "nf4":
            full = _mean(_plain_losses(model, rows), rows)
            quantise_decoder(model.get_base_model())
        largest = max(float(p.detach().abs().max()) for name, p in model.named_parameters() if "lora_B" in name)
        reloaded = _plain_losses(model, rows)
        jitter = _jitter(model, rows, reloaded, kind)
        with model.disable_adapter():
            plain = _plain_losses(model, rows)
            noise = _noise(model, rows, plain)
        variant = any(getattr(m, "lora_variant", None) for m in model.modules())
        merge = None if variant else _merge_error(model)
    else:
        mixed = trainable.autocast
        model = load_base(folder, torch.float32).eval()
        largest = max(float(p.detach().abs().max()) for p in model.parameters())
        reloaded, merge = _plain_losses(model, rows, mixed=mixed), None
        jitter = _jitter(model, rows, reloaded, kind, mixed=mixed)
        del model  # two models in memory are enough
        model = load_base(base, torch.float32).eval()
        plain = _plain_losses(model, rows, mixed=mixed)
        noise = _noise(model, rows, plain, mixed=mixed)
    worst = max(range(len(rows)), key=lambda i: abs(trained[i] - reloaded[i]) if math.isfinite(reloaded[i]) else math.inf)
    least = LOSS_TOLERANCE[plan.dtype] * max(1.0, abs(trained[worst]))
    result = SelfTest(
        trained_loss=_mean(trained, rows),
        reloaded_loss=_mean(reloaded, rows),
        base_loss=_mean(plain, rows),
        largest_weight=largest,
        merge_error=merge,
        full_loss=full,
        largest_difference=abs(trained[worst] - reloaded[worst]),
        tolerance=max(least, NOISE_FACTOR * noise, min(JITTER_FACTOR * jitter, NOISE_MOST * least)),
    )
    _judge(result, folder, (rows[worst].example_id, trained[worst], reloaded[worst]))
    return result


def _judge(result: SelfTest, folder: Path, worst: tuple[str, float, float]) -> None:
    """Raises TrainingError saying what failed; `worst` is the row whose losses differ most, with both."""
    row, before, after = worst
    merge, differs = result.merge_error, result.largest_difference > result.tolerance
    failed = [
        message
        for bad, message in (
            (not result.largest_weight > 0, "every adapter weight is zero"),
            (not math.isfinite(after), f"the reloaded loss of row {row} is {after}"),
            (
                differs,
                f"the loss of row {row} is {before:.5f} in memory and {after:.5f} after reloading; {result.tolerance:.1g} is allowed",
            ),
            (result.reloaded_loss == result.base_loss, f"the loss is the base's own, {result.base_loss:.5f}"),
            (merge is not None and merge > 1e-4, f"merged and adapter differ by {merge}"),
        )
        if bad
    ]
    if failed:
        raise TrainingError(
            f"the saved artifact failed its own test: {'; '.join(failed)}", where=str(folder), remedy="keep the folder and report it"
        )
