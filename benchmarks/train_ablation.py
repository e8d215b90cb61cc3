"""What each technique of the training loop gives: `python train_ablation.py PARTS FOLDER STEPS` trains with the first PARTS of them.

The product is taken to pieces and put together again: a plain loop over transformers and peft with padded batches, to which one technique
after the other is added, each taken from the project. One thread; rows and base as in train_sides.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.train_sides import BATCH, RANK, RATE, WARM, Clock, Row, rows

TECHNIQUES = (
    "padded batches, peft, all logits",
    "packed, attention by row",
    "logits where trained, in chunks",
    "adapters in one function",
    "norms in one function",
    "MLP and attention in one function each",
)


def built(folder: Path, parts: int) -> Any:
    """The model with adapters, in bfloat16, with as many of the techniques as are in the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn

    from tunesmith.nets.blocks import fuse_blocks
    from tunesmith.nets.linear import FusedLoraLinear
    from tunesmith.nets.norm import fuse_norms
    from tunesmith.nets.tree_attention import register_attention
    from tunesmith.train.adapters import load_base

    model = load_base(folder, torch.bfloat16)
    if parts > 1:
        model.set_attn_implementation(register_attention())
    if parts > 4:
        fuse_norms(model)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=32, target_modules="all-linear")
    if parts > 3:
        config._register_custom_module({nn.Linear: FusedLoraLinear})
    model = get_peft_model(model, config)
    if parts > 5:
        fuse_blocks(model)
    return model.train()


def padded_loss(model: Any, batch: list[Row]) -> Any:
    """The mean loss of rows that are padded to the longest."""
    import torch

    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [2] * (width - len(row)) for row, _ in batch])
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in batch])
    labels = torch.tensor(
        [[t if kept else -100 for t, kept in zip(row, mask, strict=True)] + [-100] * (width - len(row)) for row, mask in batch]
    )
    return model(input_ids=ids, attention_mask=seen, labels=labels).loss


def packed_loss(model: Any, batch: list[Row], *, all_logits: bool) -> Any:
    """The mean loss of rows laid end to end."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    from tunesmith.core.chat import Rendered
    from tunesmith.train.loss import chunked_nll
    from tunesmith.train.packing import pack

    one = pack([Rendered(str(i), np.asarray(ids, np.int32), np.asarray(mask, np.uint8)) for i, (ids, mask) in enumerate(batch)])
    causal = model.get_base_model()
    ids, positions, at, targets = (torch.from_numpy(a) for a in (one.ids, one.positions, one.at, one.targets))
    hidden = causal.model(
        input_ids=ids[None], position_ids=positions[None], use_cache=False, spans=one.spans, longest=one.longest
    ).last_hidden_state[0]
    if all_logits:
        return F.cross_entropy(causal.lm_head(hidden).float()[at], targets)
    return chunked_nll(hidden[at], causal.lm_head.weight, targets, torch.full((len(targets),), 1 / len(targets)))[0]


def main(parts: str, folder: str, steps: str) -> None:
    """Train once and print the harness's line."""
    import torch

    torch.set_num_threads(1)
    count, data, clock = int(parts), rows(int(steps), 0.7), Clock()
    model = built(Path(folder), count)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, fused=True)
    clock.mark()
    for start in range(0, len(data), BATCH):
        batch = data[start : start + BATCH]
        loss = padded_loss(model, batch) if count == 1 else packed_loss(model, batch, all_logits=count == 2)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.mark()
    print(json.dumps(clock.figures(sum(len(ids) for ids, _ in data[WARM * BATCH :])) | {"loss": float(loss.detach())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
