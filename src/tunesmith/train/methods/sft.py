"""sft: supervised fine-tuning. The answers of conversations, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.core.types import Example
from tunesmith.train.methods.base import Job, Method, chats_apart, render_chats, token_rate
from tunesmith.train.plan import ResolvedPlan

if TYPE_CHECKING:
    from tunesmith.train.objectives import Objective


def _objective(plan: ResolvedPlan) -> Objective:
    from tunesmith.train.objectives import SFT

    return SFT()


METHOD = Method(
    name="sft",
    takes=Example,
    render=render_chats,
    parts=chats_apart,
    objective=_objective,
    learning_rate=token_rate,
    job=Job("supervised", ("chat",), openai=True),
)
