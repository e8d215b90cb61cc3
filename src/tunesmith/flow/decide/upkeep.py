"""What it takes to keep an arm running: its times, memory and price, measured on validation rows before any test row is opened, so that the
order from the cheapest arm to the dearest is known when the race begins. Every figure is measured; one that nobody knows stays unknown."""

from __future__ import annotations

import numpy as np

from tunesmith.core.types import Record
from tunesmith.decide.arms import KINDS
from tunesmith.decide.cost import machine_cost, per_1000, tokens_usd
from tunesmith.decide.records import MeasuredArm
from tunesmith.flow.datasets.tokens import price_of
from tunesmith.flow.decide.build import Built
from tunesmith.flow.decide.desk import Asking, Desk
from tunesmith.models.resolve import is_remote
from tunesmith.train.estimate import answering_bytes
from tunesmith.train.facts import base_shape


class Upkeep(Record, frozen=True):
    """One arm's times and prices. Latencies are of single requests, alone on the machine, over `timed` questions; `busy_s` is what a
    request takes where many are answered together.

    `usd_per_1000` is at the machine's measured speed with the share of it at work that `decide.busy` says, `usd_per_1000_full` with no idle
    time; `build_s` and `build_usd` were spent once. None: not known.
    """

    name: str
    latency_p50_s: float | None
    latency_p95_s: float | None
    first_token_s: float | None
    timed: int
    busy_s: float
    memory_bytes: int | None
    build_s: float
    train_s: float
    build_usd: float | None
    usd_per_1000: float | None
    usd_per_1000_full: float | None
    private: bool = True


def upkeep_of(desk: Desk, one: Built) -> Upkeep:
    """The arm asked the validation rows, together and some of them one by one."""
    asking, rows, remote = Asking(), desk.validation, one.arm.kind == "larger" and is_remote(one.arm.base)
    model = one.opened()
    desk.answers(model, [one.variant(row) for row in rows], one.sampling, asking, f"timing {one.arm.name}")
    seconds, read, written = asking.cost()
    busy_s = seconds / max(1, asking.count)
    alone = desk.alone(model, [one.variant(row) for row in rows[: desk.plan.latency_rows]], one.sampling)
    whole = [answer.total_s for answer in alone if answer.total_s is not None]
    first = [answer.first_token_s for answer in alone if answer.first_token_s is not None]
    build_usd, usd, full = _hosted(one, read, written, asking.count) if remote else _here(desk, one, busy_s)
    return Upkeep(
        name=one.arm.name,
        latency_p50_s=float(np.median(whole)) if whole else None,
        latency_p95_s=float(np.quantile(whole, 0.95)) if whole else None,
        first_token_s=float(np.median(first)) if first else None,
        timed=len(whole),
        busy_s=busy_s,
        memory_bytes=_memory(desk, one),
        build_s=one.build_s,
        train_s=one.train_s,
        build_usd=build_usd,
        usd_per_1000=usd,
        usd_per_1000_full=full,
        private=not remote or one.arm.base == "echo",
    )


def priced(one: Built, upkeep: Upkeep) -> MeasuredArm:
    """The arm as the decision reads it, before it has any score."""
    return MeasuredArm(
        name=one.arm.name,
        kind=KINDS[one.arm.kind].family,
        scores=(),
        simpler_rank=one.arm.rank,
        build_usd=upkeep.build_usd,
        usd_per_1000=upkeep.usd_per_1000,
        build_s=upkeep.build_s,
        latency_p50_s=upkeep.latency_p50_s,
        latency_p95_s=upkeep.latency_p95_s,
        first_token_s=upkeep.first_token_s,
        memory_bytes=upkeep.memory_bytes,
        private=upkeep.private,
    )


def _hosted(one: Built, read: int, written: int, requests: int) -> tuple[float | None, float | None, float | None]:
    """(dollars to build, dollars for 1,000 requests, the same) by the tokens at the list price."""
    listed = price_of(one.arm.base)
    price = None if listed is None else (listed.input, listed.output)
    usd = tokens_usd(read, written, price)
    each = None if usd is None else per_1000(usd, requests)
    return tokens_usd(one.read, one.written, price), each, each


def _here(desk: Desk, one: Built, busy_s: float) -> tuple[float | None, float | None, float | None]:
    """(dollars to build, dollars for 1,000 requests, the same at full utilisation) by the machine's time."""
    hour = desk.plan.machine_per_hour
    if hour is None:
        return None, None, None
    answering = machine_cost(hour, 1_000 * busy_s, desk.plan.busy)
    return machine_cost(hour, one.build_s).full_usd, answering.usd, answering.full_usd


def _memory(desk: Desk, one: Built) -> int | None:
    """Bytes of the weights in the precision in which they answer, and of answering one request; None for a model that is not here."""
    context = desk.contexts.get(one.arm.base)
    if context is None:
        return None
    config = base_shape(context.base)
    size = 2 if context.model.precision == "bfloat16" else 4
    longest = context.runner.run("tokens").output["train"]["longest"] + one.sampling.max_tokens
    return int(size * int(config["parameters"]) + answering_bytes(config, size, 1, longest))
