"""Training without the rest of the circle: the data stages, the training stage, and the proof that the pipeline can learn at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.errors import TrainingError, UsageError
from tunesmith.core.progress import Progress
from tunesmith.flow.pipeline.run import RunCommand, begin, opened
from tunesmith.flow.pipeline.training_stage import taught
from tunesmith.flow.project import Project
from tunesmith.flow.runner import only_one
from tunesmith.store.runs import Runs
from tunesmith.train.facts import gather
from tunesmith.train.items import Item, load_items
from tunesmith.train.methods import METHODS
from tunesmith.train.methods.base import Method, token_rate
from tunesmith.train.plan import Plan

# What of a plan an overfit does not take over: nothing is held out, and the last weights are the ones that count.
_BY_HEART = {"epochs": 40, "warmup_ratio": 0.05, "eval_every": None, "checkpoint_every": None, "keep": "last", "patience": None}
_NO_LOSS = 0.01  # so little is nothing to halve


def train_project(
    project: Project, folder: Path, progress: Progress, *, fresh: bool = False, made: RunCommand = RunCommand(command="tunesmith train")
) -> dict[str, Any]:
    """Prepare the data and train; an interrupted run continues. `fresh` begins anew (`Runner.begin_anew`)."""
    with opened(project, folder, progress) as context, only_one(context.store.folder):
        if fresh:
            context.runner.begin_anew("train")
        run = begin(context, made, ("collect", "split", "tokens", "train"))
        done = context.runner.run("train")
        Runs(context.store).finish(run.id)
        return {**done.output, "cached": done.cached, "artifact": str(context.trained)}


def overfit(project: Project, folder: Path, progress: Progress, rows: int) -> dict[str, Any]:
    """Train on `rows` rows until they are known by heart: proves that data, mask, adapter and optimiser work together.

    Raises TrainingError when the loss stays above what the method calls learned, UsageError for a method without such a proof.
    """
    from tunesmith.train.loop import train

    method = METHODS[project.train.method]
    if method.no_proof:
        raise UsageError(method.no_proof, where="--overfit", remedy="--train.method sft proves the pipeline")
    with opened(project, folder, progress) as context, only_one(context.store.folder):
        context.runner.run("tokens")
        few = load_items(context.runner.folder("tokens") / "train.npz")[:rows]
        plan = _by_heart(taught(context), few, context.base)
        work, losses = context.store.layout.overfit, list[float]()
        shutil.rmtree(work, ignore_errors=True)

        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                losses.append(event["train_loss"])
                progress.bar("overfit", event["step"], event["total_steps"])

        result = train(plan, few, base=context.base, out=work, on_event=tell)
        shutil.rmtree(work, ignore_errors=True)
    bound = _learned(method, losses[0])
    proof = {"rows": len(few), "steps": result.steps, "first_loss": losses[0], "train_loss": result.train_loss, "unit": method.unit}
    if result.train_loss > bound:
        raise TrainingError(
            f"after {counted(result.steps, 'step')} on {counted(len(few), 'row')} the loss is {result.train_loss:.3f} ({method.unit})",
            allowed=f"below {bound:.3g}",
            remedy="look at `tunesmith data mask`, then at learning_rate and adapter.targets",
        )
    return proof


def _by_heart(plan: Plan, few: list[Item], base: Path) -> Plan:
    """The plan with one batch of all rows, many times, at the rate of learning tokens: the rate of comparing answers would take hundreds
    of steps."""
    changes: dict[str, Any] = {"batch_size": len(few), "metric_rows": 0, **_BY_HEART}
    if plan.learning_rate == "auto":
        changes["learning_rate"] = token_rate(gather(plan, few, base), plan.adapter.kind == "lora")[0]
    return msgspec.structs.replace(plan, **changes)


def _learned(method: Method, first_loss: float) -> float:
    """The loss below which the rows are known by heart. A pipeline that can learn drives the loss of a few rows far below a guess."""
    return method.learned_nats if method.learned_nats is not None else max(_NO_LOSS, first_loss / 2)
