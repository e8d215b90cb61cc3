"""What each stage of a project does, by the stage's name; knows nothing about what a stage depends on (`flow/context.py` does)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tunesmith.flow.context import TUNED, ProjectContext
from tunesmith.flow.pipeline import data_stages, tokens_stage
from tunesmith.flow.pipeline.serving_stage import ask
from tunesmith.flow.runner import Output, Step
from tunesmith.flow.temporary_server import Server


def steps_of(context: ProjectContext, server: Server) -> dict[str, Step]:
    """Every stage's step. `server` puts models behind a port; the stage `ask` needs it."""
    from tunesmith.flow.evaluation.findings import regression
    from tunesmith.flow.pipeline.compare_stage import judge
    from tunesmith.flow.pipeline.evaluate_stage import evaluate_baseline, evaluate_tuned
    from tunesmith.flow.pipeline.live_stage import go_live
    from tunesmith.flow.pipeline.report import write_report

    return {
        "collect": partial(data_stages.collect, context),
        "split": partial(data_stages.clean_and_split, context),
        "tokens": partial(_tokens, context),
        **{f"evaluate:{baseline.name}": partial(evaluate_baseline, context, baseline) for baseline in context.project.baselines},
        "train": partial(_train, context),
        f"evaluate:{TUNED}": partial(evaluate_tuned, context),
        "compare": partial(judge, context),
        "regression": partial(regression, context),
        "ask": partial(ask, context, server),
        "live": partial(go_live, context, server),
        "report": partial(write_report, context),
    }


def _tokens(context: ProjectContext, work: Path) -> Output:
    plan, folder = context.project.train, context.runner.folder("split")
    known = context.trained_before() if plan.replay is not None else frozenset()
    return tokens_stage.tokenize(folder, context.base, plan, work, context.progress.say, known)


def _train(context: ProjectContext, work: Path) -> Output:
    from tunesmith.flow.pipeline.training_stage import train_rows

    context.forget_model()  # the answering model's memory is free for training; the next stage loads it again
    return train_rows(context, work)
