"""What training computes along rows: logits on the run's own route (its packs, attention and kernels), as its losses are made of them.
Trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from tunesmith.core.chat import Rendered
from tunesmith.core.errors import TrainingError
from tunesmith.core.model_ref import adapter_settings
from tunesmith.train.adapters import prepare
from tunesmith.train.packing import pack
from tunesmith.train.plan import Adapter, ResolvedAdapter, ResolvedPlan
from tunesmith.train.run import Manifest
from tunesmith.train.starting import going_on

Kind = Literal["bfloat16", "float32"]


def plan_of(base: Path, adapter: Path | None) -> ResolvedPlan:
    """The plan that made a model, where its run's folder is around it; else one whose adapter has the same tensors.

    Raises TrainingError for an adapter that no plan of ours describes.
    """
    artifact = adapter or base
    try:
        manifest = msgspec.json.decode((artifact.parent / "run.json").read_bytes(), type=Manifest)
        plan = manifest.resolved
    except (OSError, msgspec.DecodeError):
        plan = ResolvedPlan()
    if adapter is None:
        return msgspec.structs.replace(plan, adapter=ResolvedAdapter(kind="none"), device="cpu")
    settings = adapter_settings(adapter)
    asked = plan.adapter if plan.adapter.start_from is not None or plan != ResolvedPlan() else Adapter()
    started: dict[str, Any] = msgspec.structs.asdict(going_on(asked, adapter, base))
    try:
        own = ResolvedAdapter(**{**started, "r": int(settings["r"]), "alpha": float(settings["lora_alpha"]), "dropout": 0.0})
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"the adapter's settings say no rank and alpha: {error}", where=str(adapter)) from error
    return msgspec.structs.replace(plan, adapter=own, device="cpu")


def predicted(base: Path, plan: ResolvedPlan, rows: Sequence[Rendered], dtype: Kind) -> Iterator[Tensor]:
    """Logits [trained tokens, V] in float32 of each row, computed in the type. Raises TrainingError and ConfigError as training does."""
    trainable = prepare(base, msgspec.structs.replace(plan, dtype=dtype), rows[:4])
    trainable.model.eval()
    with torch.no_grad():
        for row in rows:
            packed = pack([row])
            logits = trainable.head.logits(trainable.states(packed))
            yield logits[torch.from_numpy(np.argsort(packed.at, kind="stable"))].detach()
