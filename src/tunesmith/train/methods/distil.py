"""distil: distillation. A teacher's distribution over the next token at every trained token of conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Example
from tunesmith.train.methods.base import Job, Method, chats_apart, render_chats, token_rate
from tunesmith.train.plan import Plan, ResolvedPlan

if TYPE_CHECKING:
    from tunesmith.train.objectives import Objective


def _check(plan: Plan) -> None:
    options = plan.distillation
    if options.teacher is None:
        raise ConfigError("method distil has no teacher", where="train.distillation.teacher", remedy="teacher: a larger model's folder")
    if not 0 <= options.beta <= 1:
        raise ConfigError(f"beta is {options.beta}", where="train.distillation.beta", allowed="0 (forward) to 1 (reverse)")
    if options.temperature <= 0:
        raise ConfigError(f"temperature is {options.temperature}", where="train.distillation.temperature", allowed="a number above 0")


def _objective(plan: ResolvedPlan) -> Objective:
    from tunesmith.train.distil import Distil, load_teacher

    return Distil(plan.distillation, load_teacher(plan))


METHOD = Method(
    name="distil",
    takes=Example,
    render=render_chats,
    parts=chats_apart,
    objective=_objective,
    learning_rate=token_rate,
    section="distillation",
    check=_check,
    unit="nats of divergence per trained token",
    learned_nats=None,
    job=Job(
        "distillation",
        ("chat",),
        options={"teacher": "distillation.teacher", "beta": "distillation.beta", "temperature": "distillation.temperature"},
        shown=("teacher",),
        models=("teacher",),
    ),
)
