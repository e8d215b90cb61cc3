"""The evaluation stages: a model is asked the held-out rows and its answers are rated. Knows no formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.types import Example, digest
from tunesmith.evaluate import prompts
from tunesmith.evaluate.likelihood import Likelihood, by_likelihood, whole
from tunesmith.evaluate.openings import open_sealed
from tunesmith.evaluate.run import Evaluation, evaluate
from tunesmith.flow.context import TUNED, ProjectContext
from tunesmith.flow.project import Baseline
from tunesmith.flow.runner import Output


def evaluate_baseline(context: ProjectContext, baseline: Baseline, work: Path) -> Output:
    """The base as it is, with solved rows before each question, or under another instruction."""
    if baseline.shots:
        variant = prompts.few_shot(context.questions("train"), baseline.shots, baseline.by, seed=context.project.train.seed)
    elif baseline.instruction is not None:
        variant = prompts.instructed(baseline.instruction, baseline.name)
    else:
        variant = prompts.as_given
    return _evaluate(context, context.model, variant, baseline.name, work)


def evaluate_tuned(context: ProjectContext, work: Path) -> Output:
    """The trained model, asked the rows as they are."""
    return _evaluate(context, context.tuned_model(), prompts.as_given, TUNED, work)


def _evaluate(context: ProjectContext, model: Any, variant: Callable[[Example], Any], arm: str, work: Path) -> Output:
    rows = context.questions("test")
    seal = digest([row.id for row in rows])
    open_sealed(context.store.layout.openings, seal, who=f"{context.project.name}: {arm}", why="stage of a run")
    evaluation = rated(context, model, rows, work, variant=variant, label=f"evaluate:{arm}")
    keys = ("model", "variant", "values", "missing", "failed", "prompt_tokens", "completion_tokens", "seconds")
    return {key: getattr(evaluation, key) for key in keys} | {
        "rows": len(rows),
        "precision": model.precision,
        "max_tokens": evaluation.sampling.max_tokens,
    }


def rated(
    context: ProjectContext,
    model: Any,
    rows: Sequence[Example],
    work: Path,
    *,
    variant: Callable[[Example], Any] = prompts.as_given,
    label: str,
) -> Evaluation:
    """These rows asked of a model and rated by the project's metrics; answers that are in `work` already are not asked again."""
    if by_likelihood(context.metrics, documents=context.documents):
        model, variant = Likelihood.of(model), whole
    return evaluate(
        model,
        rows,
        context.metrics,
        sampling=context.sampling(),
        prompt_variant=variant,
        out=work,
        on_progress=lambda done, total: context.progress.bar(label, done, total),
    )
