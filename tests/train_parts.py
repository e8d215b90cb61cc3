"""Real, tiny parts for the training tests: a random two-layer Llama on disk and rows that share a prefix."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiny
from forked import script
from tunesmith.core.chat import Rendered
from tunesmith.train.adapters import Trainable, prepare
from tunesmith.train.items import mismatch
from tunesmith.train.methods import METHODS
from tunesmith.train.microbatch import StepItems
from tunesmith.train.objectives import report
from tunesmith.train.plan import Adapter, Plan, ResolvedAdapter, ResolvedPlan

VOCABULARY = 97


def tiny_base(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """A two-layer Llama with random weights in float32, saved as safetensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny.libraries()
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "pad_token_id": 2,
            "eos_token_id": 2,
        }
        | changes
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # transformers starts the padding token at zero, and it is the end of turn here
        model.get_input_embeddings().weight[2].normal_(0, 0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    return folder


def make_rows(count: int, *, seed: int = 0, prefix: int = 40, low: int = 5, high: int = 30, trained: int = 4) -> list[Rendered]:
    """Rows of a common prefix and random tokens, whose last but one `trained` tokens carry loss, and which end in token 2 (pad = eos)."""
    rng = np.random.default_rng(seed)
    common = rng.integers(3, VOCABULARY, prefix)
    rows = []
    for i in range(count):
        own = rng.integers(3, VOCABULARY, rng.integers(low, high))
        ids = np.concatenate([common, own, [2, 5]]).astype(np.int32)
        mask = np.zeros(len(ids), np.uint8)
        mask[-trained - 1 : -1] = 1
        rows.append(Rendered(f"row-{seed}-{i}", ids, mask))
    return rows


def plan(**changes: object) -> ResolvedPlan:
    """A resolved float32 plan, changed as asked."""
    return ResolvedPlan(**{"dtype": "float32", "adapter": ResolvedAdapter(r=4, alpha=8.0)} | changes)


def user_plan(**changes: object) -> Plan:
    """A plan as a user writes it, small and in float32."""
    values = {"dtype": "float32", "adapter": Adapter(r=4), "epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "threads": 2, "lanes": 2}
    return Plan(**values | changes)


def awake(base: Path, resolved: ResolvedPlan) -> Trainable:
    """A trainable whose adapter is not the identity any more."""
    trainable = prepare(base, resolved)
    generator = torch.Generator().manual_seed(3)
    for name, p in trainable.parameters().items():
        if "lora_B" in name:
            p.data.normal_(0, 0.3, generator=generator)
    return trainable


def padded_loss(model: torch.nn.Module, rows: list[Rendered]) -> torch.Tensor:
    """The reference: transformers' own loss of a right-padded batch with labels −100 outside of the mask."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), 2)
    attention = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.from_numpy(row.ids.astype(np.int64))
        attention[i, :n] = 1
        labels[i, :n] = torch.where(torch.from_numpy(row.mask) > 0, ids[i, :n], -100)
    return model(input_ids=ids, attention_mask=attention, labels=labels).loss


def slope_of(
    trainable: Trainable, resolved: ResolvedPlan, rows: list, *, seed: int = 0
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The sums of one step over the rows and the gradient of each trainable parameter, under the plan's method."""
    from tunesmith.train.microbatch import gradients, lanes

    with lanes(resolved) as side:
        sums = gradients(
            trainable, METHODS[resolved.method].objective(resolved), batch_of(trainable, resolved, rows), resolved, side, seed=seed
        )
    found = {name: p.grad.clone() for name, p in trainable.parameters().items()}
    trainable.model.zero_grad()
    return sums, found


def batch_of(trainable: Trainable, resolved: ResolvedPlan, rows: list) -> StepItems:
    """The rows as a batch whose reference is the trainable with its adapter switched off."""
    from tunesmith.train.microbatch import lanes, row_logps

    items = METHODS[resolved.method].items(rows)
    if METHODS[resolved.method].mismatched:
        items = mismatch(items, resolved.max_length)
    every = [row for item in items for row in item.every]
    reference = np.zeros((len(items), len(items[0].every)), np.float32)
    if METHODS[resolved.method].objective(resolved).reference:
        with lanes(resolved) as side, trainable.model.disable_adapter():
            reference = row_logps(trainable, every, resolved, side).reshape(reference.shape)
    return StepItems(items, reference)


def loss_of(trainable: Trainable, resolved: ResolvedPlan, rows: list) -> dict[str, float]:
    """The evaluation of the rows."""
    from tunesmith.train.microbatch import evaluate, lanes

    with lanes(resolved) as side:
        return report(
            evaluate(trainable, METHODS[resolved.method].objective(resolved), batch_of(trainable, resolved, rows), resolved, side)
        )


def make_pairs(count: int, *, seed: int = 0) -> list[tuple[Rendered, Rendered]]:
    """Preference pairs: one prompt, two answers of different length that end in token 2; every answer token is trained."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i, row in enumerate(make_rows(count, seed=seed)):
        prompt = row.ids[:-2]
        answers = [np.append(rng.integers(3, VOCABULARY, rng.integers(2, 9)), 2) for _ in range(2)]
        first, second = (
            Rendered(f"pair-{i}", np.append(prompt, a).astype(np.int32), np.append(np.zeros(len(prompt)), np.ones(len(a))).astype(np.uint8))
            for a in answers
        )
        pairs.append((first, second))
    return pairs


def adapter_bytes(out: Path) -> bytes:
    """The weights that a run left in its folder."""
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def dying_at(event: int) -> Callable[[dict[str, Any]], None]:
    """Kills its own process (-9) when it is told the n-th event of a run."""
    left = [event]

    def on_event(_: dict[str, Any]) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_event


def killed(code: str) -> None:
    """Run `code`, which sees this folder, in a process of its own; it must die of a kill."""
    process = script(code)
    assert process.wait() == -signal.SIGKILL, process.err[-2000:]


class Stop(Exception):
    """Ends a run from outside."""


def stopping_at(step: int) -> Callable[[dict[str, Any]], None]:
    """Raises Stop when the checkpoint of that step is written."""

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] == step:
            raise Stop

    return on_event
