"""From a plan as it is written to what a run does: every "auto" becomes a number with its reason and source; what cannot be is refused.

Knows nothing about torch, files or rows; it sees a model and its data only as `Facts`, and asks the method's record for its part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec

from tunesmith.core import epochs
from tunesmith.core.errors import ConfigError
from tunesmith.train.devices import untried
from tunesmith.train.methods import METHODS
from tunesmith.train.methods.base import Method
from tunesmith.train.plan import (
    LORA_WITHOUT_REGRET,
    Adapter,
    Choice,
    Facts,
    Plan,
    Reason,
    ResolvedAdapter,
    ResolvedPlan,
    ResolvedReinforcement,
)


def _epochs(rows: int) -> Choice:
    count = epochs.default_epochs(rows)
    return count, f"{rows} rows: {rows * count} examples in all", epochs.SOURCE


def _batch_size(rows: int) -> Choice:
    size = 8 if rows < 1000 else 16 if rows < 10_000 else 32
    return size, f"{rows} rows; LoRA tolerates large batches worse than full training", LORA_WITHOUT_REGRET


def _rank(facts: Facts) -> Choice:
    # Parameters of one unit of rank over all linear layers of a block: about 18 hidden sizes (SmolLM2: 17.3, Llama 3: 20).
    per_rank = 18 * facts.hidden_size * facts.layers
    rank = 16
    while rank < 128 and rank * per_rank < facts.trained_tokens:
        rank *= 2
    why = f"{facts.trained_tokens} trained tokens against about {rank * per_rank / 1e6:.1f} M trainable parameters"
    return rank, why, f"capacity in parameters should exceed the data's information: {LORA_WITHOUT_REGRET}"


def _dtype(facts: Facts) -> Choice:
    if facts.bfloat16:
        return (
            "bfloat16",
            "the processor multiplies bfloat16 in hardware (2–4 times as fast); adapter and optimiser stay float32",
            "this machine",
        )
    return "float32", "no bfloat16 arithmetic in hardware", "this machine"


def _why_device(device: str) -> str:
    return "the fastest device found" + (f"; {untried(device)}" if untried(device) else "")


def _lanes(device: str, threads: int, batch: int) -> Choice:
    if device != "cpu":
        return 1, "one pack fills the device", "one device"
    lanes = max(n for n in range(1, 9) if threads % n == 0 and (n == 1 or batch >= 4 * n))
    why = f"{lanes} packs side by side, {threads // lanes} threads each: cores that wait for each other in every product lose time"
    return lanes, why, "measured on 2 cores"


def _adapter(adapter: Adapter, facts: Facts, auto: Callable[[str, Any, Choice], Any]) -> ResolvedAdapter:
    own = "the adapter that training starts from", adapter.start_from or ""
    rank = auto("adapter.r", adapter.r, _rank(facts) if facts.start_rank is None else (facts.start_rank, *own))
    scaled = 2.0 * math.sqrt(rank) if adapter.rslora else 2.0 * rank
    why = "2√r keeps the same scale at this rank" if adapter.rslora else "alpha = 2r: the update is scaled by 2"
    alpha = (scaled, why, "arXiv 2106.09685 and 2312.03732") if facts.start_alpha is None else (facts.start_alpha, *own)
    values = msgspec.structs.asdict(adapter) | {
        "r": rank,
        "alpha": auto("adapter.alpha", adapter.alpha, alpha),
        "dropout": auto("adapter.dropout", adapter.dropout, (0.0, "few epochs; validation loss shows overfitting", LORA_WITHOUT_REGRET)),
    }
    return ResolvedAdapter(**values)


def resolve(plan: Plan, facts: Facts) -> tuple[ResolvedPlan, tuple[Reason, ...]]:
    """Every "auto" as a number, with reasons. Raises ConfigError for values that exclude each other or lie outside their range."""
    check(plan)
    reasons: list[Reason] = []

    def auto(field: str, given: Any, choice: Choice) -> Any:
        if given != "auto":
            return given
        value, why, source = choice
        reasons.append(Reason(field=field, value=f"{value}", why=why, source=source))
        return value

    lora, method = plan.adapter.kind == "lora", METHODS[plan.method]
    adapter = _adapter(plan.adapter, facts, auto) if lora else ResolvedAdapter(kind="none")
    own = method.resolve_section(plan, facts, auto)
    answer = own["reinforcement"].max_tokens if "reinforcement" in own else 0
    max_length = auto("max_length", plan.max_length, method.max_length(facts, answer))
    rows = method.examples(facts, max_length)
    batch = auto("batch_size", plan.batch_size, _batch_size(rows))
    tokens = (
        1536 if facts.device == "cpu" else 2048,
        "bounds the memory of activations; the result does not depend on it",
        "measured on SmolLM2-135M",
    )
    device = auto("device", plan.device, (facts.device, _why_device(facts.device), "this machine"))
    threads = auto("threads", plan.threads, (facts.cores, "every core that this process may use", "this machine"))
    values = msgspec.structs.asdict(plan) | {"reinforcement": ResolvedReinforcement()} | own
    values |= {
        "adapter": adapter,
        "epochs": auto("epochs", plan.epochs, _epochs(rows)),
        "learning_rate": auto("learning_rate", plan.learning_rate, method.learning_rate(facts, lora)),
        "batch_size": batch,
        "micro_batch_tokens": auto("micro_batch_tokens", plan.micro_batch_tokens, tokens),
        "max_length": max_length,
        "over_length": auto("over_length", plan.over_length, _over_length(method)),
        "dtype": auto("dtype", plan.dtype, _dtype(facts)),
        "threads": threads,
        "lanes": auto("lanes", plan.lanes, _lanes(device, threads, batch)),
        "device": device,
    }
    return ResolvedPlan(**values), tuple(reasons)


def _over_length(method: Method) -> Choice:
    why = {
        "drop": "a row that was cut teaches an answer that breaks off",
        "truncate": "the beginning of a row is worth training",
        "split": "nothing of a text is lost",
    }
    return method.over_length[0], f"{method.name}: {why[method.over_length[0]]}", "docs/training.md, Methods"


_POSITIVE = (
    "epochs",
    "learning_rate",
    "batch_size",
    "micro_batch_tokens",
    "max_length",
    "max_grad_norm",
    "threads",
    "lanes",
    "eval_every",
    "checkpoint_every",
    "patience",
    "spike",
)


def check(plan: Plan) -> None:
    """Refuse what cannot be: ranges, and options that exclude each other. Raises ConfigError."""
    values = msgspec.structs.asdict(plan)
    for name in _POSITIVE:
        value = values[name]
        if not isinstance(value, str) and value is not None and value <= 0:
            raise ConfigError(f"{name} is {value}", where=f"train.{name}", allowed="a number above 0")
    for name, value, low, high in (
        ("warmup_ratio", plan.warmup_ratio, 0.0, 1.0),
        ("weight_decay", plan.weight_decay, 0.0, 10.0),
        ("adapter.dropout", plan.adapter.dropout, 0.0, 0.99),
        ("keep_checkpoints", plan.keep_checkpoints, 1, 10_000),
        ("recoveries", plan.recoveries, 0, 10),
        ("metric_rows", plan.metric_rows, 0, 100_000),
        ("replay", plan.replay, 0.0, 1.0),
    ):
        if not isinstance(value, str) and value is not None and not low <= value <= high:
            raise ConfigError(f"{name} is {value}", where=f"train.{name}", allowed=f"{low} to {high}")
    _check_method(plan, METHODS[plan.method])
    _check_adapter(plan.adapter)


def _check_method(plan: Plan, method: Method) -> None:
    """Refuse what does not go with the plan's method."""
    if plan.over_length != "auto" and plan.over_length not in method.over_length:
        what = f"over_length {plan.over_length} and method {method.name} exclude each other"
        raise ConfigError(what, where="train.over_length", allowed=" or ".join(method.over_length))
    if plan.metric_rows and method.no_metric:
        what = f"metric_rows and method {method.name} exclude each other: {method.no_metric}"
        raise ConfigError(what, where="train.metric_rows", remedy="metric_rows: 0")
    for section in sorted({other.section for other in METHODS.values() if other.section}):
        given, plain = getattr(plan, section), getattr(Plan(), section)
        if section != method.section and given != plain:
            names = " or ".join(other.name for other in METHODS.values() if other.section == section)
            what = f"{section} means nothing to method {method.name}"
            raise ConfigError(what, where=f"train.{section}", remedy=f"method: {names}, or leave it out")
        for name in given.__struct_fields__ if section == method.section and method.options else ():
            if name not in method.options and getattr(given, name) != getattr(plain, name):
                what = f"{section}.{name} means nothing to method {method.name}"
                raise ConfigError(what, where=f"train.{section}.{name}", allowed=", ".join(method.options))
    method.check(plan)


