"""Plans by their keys: what a study may change in a project's plan, and the plan that results. Trains nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.config import convert
from tunesmith.core.errors import ConfigError, nearest
from tunesmith.train.facts import base_shape
from tunesmith.train.methods import METHODS
from tunesmith.train.plan import Facts, Plan
from tunesmith.train.resolve import check, resolve
from tunesmith.tune.settings import Tune
from tunesmith.tune.space import Ground, times_rank

# Keys that change the rows or how a trial is measured, that a machine decides, or (the seed) that only noise would choose.
FIXED = frozenset(
    {
        "method", "max_length", "over_length", "adapter.kind", "adapter.start_from", "adapter.trainable_tokens", "reinforcement.grader",
        "reinforcement.max_tokens", "reinforcement.eval_samples", "distillation.teacher", "seed", "dtype", "threads", "lanes", "device",
        "micro_batch_tokens", "eval_every", "checkpoint_every", "keep_checkpoints", "metric_rows", "patience", "keep",
    }
)  # fmt: skip


def values(plan: Plan) -> dict[str, Any]:
    """Every key of a plan, with dots, and its value."""
    return dict(_flat(plan, ""))


def _flat(record: msgspec.Struct, before: str) -> Iterator[tuple[str, Any]]:
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, msgspec.Struct):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def changed(plan: Plan, changes: Mapping[str, Any]) -> Plan:
    """The plan with other values at some keys. Raises ConfigError where it cannot be one."""
    tree: dict[str, Any] = msgspec.to_builtins(plan)
    for key, value in changes.items():
        node = tree
        *above, last = key.split(".")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    made = convert(tree, Plan, places={(): "the trial's plan"})
    check(made)
    return made


def check_space(tune: Tune, plan: Plan) -> None:
    """Refuse a space with keys that no plan has, and values that the key cannot have. Raises ConfigError."""
    known = values(plan)
    for key, axis in tune.space.items():
        where = f"tune.space.{key}"
        if key not in known:
            raise ConfigError(f"unknown key '{key}'", where=where, allowed="keys of train:, with dots", remedy=nearest(key, list(known)))
        if key in FIXED:
            raise ConfigError(
                f"'{key}' cannot vary within a study: it changes the rows or how trials are measured, or is the machine's",
                where=where,
                remedy="leave it out",
            )
        if axis == "auto":
            continue
        rank = known["adapter.r"] if isinstance(known["adapter.r"], int) else 16
        for value in axis.choices or (axis.low, axis.high):
            try:
                changed(plan, {key: times_rank(value, {"adapter.r": rank})})
            except ConfigError as error:
                raise ConfigError(f"{key} cannot be {value}: {error.what}", where=where, allowed=error.allowed) from error


def resolved_values(plan: Plan, facts: Facts) -> dict[str, Any]:
    """Every key of the plan as numbers: what each "auto" becomes for these rows and this base."""
    return values(resolve(plan, facts)[0])


def ground(plan: Plan, facts: Facts, base: Path) -> Ground:
    """What ready spaces are made from."""
    method = METHODS[plan.method]
    layers = {name.rpartition(".")[2] for name in base_shape(base).get("linears", {})}
    fixed = FIXED | ({"adapter.r", "adapter.alpha"} if plan.adapter.start_from is not None else set())
    return Ground(
        method=plan.method,
        section=method.section,
        options=method.options,
        default=resolved_values(plan, facts),
        rows=facts.rows,
        hidden_size=facts.hidden_size,
        layers=tuple(sorted(layers)),
        fixed=fixed,
    )
