"""The estimate of a run for a GPU that is not here, from its data sheet; what an hour of it costs, only the caller knows.

The share of the data sheet's rate that training reaches is assumed, not measured, and part of the answer.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from importlib import resources
from pathlib import Path

import msgspec

from tunesmith.core.errors import NotFound
from tunesmith.core.types import Record
from tunesmith.train import fit
from tunesmith.train.estimate import Estimate, Memory
from tunesmith.train.facts import base_shape
from tunesmith.train.plan import ResolvedPlan

# Share of the data sheet's rate that training is taken to reach: an assumption, too high for small models.
ASSUMED_SHARE = 0.35
USABLE = 0.9  # of the memory; the rest goes to fragments
# Assumed too: what a run takes to start and to save, and what a block's kernels take to be launched, forward and backward.
SECONDS_FIXED, SECONDS_PER_BLOCK = 20.0, 5e-4


class Gpu(Record, frozen=True):
    """One GPU: memory in GB, dense TFLOP/s by type, bandwidth of the memory in GB/s."""

    memory: float
    float32: float
    bandwidth: float
    source: str
    bfloat16: float | None = None


class Gpus(Record, frozen=True):
    """The table, and the day on which it was collected."""

    collected: date
    gpus: dict[str, Gpu]


class GpuEstimate(Record, frozen=True):
    """A run on a named GPU: seconds at the assumed share of its rates, peak bytes, and the plan as it would run there."""

    name: str
    plan: ResolvedPlan
    seconds: float
    memory: Memory
    memory_bytes: int
    assumed_share: float
    source: str
    collected: date

    @property
    def usable_bytes(self) -> int:
        """What training may take of the GPU's memory."""
        return int(USABLE * self.memory_bytes)

    @property
    def fits(self) -> bool:
        """Whether the peak is within it."""
        return self.memory.total <= self.usable_bytes


@lru_cache
def table() -> Gpus:
    """The GPUs that are known."""
    return msgspec.yaml.decode(resources.files("tunesmith.train").joinpath("gpus.yaml").read_bytes(), type=Gpus)


def gpu_of(name: str) -> Gpu:
    """The GPU of that name, in any case. Raises NotFound with those that are known."""
    known = table().gpus
    if name.upper() not in known:
        raise NotFound(f"no GPU '{name}'", where="gpu", allowed=", ".join(known))
    return known[name.upper()]


def on_gpu(estimate: Estimate, name: str, *, base: Path, share: float = ASSUMED_SHARE) -> GpuEstimate:
    """The estimated run on one GPU of that name: in bfloat16 where it has it, one pack at a time. Raises NotFound.

    Time is the longest of: the arithmetic, reading the weights twice a pack (both at the assumed share), and launching the kernels.
    """
    gpu = gpu_of(name)
    shape = base_shape(base)
    plan = msgspec.structs.replace(estimate.plan, device="cuda", lanes=1, dtype="float32" if gpu.bfloat16 is None else "bfloat16")
    needed = fit.peak(shape, plan, estimate)
    packs = max(estimate.steps, estimate.computed_tokens / plan.micro_batch_tokens)
    computing = estimate.flops / (1e12 * (gpu.bfloat16 or gpu.float32)) / share
    reading = 2 * packs * needed.weights / (1e9 * gpu.bandwidth) / share
    launching = packs * int(shape["num_hidden_layers"]) * SECONDS_PER_BLOCK
    return GpuEstimate(
        name=name.upper(),
        plan=plan,
        seconds=max(computing, reading, launching) + SECONDS_FIXED,
        memory=needed,
        memory_bytes=int(1e9 * gpu.memory),
        assumed_share=share,
        source=gpu.source,
        collected=table().collected,
    )


def refuse_what_cannot_fit(estimate: Estimate, there: GpuEstimate, *, base: Path) -> None:
    """Raises TrainingError with changes of the plan that would fit on that GPU."""
    fit.refuse(estimate, there.plan, there.memory, there.usable_bytes, base=base, place=f"on one {there.name}")
