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
from tunesmith.train.adapters import Trainable, load_base, quantise_decoder
from tunesmith.train.checkpoint import copy_tokenizer, save_adapter, save_whole
from tunesmith.train.plan import ResolvedPlan

# Nats per token between our packed kernels and plain padded transformers; bfloat16 rounds differently in each.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}


class SelfTest(Record, frozen=True):
    """What the saved artifact showed. Losses in nats per trained token over the same few rows; `merge_error` is relative to the weight.

    After training on a base in 4 bits, `trained_loss`, `reloaded_loss` and `base_loss` are with that one, `full_loss` with the full base.
    """

    trained_loss: float
    reloaded_loss: float
    base_loss: float
    largest_weight: float
    merge_error: float | None = None
    full_loss: float | None = None


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


def _plain_loss(model: Any, rows: Sequence[Rendered]) -> float:
    """Nats per trained token, one row at a time, by transformers alone."""
    total, count = 0.0, 0
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's own forward passes on more than some take
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(row.ids.astype("int64"))[None]
            logits = causal(input_ids=ids, use_cache=False).logits[0, :-1].float()
            trained = torch.from_numpy(row.mask[1:].astype(bool))
            total += float(torch.nn.functional.cross_entropy(logits[trained], ids[0, 1:][trained], reduction="sum"))
            count += int(trained.sum())
    return total / count


def _merge_error(model: Any) -> float:
    """Largest relative difference, over a few layers, between adapter and merged weight, both in float32."""
    adapted = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "get_delta_weight")]
    layers = [m for m in adapted if type(m.get_base_layer()) is torch.nn.Linear]
    worst = 0.0
    for layer in layers[:: max(1, len(layers) // 4)]:
        x = torch.randn(8, layer.in_features, generator=torch.Generator().manual_seed(0))
        a, b = (m["default"].weight.detach().float() for m in (layer.lora_A, layer.lora_B))
        w = layer.get_base_layer().weight.detach().float()
        kept = x @ w.T + layer.scaling["default"] * (x @ a.T) @ b.T
        merged = x @ (w + layer.get_delta_weight("default").detach().float()).T
        worst = max(worst, float((kept - merged).abs().max() / kept.abs().max()))
    return worst


def self_test(
    folder: Path, base: Path, trainable: Trainable, rows: Sequence[Rendered], trained_loss: float, plan: ResolvedPlan
) -> SelfTest:
    """Reload the artifact with plain transformers and peft and compare. Raises TrainingError saying which of the checks failed.

    `trained_loss` is the loss of the model in memory over `rows`. Checked: some weight is not zero; the loss is the same after reloading;
    the output differs from the base's; the merged weight equals base plus adapter.
    """
    kind, full = torch.bfloat16 if plan.dtype == "bfloat16" else torch.float32, None
    if trainable.lora:
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_base(base, kind), folder).eval()
        if plan.adapter.quantise == "nf4":
            full = _plain_loss(model, rows)
            quantise_decoder(model.get_base_model())
        largest = max(float(p.detach().abs().max()) for name, p in model.named_parameters() if "lora_B" in name)
        reloaded = _plain_loss(model, rows)
        with model.disable_adapter():
            plain = _plain_loss(model, rows)
        variant = any(getattr(m, "lora_variant", None) for m in model.modules())
        merge = None if variant else _merge_error(model)
    else:
        model = load_base(folder, kind).eval()
        largest = max(float(p.detach().abs().max()) for p in model.parameters())
        reloaded, merge = _plain_loss(model, rows), None
        del model  # two models in memory are enough
        plain = _plain_loss(load_base(base, kind).eval(), rows)
    result = SelfTest(
        trained_loss=trained_loss, reloaded_loss=reloaded, base_loss=plain, largest_weight=largest, merge_error=merge, full_loss=full
    )
    tolerance = LOSS_TOLERANCE[plan.dtype] * max(1.0, abs(trained_loss))
    failed = [
        message
        for bad, message in (
            (not largest > 0, "every adapter weight is zero"),
            (not math.isfinite(reloaded), f"the reloaded loss is {reloaded}"),
            (abs(reloaded - trained_loss) > tolerance, f"the loss is {trained_loss:.5f} in memory and {reloaded:.5f} after reloading"),
            (reloaded == plain, f"the loss is the base's own, {plain:.5f}"),
            (merge is not None and merge > 1e-4, f"merged and adapter differ by {merge}"),
        )
        if bad
    ]
    if failed:
        raise TrainingError(
            f"the saved artifact failed its own test: {'; '.join(failed)}", where=str(folder), remedy="keep the folder and report it"
        )
    return result
