"""Training methods: which objective a plan's method minimises."""

from __future__ import annotations

from tunesmith.core.errors import ConfigError
from tunesmith.train.objectives import DPO, KTO, ORPO, SFT, Objective
from tunesmith.train.plan import ResolvedPlan


def objective_of(plan: ResolvedPlan) -> Objective:
    """The plan's method, with its teacher loaded where it has one."""
    if plan.method in ("sft", "text"):
        return SFT()
    if plan.method == "grpo":
        raise ConfigError("method grpo draws its rows itself", where="train.method", remedy="train.grpo.reinforce(plan, tasks, reward, …)")
    if plan.method == "distil":
        from tunesmith.train.distil import Distil, load_teacher

        return Distil(plan.distillation, load_teacher(plan))
    if plan.method == "kto":
        return KTO(plan.preference)
    return DPO(plan.preference) if plan.method == "dpo" else ORPO(plan.preference)
