"""The training stage of the circle: rendered rows in, a tested adapter out, told as it goes. Knows nothing about arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.memory import give_back
from tunesmith.core.model_ref import is_adapter
from tunesmith.flow.runner import Output
from tunesmith.flow.train_progress import TrainProgress
from tunesmith.train.items import Item, load_items
from tunesmith.train.methods import METHODS

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext
    from tunesmith.train.grpo import Reinforced
    from tunesmith.train.loop import TrainResult
    from tunesmith.train.plan import Plan
    from tunesmith.train.run import OnEvent
    from tunesmith.train.validation import Measure


def train_rows(context: ProjectContext, work: Path) -> Output:
    """Train as the plan says; an interrupted run in `work` continues. Returns the result, the resolved plan and its reasons."""
    from tunesmith.train.sinks import several, trackers

    give_back(cycles=True)  # what answered before is gone by now
    tokens = context.runner.folder("tokens")
    rows, validation = load_items(tokens / "train.npz"), load_items(tokens / "validation.npz")
    tracked = trackers(context.project.trackers, project=context.project.name, folder=context.store.layout.trackers)
    tell = several(TrainProgress(context.progress), tracked)
    result = fit(context, taught(context), {"train": rows, "validation": validation}, work, tell)
    manifest = json.loads((work / "run.json").read_text("utf-8"))
    return {
        "valid_loss": None,  # rewards have none
        "validation": kept_figures(events(work)),
        **{key: value for key, value in msgspec.to_builtins(result).items() if key != "artifact"},
        "plan": manifest["resolved"],
        "reasons": manifest["reasons"],
        "environment": manifest["environment"],
    }


def fit(
    context: ProjectContext,
    plan: Plan,
    items: dict[str, list[Item]],
    work: Path,
    tell: OnEvent,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult | Reinforced:
    """Train as that plan says on the items of `train`, watched on those of `validation`; what began in `work` continues. Raises as
    `train.loop.train`, Paused among it."""
    from tunesmith.train.loop import train

    if METHODS[plan.method].graded:
        return _reinforce(context, plan, items, work, tell, should_stop)
    rows, validation, measure = items["train"], items["validation"], _measure(context, plan)
    return train(plan, rows, validation, base=context.base, out=work, on_event=tell, should_stop=should_stop, measure=measure)


def taught(context: ProjectContext, plan: Plan | None = None) -> Plan:
    """The plan (None: the project's) with the adapter that it goes on from, where the base is one, and with the folder of its teacher."""
    from tunesmith.train.starting import going_on

    plan = context.project.train if plan is None else plan
    if context.start_adapter is not None:
        plan = msgspec.structs.replace(plan, adapter=going_on(plan.adapter, context.start_adapter, context.base))
    return with_teacher(plan, context.models.whole)


def with_teacher(plan: Plan, find: Callable[[str], Path]) -> Plan:
    """The plan with the folder of its teacher, which may be given by any word for whole weights."""
    if plan.distillation.teacher is None:
        return plan
    teacher = str(find(plan.distillation.teacher))
    return msgspec.structs.replace(plan, distillation=msgspec.structs.replace(plan.distillation, teacher=teacher))


def _reinforce(
    context: ProjectContext, plan: Plan, prompts: dict[str, list[Item]], work: Path, tell: OnEvent, should_stop: Callable[[], bool]
) -> Reinforced:
    """Train by what the plan's grader says of the model's own answers to the rows' prompts."""
    from tunesmith.flow.pipeline.rewards import reward_of, tasks_of
    from tunesmith.train.grpo import reinforce

    if plan.reinforcement.grader is None:
        raise ConfigError(
            f"method {plan.method} has no grader",
            where="train.reinforcement.grader",
            allowed="string_check, text_similarity, python, score_model, multi",
            remedy='grader: {type: string_check, name: same, input: "{{ sample.output_text }}", reference: "{{ item.reference }}", '
            "operation: eq}",
        )
    reward = reward_of(plan.reinforcement.grader, context.models.resolve)
    tasks, held_out = (tasks_of(context.rows(part), items) for part, items in prompts.items())
    return reinforce(plan, tasks, reward, held_out, base=context.base, out=work, on_event=tell, should_stop=should_stop)


def _measure(context: ProjectContext, plan: Plan) -> Measure | None:
    """The project's first metric on the first validation rows, as the evaluation asks them; None when the plan wants none.

    Each time the model as it would be saved is loaded beside the one in training, and forgotten again.
    """
    from tunesmith.evaluate.metrics import metric
    from tunesmith.evaluate.run import evaluate
    from tunesmith.models.local import LocalModel
    from tunesmith.train.validation import Measure

    project = context.project
    if not plan.metric_rows:
        return None
    chosen, rows, sampling = (
        metric(project.evaluate.metrics[0]),
        context.questions("validation")[: plan.metric_rows],
        context.sampling(),
    )
    if chosen.better == "neither":
        raise ConfigError(f"no value of {chosen.name} is better than another", where="evaluate.metrics", remedy="another metric first")

    def value(folder: Path) -> float | None:
        base, adapter = (context.base, folder) if is_adapter(folder) else (folder, None)
        model = LocalModel(base, adapter, name="in training", max_rows=project.evaluate.batch_size)
        return evaluate(model, rows, [chosen], sampling=sampling, out=folder.parent / "answers").values[chosen.name]

    return Measure(chosen.name, chosen.better == "higher", value)


def events(folder: Path) -> list[dict[str, Any]]:
    """Everything that a finished run reported."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]


def kept_figures(reported: list[dict[str, Any]]) -> dict[str, float]:
    """What the last evaluation of the weights that were kept found, such as loss, reward_accuracy and reward_margin; none without one."""
    restored = [event["best_step"] for event in reported if event["event"] == "best_restored"]
    seen = [event for event in reported if event["event"] == "evaluation" and (not restored or event["step"] == restored[-1])]
    figures = seen[-1] if seen else {}
    return {key.removeprefix("valid_"): value for key, value in figures.items() if key.startswith("valid_") and value is not None}
