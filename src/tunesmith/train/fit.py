"""A plan that does not fit a memory, and what to change so that it does; knows nothing about speed or prices.

Every change is tried by the estimate's own arithmetic: first each alone, then all together in the order in which they cost least.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.errors import TrainingError
from tunesmith.train.estimate import Estimate, Memory, lora_parameters, memory
from tunesmith.train.facts import base_shape
from tunesmith.train.plan import ResolvedAdapter, ResolvedPlan

SHORTEST = 128  # tokens; no shorter rows are proposed


def peak(config: dict[str, Any], plan: ResolvedPlan, estimate: Estimate) -> Memory:
    """Peak bytes of `plan` over the rows of an estimate; `config` as `base_shape` gives it. A pack holds one row at least."""
    longest = min(estimate.longest, plan.max_length)
    largest = max(longest, min(estimate.largest_pack, plan.micro_batch_tokens))
    trainable = int(config["parameters"]) if plan.adapter.kind == "none" else lora_parameters(config, plan)
    return memory(config, plan, trainable, largest)


def _halves(start: int, least: int) -> Iterator[int]:
    while (start := start // 2) >= least:
        yield start


def _changes(plan: ResolvedPlan, longest: int) -> Iterator[list[dict[str, Any]]]:
    """What may be changed, cheapest first; each as its settings, mildest first."""
    adapter, full = plan.adapter, plan.adapter.kind == "none"
    if plan.lanes > 1:
        yield [{"lanes": 1}]
    yield [{"micro_batch_tokens": n} for n in _halves(plan.micro_batch_tokens, min(longest, plan.max_length))]
    if not plan.activation_checkpointing:
        yield [{"activation_checkpointing": True}]
    if full:
        yield [{"adapter": ResolvedAdapter()}]
    if full or (adapter.quantise == "none" and not adapter.dora and adapter.init in ("default", "gaussian")):
        yield [{"adapter": msgspec.structs.replace(ResolvedAdapter() if full else adapter, quantise="nf4")}]
    yield [{"max_length": n, "micro_batch_tokens": n} for n in _halves(min(longest, plan.max_length), SHORTEST)]


def what_fits(estimate: Estimate, plan: ResolvedPlan, limit: int, *, base: Path) -> tuple[str, ...]:
    """Changes of `plan` with which the run fits into `limit` bytes: those that do alone, else several together as one, else none."""
    config = base_shape(base)

    def fits(values: dict[str, Any]) -> bool:
        return peak(config, msgspec.structs.replace(plan, **values), estimate).total <= limit

    changes = [settings for settings in _changes(plan, estimate.longest) if settings]
    alone = [next(filter(fits, settings), None) for settings in changes]
    if any(alone):
        return tuple(_words(values) for values in alone if values)
    together: dict[str, Any] = {}
    for settings in changes:
        together = next((tried for values in settings if fits(tried := together | values)), together | settings[-1])
        if fits(together):
            return (_words(together),)
    return ()


def _words(values: dict[str, Any]) -> str:
    named = {**values}
    if (adapter := named.pop("adapter", None)) is not None:
        named["adapter"] = "{quantise: nf4}" if adapter.quantise == "nf4" else "{kind: lora}"
    return " and ".join(f"{key}: {str(value).lower()}" for key, value in named.items())


def refuse_what_cannot_fit(estimate: Estimate, *, base: Path) -> None:
    """Raises TrainingError with changes of the plan that would fit, when the estimated peak exceeds the free memory."""
    if estimate.available_bytes is not None:
        refuse(estimate, estimate.plan, estimate.memory, estimate.available_bytes, base=base)


def refuse(estimate: Estimate, plan: ResolvedPlan, needed: Memory, limit: int, *, base: Path, place: str = "here") -> None:
    """Raises TrainingError when `needed` exceeds `limit` bytes at `place`."""
    if needed.total <= limit:
        return
    raise TrainingError(
        f"the run needs about {needed.total / 1e9:.1f} GB and {limit / 1e9:.1f} GB can be used {place}",
        where="train",
        remedy=", or ".join(what_fits(estimate, plan, limit, base=base)) or "a smaller base",
    )
