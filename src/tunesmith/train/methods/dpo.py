"""dpo: direct preference optimisation, and IPO (`preference.loss: ipo`). Of two answers the preferred one, measured against the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Preference
from tunesmith.train.methods.base import Job, Method, check_preference, preference_rate, render_pairs
from tunesmith.train.plan import Plan, ResolvedPlan

if TYPE_CHECKING:
    from tunesmith.train.objectives import Objective


def _check(plan: Plan) -> None:
    check_preference(plan)
    options = plan.preference
    if options.loss == "ipo" and options.label_smoothing:
        raise ConfigError("loss ipo and label_smoothing exclude each other", where="train.preference", remedy="leave one of them out")


def _objective(plan: ResolvedPlan) -> Objective:
    from tunesmith.train.objectives import DPO

    return DPO(plan.preference)


OPTIONS = ("beta", "loss", "label_smoothing", "length_normalised", "reference_free", "sft_weight")
METHOD = Method(
    name="dpo",
    takes=Preference,
    render=render_pairs,
    rows=2,
    objective=_objective,
    learning_rate=preference_rate,
    section="preference",
    options=OPTIONS,
    check=_check,
    unit="loss of a pair",
    learned_nats=None,
    job=Job("dpo", ("dpo",), openai=True, options={name: f"preference.{name}" for name in OPTIONS}, shown=("beta",)),
)
