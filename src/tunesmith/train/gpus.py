"""The estimate of a run for a GPU that is not here, from its data sheet; knows nothing about prices.

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
from tunesmith.train.estimate import Estimate, Memory, memory
from tunesmith.train.facts import base_shape

# Share of the data sheet's rate that training is taken to reach: an assumption, too high for small models.
ASSUMED_SHARE = 0.35
CONTEXT_BYTES = 600_000_000  # the driver's context and the libraries' kernels


class Gpu(Record, frozen=True):
    """One GPU: memory in GB, dense TFLOP/s by type."""

    memory: float
    float32: float
    source: str
    bfloat16: float | None = None


class Gpus(Record, frozen=True):
    """The table, and the day on which it was collected."""

    collected: date
    gpus: dict[str, Gpu]


class GpuEstimate(Record, frozen=True):
    """A run on a named GPU: seconds at the assumed share of its rate, peak bytes, and what follows for its memory."""

    name: str
    dtype: str
    seconds: float
    memory: Memory
    memory_bytes: int
    assumed_share: float
    source: str
    collected: date

    @property
    def fits(self) -> bool:
        """Whether the peak is within nine tenths of the GPU's memory; the rest goes to fragments."""
        return self.memory.total <= 0.9 * self.memory_bytes


@lru_cache
def table() -> Gpus:
    """The GPUs that are known."""
    return msgspec.yaml.decode(resources.files("tunesmith.train").joinpath("gpus.yaml").read_bytes(), type=Gpus)


def on_gpu(found: Estimate, name: str, *, base: Path, share: float = ASSUMED_SHARE) -> GpuEstimate:
    """The estimated run on one GPU of that name: in bfloat16 where it has it, one pack at a time. Raises NotFound."""
    known = table()
    gpu = known.gpus.get(name.upper())
    if gpu is None:
        raise NotFound(f"no GPU '{name}'", where="gpu", allowed=", ".join(known.gpus))
    dtype, rate = ("float32", gpu.float32) if gpu.bfloat16 is None else ("bfloat16", gpu.bfloat16)
    plan = msgspec.structs.replace(found.plan, device="cuda", lanes=1, dtype=dtype)
    largest = max(plan.micro_batch_tokens, plan.max_length)
    needed = memory(base_shape(base), plan, found.trainable_parameters, largest)
    return GpuEstimate(
        name=name.upper(),
        dtype=dtype,
        seconds=found.flops / (1e12 * rate * share),
        memory=msgspec.structs.replace(needed, runtime=CONTEXT_BYTES),
        memory_bytes=int(1e9 * gpu.memory),
        assumed_share=share,
        source=gpu.source,
        collected=known.collected,
    )
