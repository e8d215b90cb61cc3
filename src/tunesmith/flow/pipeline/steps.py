"""What each stage of a project does, by the stage's name; knows nothing about what a stage depends on (`flow/context.py` does)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tunesmith.data.import_stream import intake
from tunesmith.flow.context import TUNED, ProjectContext
from tunesmith.flow.pipeline import data_stages
from tunesmith.flow.pipeline.serving_stage import Server, ask
from tunesmith.flow.runner import Output, Step


def steps_of(context: ProjectContext, server: Server) -> dict[str, Step]:
    """Every stage's step. `server` puts models behind a port; the stage `ask` needs it."""
    from tunesmith.flow.evaluation.findings import regression
    from tunesmith.flow.pipeline.compare_stage import judge
    from tunesmith.flow.pipeline.evaluate_stage import evaluate_baseline, evaluate_tuned
    from tunesmith.flow.pipeline.report import write_report

    return {
        "collect": partial(_collect, context),
        "split": partial(_split, context),
        "tokens": partial(_tokens, context),
        **{f"evaluate:{baseline.name}": partial(evaluate_baseline, context, baseline) for baseline in context.project.baselines},
        "train": partial(_train, context),
        f"evaluate:{TUNED}": partial(evaluate_tuned, context),
        "compare": partial(judge, context),
        "regression": partial(regression, context),
        "ask": partial(ask, context, server),
        "report": partial(write_report, context),
    }


def _collect(context: ProjectContext, work: Path) -> Output:
    """Every row; those with faults lie in the store's own folder, since a stage that fails leaves no folder to look into."""
    found = intake(
        context.sources,
        work / "rows.parquet",
        work / "ledger.jsonl",
        max_invalid=context.project.max_invalid,
        rejects=context.store.folder / "rejects.jsonl",
    )
    return {"inputs": found.inputs, "invalid": found.invalid, "rows": found.rows, "formats": sorted(set(found.formats.values()))}


def _split(context: ProjectContext, work: Path) -> Output:
    return data_stages.clean_and_split(
        context.runner.folder("collect"), context.project.clean, context.project.split, context.catalog, work
    )


def _tokens(context: ProjectContext, work: Path) -> Output:
    return data_stages.tokenize(context.runner.folder("split"), context.base, context.project.train, work)


def _train(context: ProjectContext, work: Path) -> Output:
    from tunesmith.flow.pipeline.training_stage import train_rows

    context.forget_model()  # the answering model's memory is free for training; the next stage loads it again
    return train_rows(context, work)
