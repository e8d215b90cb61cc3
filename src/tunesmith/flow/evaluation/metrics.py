"""How rows are rated: the metric of a name and its options. Asks no model but a judge's, reads no rows (`flow/rows.py` does)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import UsageError
from tunesmith.core.types import Answer, Example, Prompt, Sampling
from tunesmith.evaluate.metrics import Measured, Metric, metric

if TYPE_CHECKING:
    from tunesmith.models.resolve import Models


def build(name: str, options: Mapping[str, Any], models: Models | None = None, cache: Path | None = None) -> Metric:
    """The metric of a name and its options: a registered one, `module:function`, promptfoo's, a task's of lm-evaluation-harness, one of
    OpenAI's graders, or a rubric.

    Without `models` a grader or rubric that asks one only reads scores that are there.
    """
    if name == "promptfoo":
        from tunesmith.evaluate.importers import promptfoo_metric

        return promptfoo_metric()
    if name == "lm_eval":
        from tunesmith.evaluate.harness import harness_metric

        return harness_metric(str(options["task"]), str(options["folder"]) or None)
    if "grader" in options:
        return _graded(name, options["grader"], models)
    if "judge" in options:
        return _judged(name, options, models, cache)
    return metric(name, **options)


def _judged(name: str, options: Mapping[str, Any], models: Models | None, cache: Path | None) -> Metric:
    from tunesmith.evaluate.judge import rubric

    if models is None or cache is None:
        return Metric(name=name, rate=lambda *_: None, low=1, high=5)
    return rubric(models.resolve(str(options["judge"])), str(options["criterion"]), cache=cache, name=name)


def _graded(name: str, tree: Any, models: Models | None) -> Metric:
    from tunesmith.evaluate import graders

    grader = graders.parse(tree, python=True)

    def ask(model: str, prompt: Prompt, sampling: Sampling) -> Answer:
        if models is None:
            raise UsageError(f"grader '{name}' asks '{model}', and no models are at hand")
        return models.resolve(model).answer([prompt], sampling)[0]

    def rate(example: Example, answer: Answer) -> Measured:
        item = example.meta.get("item") or {"prompt": example.prompt[-1].text, "reference": example.answer}
        grade = graders.run(grader, answer.text, item, ask)
        return Measured(None if grade.errors else grade.reward, detail=", ".join(grade.errors))

    return Metric(name=name, rate=rate)
