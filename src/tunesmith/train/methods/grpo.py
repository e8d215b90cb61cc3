"""grpo: reinforcement. Prompts, to which the model draws answers itself, rated by a grader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Example, Prompt
from tunesmith.train.methods.base import Auto, Job, Method
from tunesmith.train.plan import LORA_WITHOUT_REGRET, Choice, Facts, Plan, ResolvedPlan, ResolvedReinforcement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tunesmith.core.chat import Renderer
    from tunesmith.train.items import Item
    from tunesmith.train.objectives import Objective


def _render(renderer: Renderer, rows: Sequence[Example]) -> list[Item]:
    """Prompts as a model is asked at inference, of which nothing is trained."""
    import numpy as np

    from tunesmith.core.chat import Rendered
    from tunesmith.train.items import Item

    asked = [renderer.prompt(Prompt(messages=row.prompt, tools=row.tools)) for row in rows]
    return [Item((Rendered(row.id, np.array(ids, np.int32), np.zeros(len(ids), np.uint8)),)) for row, ids in zip(rows, asked, strict=True)]


def _learning_rate(facts: Facts, lora: bool) -> Choice:
    why = "grpo: 1e-6 for full training, ten times that for LoRA"
    return (1e-5 if lora else 1e-6), why, f"TRL's default for GRPO; {LORA_WITHOUT_REGRET}"


def _max_length(facts: Facts, answer: int) -> Choice:
    why = f"the longest prompt and {answer} tokens of an answer, at most the model's {facts.positions} positions"
    return min(facts.longest + answer, facts.positions), why, "the data"


def _check(plan: Plan) -> None:
    options = plan.reinforcement
    for name, value, low, high in (
        ("samples", options.samples, 2, 1024),
        ("max_tokens", options.max_tokens, 1, 1 << 20),
        ("temperature", options.temperature, 0.01, 10),
        ("beta", options.beta, 0, 100),
        ("clip", options.clip, 0, 1),
        ("clip_high", options.clip_high, 0, 100),
        ("updates", options.updates, 1, 64),
        ("eval_samples", options.eval_samples, 1, 1024),
    ):
        if value is not None and not isinstance(value, str) and not low <= value <= high:
            raise ConfigError(f"{name} is {value}", where=f"train.reinforcement.{name}", allowed=f"{low} to {high}")
    if options.beta and plan.adapter.kind == "none":
        what = "reinforcement.beta compares with the base by switching the adapter off, and adapter.kind none has no adapter"
        raise ConfigError(what, where="train.reinforcement.beta", remedy="beta: 0, or kind: lora")


def drawn_tokens(plan: Plan, positions: int) -> int:
    """How many tokens an answer may have, on a base with so many positions."""
    wanted = plan.reinforcement.max_tokens
    return wanted if isinstance(wanted, int) else max(16, min(256, positions // 2))


def _resolve_section(plan: Plan, facts: Facts, auto: Auto) -> dict[str, Any]:
    options = plan.reinforcement
    samples = (8, "enough that few groups are all right or all wrong", "TRL's default for GRPO")
    tokens = (
        drawn_tokens(plan, facts.positions),
        f"256, at most half of the model's {facts.positions} positions",
        "TRL's default for GRPO",
    )
    values = msgspec.structs.asdict(options) | {
        "samples": auto("reinforcement.samples", options.samples, samples),
        "max_tokens": auto("reinforcement.max_tokens", options.max_tokens, tokens),
    }
    return {"reinforcement": ResolvedReinforcement(**values)}


def _objective(plan: ResolvedPlan) -> Objective:
    raise ConfigError("method grpo draws its rows itself", where="train.method", remedy="train.grpo.reinforce(plan, tasks, reward, …)")


METHOD = Method(
    name="grpo",
    takes=Example,
    render=_render,
    objective=_objective,
    learning_rate=_learning_rate,
    max_length=_max_length,
    over_length=("drop",),
    graded=True,
    drawn_tokens=drawn_tokens,
    section="reinforcement",
    check=_check,
    resolve_section=_resolve_section,
    no_metric="grpo is judged by its reward",
    unit="mean reward",
    no_proof="grpo learns no rows by heart",
    job=Job(
        "reinforcement",
        ("rft",),
        openai=True,
        options={"max_tokens": "reinforcement.max_tokens", "temperature": "reinforcement.temperature", "kl_beta": "reinforcement.beta"},
        shown=("compute_multiplier", "eval_interval", "eval_samples", "reasoning_effort"),
    ),
)
