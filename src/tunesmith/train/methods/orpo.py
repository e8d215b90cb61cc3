"""orpo: odds-ratio preference optimisation. The preferred answer learned, the other pushed away, without a reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.types import Preference
from tunesmith.train.methods.base import Job, Method, check_preference, preference_rate, render_pairs
from tunesmith.train.plan import ResolvedPlan

if TYPE_CHECKING:
    from tunesmith.train.objectives import Objective


def _objective(plan: ResolvedPlan) -> Objective:
    from tunesmith.train.objectives import ORPO

    return ORPO(plan.preference)


METHOD = Method(
    name="orpo",
    takes=Preference,
    render=render_pairs,
    rows=2,
    objective=_objective,
    learning_rate=preference_rate,
    section="preference",
    options=("beta",),
    check=check_preference,
    unit="loss of a pair",
    learned_nats=None,
    job=Job("orpo", ("dpo", "trl_preference"), options={"beta": "preference.beta"}, shown=("beta",)),
)
