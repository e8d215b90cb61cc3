"""What a word on the command line means as rows to evaluate, and how they are rated; asks no model.

train, validation, test     a part of the project's split; `test` is sealed: each look at it is logged
catalog:NAME                a data set of the catalogue
suite:general               the regression suite: six abilities, each with its own rows and metric
lm-eval:TASK[@FOLDER]       a task of an installed lm-evaluation-harness (from a folder of its task files)
promptfoo:FILE              a promptfoo configuration with its assertions
openai-evals:FILE           a samples file, or an eval object with its graders
anything else               a file, folder, pattern or URL in any format of the data room
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import SourceUnavailable, UsageError
from tunesmith.core.types import Answer, Example, Prompt, Sampling, digest
from tunesmith.evaluate.metrics import Measured, Metric, metric
from tunesmith.flow.evaluation.ask import Ask

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext
    from tunesmith.models.resolve import Models

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """Rows with a name. `clusters`: row → cluster of rows that are not independent; `metrics` what the rows bring (name → options);
    `max_tokens` what their answers need (None: nothing is known)."""

    name: str
    examples: list[Example]
    clusters: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_tokens: int | None = None
    sealed: bool = False

    @property
    def seal(self) -> str:
        """What names the sealed rows in the log of openings; the same for a run of the project and for a single evaluation."""
        return digest([row.id for row in self.examples])


def find(word: str, ask: Ask, models: Models, context: ProjectContext | None) -> list[Data]:
    """The data that the word means; a suite has several parts. Raises UsageError, NotFound or DataError with what is allowed."""
    kind, _, rest = word.partition(":")
    sealed = ask.sealed and word == ask.data
    if word in PARTS:
        return [_part(word, context)]
    if kind == "suite":
        return _suite(rest, ask.limit, models)
    if kind == "lm-eval":
        return [_harness(rest, sealed)]
    if kind == "promptfoo":
        from tunesmith.evaluate.importers import promptfoo

        found = promptfoo(Path(rest))
        return [Data(found.name, found.examples, metrics={"promptfoo": {}}, sealed=sealed)]
    if kind == "openai-evals":
        return [_openai(Path(rest), sealed)]
    path = str(models.catalog.dataset(rest)) if kind == "catalog" else word
    from tunesmith.data.collect import Source, collect

    rows = collect(Source(path=path, format=ask.format, map=ask.map, unique_ids=False)).examples
    # Equal rows have equal ids; a comparison pairs by id, so each is asked and counted once.
    rows = list({row.id: row for row in rows}.values())
    return [Data(word, rows, {row.id: row.group for row in rows if row.group is not None}, sealed=sealed)]


def _part(name: str, context: ProjectContext | None) -> Data:
    if context is None:
        raise UsageError(
            f"'{name}' is a part of a project's split, and there is no project file here",
            allowed="--config FILE, or --data FILE with the rows",
            remedy="tunesmith init",
        )
    if context.runner.peek("split") is None:
        raise UsageError(
            f"the project's '{name}' rows are not prepared", where=str(context.folder), remedy="tunesmith run, or tunesmith run --dry-run"
        )
    rows, clusters = context.rows(name), context.clusters()
    known = context.runner.peek("tokens") is not None
    return Data(
        f"{context.project.name}/{name}",
        rows,
        {row.id: clusters[row.id] for row in rows},
        {one: {} for one in context.project.evaluate.metrics},
        context.sampling().max_tokens if known else None,
        sealed=name == "test",
    )


def _suite(name: str, limit: int | None, models: Models) -> list[Data]:
    from tunesmith.evaluate.regression import GENERAL, fetch_suite, sized

    if name != GENERAL.name:
        raise UsageError(f"no suite '{name}'", allowed=f"suite:{GENERAL.name}")
    suite = sized(GENERAL, limit) if limit else GENERAL
    rows = fetch_suite(suite, models.catalog.folder / "downloads")
    return [
        Data(f"{name}/{ability.name}", rows[ability.name], metrics={ability.metric: ability.options}, max_tokens=ability.max_tokens)
        for ability in suite.abilities
    ]


def _harness(word: str, sealed: bool) -> Data:
    from tunesmith.evaluate.harness import harness_task

    name, _, folder = word.partition("@")
    task = harness_task(name, folder or None)
    return Data(name, task.rows(), metrics={"lm_eval": {"task": name, "folder": folder}}, max_tokens=task.max_tokens, sealed=sealed)


def _openai(path: Path, sealed: bool) -> Data:
    from tunesmith.evaluate.importers import openai_eval, openai_rows

    if path.suffix == ".jsonl":
        try:
            rows = openai_rows(path.read_bytes(), str(path))
        except OSError as error:
            raise SourceUnavailable(f"cannot read: {error.strerror}", where=str(path)) from error
        return Data(path.stem, rows, sealed=sealed)
    found = openai_eval(path)
    graders = {str(one.get("name", f"grader {i}")): {"grader": one} for i, one in enumerate(found.graders)}
    return Data(found.name, found.examples, metrics=graders, sealed=sealed)


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

    def said(model: str, prompt: Prompt, sampling: Sampling) -> Answer:
        if models is None:
            raise UsageError(f"grader '{name}' asks '{model}', and no models are at hand")
        return models.resolve(model).answer([prompt], sampling)[0]

    def rate(example: Example, answer: Answer) -> Measured:
        item = example.meta.get("item") or {"prompt": example.prompt[-1].text, "reference": example.answer}
        grade = graders.run(grader, answer.text, item, said)
        return Measured(None if grade.errors else grade.reward, detail=", ".join(grade.errors))

    return Metric(name=name, rate=rate)
