"""Commands about training alone: estimate it, run it, prove that it can learn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.shared import Json, emit, file_option, told


def estimate(context: typer.Context, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Time, memory and tokens of a run on this machine, and every `auto` as a number with its reason; trains nothing.

    Example: tunesmith estimate --train.adapter.r 64
    """
    from tunesmith.flow.pipeline import dry_run
    from tunesmith.flow.project import load_project

    with told(as_json) as progress:
        found = dry_run(load_project(config, context.args), config.resolve().parent, progress)
    reasons = [f"  {one['field']} = {one['value']}: {one['why']} ({one['source']})" for one in found["reasons"]]
    emit(found, as_json, "\n".join([found["text"], *reasons]))


def train(
    context: typer.Context,
    config: file_option = Path("tunesmith.yaml"),
    overfit: Annotated[int, typer.Option(help="Train on so many rows until they are known by heart, to prove that it can learn.")] = 0,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Continue an interrupted run, or forget it.")] = True,
    as_json: Json = False,
) -> None:
    """Prepare the data and train; interrupted, the next call continues to the same weights.

    Example: tunesmith train --train.epochs 2
    """
    from tunesmith.flow import train_only
    from tunesmith.flow.project import load_project

    project, folder = load_project(config, context.args), config.resolve().parent
    with told(as_json) as progress:
        if overfit:
            found = train_only.overfit(project, folder, progress, overfit)
            emit(found, as_json, f"it can learn: {found['rows']} rows at {found['train_loss']:.4f} nats per trained token")
            return
        found = train_only.train_project(project, folder, progress, fresh=not resume)
    loss = f", validation loss {found['valid_loss']:.3f}" if found["valid_loss"] is not None else ""
    done = "was already done" if found["cached"] else f"{found['steps']} steps in {found['seconds']:.0f} s"
    emit(found, as_json, f"training {done}{loss}\nadapter: {found['adapter']}")
