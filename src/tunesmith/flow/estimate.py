"""How long, how much memory, how many tokens: said before the work, from this machine's own speed. Knows no stage's inside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.load import need
from tunesmith.flow.datasets.prepare import load_rendered
from tunesmith.train.estimate import Estimate, linear_shapes, refuse_what_cannot_fit
from tunesmith.train.estimate import estimate as estimate_training
from tunesmith.train.facts import base_shape

if TYPE_CHECKING:
    from tunesmith.flow.circle import Circle

# Shares of the matrix-product rate that reading prompts and writing answers reach (SmolLM2-135M, two cores): an estimate must not
# take as long as the thing.
_READ, _WRITE = 0.40, 0.16
# How much of the allowed length an answer fills: an untrained base runs on, one that was shown examples or trained stops earlier.
_FILLED = {"zero": 0.75, "shots": 0.15}
_LOADING_S = 5.0
# The general-ability suite, both models: 240 short answers, measured as 30 CPU-seconds at 350 GFLOP/s.
_SUITE_FLOP = 1e13


@dataclass(frozen=True)
class RunEstimate:
    """Seconds by stage, and the training room's own estimate."""

    seconds: dict[str, float]
    training: Estimate

    def summary(self) -> dict[str, Any]:
        """As plain numbers."""
        one = self.training
        return {
            "seconds": self.seconds,
            "total_s": sum(self.seconds.values()),
            "epochs": one.plan.epochs,
            "steps": one.steps,
            "tokens": one.tokens,
            "computed_tokens": one.computed_tokens,
            "trained_tokens": one.trained_tokens,
            "memory_bytes": one.memory.total,
            "available_bytes": one.available_bytes,
            "trainable_parameters": one.trainable_parameters,
            "plan": msgspec.to_builtins(one.plan),
            "reasons": msgspec.to_builtins(one.reasons),
        }

    def text(self) -> str:
        """In words."""
        one = self.training
        parts = [f"{name} {_time(seconds)}" for name, seconds in self.seconds.items() if seconds >= 1]
        return (
            f"this will take about {_time(sum(self.seconds.values()))} on this machine: {', '.join(parts) or 'nothing long'}\n"
            f"training: {one.steps} steps in {one.plan.epochs} epochs, {one.tokens:,} tokens ({one.computed_tokens:,} after packing, "
            f"{one.trained_tokens:,} with loss), about {one.memory.total / 2**30:.1f} GiB of memory for training itself"
        )


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def machine_rate(dtype: str, seconds: float = 0.4) -> float:
    """FLOP/s of a matrix product with all cores, measured now."""
    torch = need("torch", extra="local")
    a, b = (torch.randn(shape, dtype=getattr(torch, dtype)) for shape in ((512, 576), (576, 1536)))
    a @ b
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ b
        count += 1
    return float(2 * 512 * 576 * 1536 * count / (time.perf_counter() - started))


def estimate(circle: Circle, waiting: Sequence[str]) -> RunEstimate:
    """The estimate for the stages that wait; the data stages must be done. Raises TrainingError for a plan that cannot fit."""
    folder = circle.runner.folder("tokens")
    rows, validation = load_rendered(folder / "train.npz"), load_rendered(folder / "validation.npz")
    training = estimate_training(circle.project.train, rows, validation, base=circle.base)
    refuse_what_cannot_fit(training)
    rate = machine_rate(training.plan.dtype)
    seconds = {"train": training.seconds} if "train" in waiting else {}
    for name in waiting:
        if name.startswith("evaluate:"):
            seconds[name] = _LOADING_S + _answering(circle, name.removeprefix("evaluate:"), circle.base) / rate
    if "regression" in waiting:
        seconds["regression"] = _LOADING_S + _SUITE_FLOP / rate
    if "ask" in waiting:
        seconds["ask"] = 2 * _LOADING_S
    return RunEstimate(seconds, training)


def _answering(circle: Circle, arm: str, base: Path) -> float:
    """FLOP, weighed by what reading and writing reach, to answer the held-out rows. Shared beginnings of prompts are read once."""
    tokens, config = circle.runner.run("tokens").output, base_shape(base)
    body = sum(o * i for o, i in linear_shapes(config).values()) * int(config["num_hidden_layers"])
    head = int(config["hidden_size"]) * int(config["vocab_size"])
    rows, count, shared = tokens["train"]["rows"], len(circle.rows("test")), tokens["shared_prefix"]
    own = tokens["train"]["tokens"] / rows - shared
    shots = next((baseline.shots for baseline in circle.project.baselines if baseline.name == arm), 0)
    if arm == "tuned":
        written = tokens["train"]["trained"] / rows
    else:
        written = circle.sampling().max_tokens * _FILLED["shots" if shots else "zero"]
    return float(2 * count * (body * own / _READ + (body + head) * written / _WRITE))