def _check_adapter(adapter: Adapter) -> None:
    if isinstance(adapter.r, int) and adapter.r <= 0:
        raise ConfigError(
            f"adapter.r is {adapter.r}", where="train.adapter.r", allowed="a number above 0", remedy="kind: none trains all weights"
        )
    if adapter.kind == "none":
        changed = [f for f in Adapter.__struct_fields__ if f != "kind" and getattr(adapter, f) != getattr(Adapter(), f)]
        if changed:
            raise ConfigError(
                f"adapter.kind none trains every weight, so {', '.join(changed)} mean nothing",
                where="train.adapter",
                remedy="leave them out, or set kind: lora",
            )
    if adapter.dora and adapter.init == "pissa":
        raise ConfigError("dora and init pissa exclude each other", where="train.adapter", remedy="choose one of them")
    if adapter.quantise != "none" and (adapter.dora or adapter.init not in ("default", "gaussian")):
        other = "dora" if adapter.dora else f"init {adapter.init}"
        raise ConfigError(f"quantise {adapter.quantise} and {other} exclude each other", where="train.adapter", remedy="choose one of them")
    if adapter.start_from is not None and adapter.init != "default":
        raise ConfigError(
            f"start_from and init {adapter.init} exclude each other: the adapter has its weights",
            where="train.adapter",
            remedy="leave out init",
        )
