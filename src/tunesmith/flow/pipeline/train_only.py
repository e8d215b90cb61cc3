"""Training without the rest of the circle: the data stages, the training stage, and the proof that the pipeline can learn at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import unfinished
from tunesmith.core.errors import TrainingError, UsageError
from tunesmith.core.progress import Progress
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.pipeline.data_stages import load_rendered
from tunesmith.flow.pipeline.run import Made, begin, opened
from tunesmith.flow.project import Project
from tunesmith.flow.runner import only_one
from tunesmith.store.runs import Runs

# A pipeline that can learn drives the loss of a few rows far below a guess over the vocabulary; above this it cannot.
LEARNED_NATS = 0.1
# What of a plan an overfit does not take over: nothing is held out, and the last weights are the ones that count.
_BY_HEART = {"epochs": 40, "warmup_ratio": 0.05, "eval_every": None, "checkpoint_every": None, "keep": "last", "patience": None}


def train_project(
    project: Project, folder: Path, progress: Progress, *, fresh: bool = False, made: Made = Made(command="tunesmith train")
) -> dict[str, Any]:
    """Prepare the data and train; an interrupted run continues. `fresh` forgets an unfinished or finished run first."""
    with opened(project, folder, progress) as context, only_one(context.store.folder):
        if fresh:
            _forget(context)
        run = begin(context, made, ("collect", "split", "tokens", "train"))
        done = context.runner.run("train")
        Runs(context.store).finish(run.id)
        return {**done.output, "cached": done.cached, "adapter": str(context.adapter)}


def overfit(project: Project, folder: Path, progress: Progress, rows: int) -> dict[str, Any]:
    """Train on `rows` rows until they are known by heart: proves that data, mask, adapter and optimiser work together.

    Raises TrainingError when the loss stays above `LEARNED_NATS` nats per trained token, UsageError for grpo, which has no such loss.
    """
    from tunesmith.train.loop import train

    if project.train.method == "grpo":
        raise UsageError("grpo learns no rows by heart", where="--overfit", remedy="--train.method sft proves the pipeline")

    with opened(project, folder, progress) as context, only_one(context.store.folder):
        context.runner.run("tokens")
        few = load_rendered(context.runner.folder("tokens") / "train.npz")[:rows]
        plan = msgspec.structs.replace(project.train, batch_size=len(few), metric_rows=0, **_BY_HEART)
        work = context.store.folder / "overfit"
        shutil.rmtree(work, ignore_errors=True)
        result = train(plan, few, base=context.base, out=work, on_event=lambda event: _tell(progress, event))
        shutil.rmtree(work, ignore_errors=True)
    found = {"rows": len(few), "steps": result.steps, "train_loss": result.train_loss}
    if result.train_loss > LEARNED_NATS:
        raise TrainingError(
            f"after {result.steps} steps on {len(few)} rows the loss is {result.train_loss:.3f} nats per trained token",
            allowed=f"below {LEARNED_NATS}",
            remedy="look at `tunesmith data mask`, then at learning_rate and adapter.targets",
        )
    return found


def _tell(progress: Progress, event: dict[str, Any]) -> None:
    if event["event"] == "step":
        progress.bar("overfit", event["step"], event["total_steps"])


def _forget(context: ProjectContext) -> None:
    folder = context.runner.folder("train")
    for place in (folder, unfinished(folder)):
        shutil.rmtree(place, ignore_errors=True)
