"""What is said before anything is spent: whether every arm can be built, and what the smallest experiment costs. Asks no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.core.errors import ConfigError
from tunesmith.core.passages import cut
from tunesmith.core.words import words
from tunesmith.decide.arms import Arm
from tunesmith.decide.prompt import written
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.datasets.tokens import price_of
from tunesmith.flow.decide import lookup
from tunesmith.flow.decide.desk import Desk
from tunesmith.flow.pipeline.answering_time import answering_seconds
from tunesmith.flow.pipeline.estimate import estimate
from tunesmith.train.facts import gather, machine_rate
from tunesmith.train.items import load_items
from tunesmith.train.resolve import resolve

_LOADING_S = 2.0
ONE_ROUND = 2  # shards without which nothing can be compared


def look(desk: Desk, arms: Sequence[Arm]) -> None:
    """Everything that can be wrong without a row being read: the metric, the words for models, the prompt, prices for a budget."""
    if desk.project.documents:
        raise ConfigError(
            f"method {desk.project.project.train.method} trains documents, which ask nothing",
            where="train.method",
            allowed="a method whose rows ask and answer",
            remedy="tunesmith run measures documents by their likelihood",
        )
    _ = desk.metric
    if desk.plan.prompt is not None:
        written(desk.plan.prompt)
    for context in desk.contexts.values():
        _ = context.base
    _ = desk.documents
    words = [arm.base for arm in arms if arm.kind == "larger"]
    if any(arm.kind == "distilled" for arm in arms) and desk.plan.teacher is not None:
        words.append(desk.plan.teacher)
    for word in words:
        desk.project.models.resolve(word)
        if desk.plan.budget_usd is not None and (word.startswith("openai:") and price_of(word) is None):
            raise ConfigError(
                f"nobody knows what '{word}' costs, and there is a budget in dollars", where="decide.budget_usd", remedy="leave it out"
            )
    if desk.plan.budget_usd is not None and desk.plan.machine_per_hour is None and not words:
        raise ConfigError(
            "a budget in dollars without a price of this machine's time",
            where="decide.budget_usd",
            remedy="decide.machine_per_hour: what an hour of this machine costs, or --budget 20m",
        )


def check_budget(desk: Desk, arms: Sequence[Arm]) -> None:
    """Raises ConfigError for a budget in which not even the simplest arm can be asked the first shards."""
    rows = min(ONE_ROUND * desk.plan.shard, len(desk.project.rows("test")))
    least = answering_s(desk.contexts.get(arms[0].base, desk.project), rows)
    short = desk.budget.short(least)
    if short:
        key = (
            "decide.budget" if desk.plan.budget_s is not None and desk.budget.taken_s + least > desk.plan.budget_s else "decide.budget_usd"
        )
        raise ConfigError(
            f"the budget is too small for one arm: to ask {arms[0].name} {rows} rows, {short}",
            where=key,
            allowed=f"at least {least:.0f} s by formula; some times as much for several arms",
            remedy="a larger --budget, or --quick",
        )


@dataclass(frozen=True)
class ExpectedBuild:
    """Seconds that an arm will take by formula: `training_s`, and `answering_s` for its choices and its timing on validation rows."""

    training_s: float
    answering_s: float


def expected_build(desk: Desk, arm: Arm) -> ExpectedBuild:
    """What building the arm and timing it will take, by formula."""
    context, validation, ways = desk.contexts.get(arm.base, desk.project), len(desk.validation), len(desk.plan.shots)
    choosing = {"few-shot-random": ways, "few-shot-nearest": ways, "few-shot-greedy": 6, "optimised-prompt": 8, "retrieval-rows": 2}
    answering = answering_s(context, (1 + choosing.get(arm.kind, 0)) * validation + desk.plan.latency_rows)
    trained = not arm.trains or (arm.taught == "rows" and context.runner.peek("train") is not None)
    if trained:
        return ExpectedBuild(0.0, answering)
    training_s = estimate(context, ["train"]).seconds["train"]
    return ExpectedBuild(training_s * (_with_passages(desk, context) if arm.taught == "passages" else 1.0), answering)


def _with_passages(desk: Desk, context: ProjectContext) -> float:
    """How many times as many tokens a training row has with its passages before it; a token is about four characters of them."""
    output = context.runner.run("tokens").output["train"]
    rows = load_items(context.runner.folder("tokens") / "train.npz")
    each = float(output["tokens"]) / max(1, len(rows))
    passages = cut(desk.documents, lambda text: len(words(text)), size=lookup.SIZES[0])
    passage = sum(len(one.text) for one in passages) / len(passages) / 4 if passages else each
    return float(1.0 + max(desk.plan.passages) * passage / each)


def answering_s(context: ProjectContext, rows: int) -> float:
    """Seconds to answer so many rows with a base as it is, by formula."""
    tokens = context.runner.run("tokens").output
    items = load_items(context.runner.folder("tokens") / "train.npz")
    facts = gather(context.project.train, items, context.base)
    plan, _ = resolve(context.project.train, facts)
    each = tokens["train"]["tokens"] / max(1, len(tokens["lengths"]))
    written_tokens = 0.25 * rows * context.sampling().max_tokens
    seconds = answering_seconds(context, machine_rate(facts, plan), read=rows * each, rows=rows, written=written_tokens)
    return _LOADING_S + seconds
