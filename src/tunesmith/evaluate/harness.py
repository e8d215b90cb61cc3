"""Tasks of an installed lm-evaluation-harness as rows and a metric: its prompts, its filters, its own scores; knows nothing about models.

Tasks whose answers are written (`generate_until`) only: the others rate log-probabilities of given texts, which chat endpoints do not tell.
Run those with the harness itself against `tunesmith serve`, and compare its logs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, MissingExtra, NotFound, UsageError, nearest
from tunesmith.core.types import Answer, Example, Message, example_id
from tunesmith.evaluate.metrics import Measured, Metric

_DOC = "lm_eval_doc"


class HarnessTask:
    """One task: its `rows` (at most `limit`, few-shot context included), the tokens an answer may have, and how an answer is rated."""

    def __init__(self, name: str, folder: str | None = None) -> None:
        self.name = name
        self._task = _load(name, folder)
        if self._task.OUTPUT_TYPE != "generate_until":
            raise UsageError(
                f"the task '{name}' rates log-probabilities ({self._task.OUTPUT_TYPE})",
                allowed="tasks whose answers are generated",
                remedy="lm_eval --model local-completions against tunesmith serve, then tunesmith compare its samples_*.jsonl",
            )
        self._task.build_all_requests(rank=0, world_size=1)
        self._requests: Sequence[Any] = self._task.instances

    @property
    def max_tokens(self) -> int:
        """What the task lets an answer have."""
        return int(self._requests[0].args[1].get("max_gen_toks", 256)) if self._requests else 256

    def rows(self) -> list[Example]:
        """The task's questions as it puts them, as one user message each."""
        examples = []
        for at, request in enumerate(self._requests):
            messages = (Message(role="user", content=str(request.args[0])),)
            wanted = str(self._task.doc_to_target(request.doc))
            examples.append(
                Example(
                    id=example_id(messages, (), wanted),
                    messages=messages,
                    reference=wanted,
                    origin=f"lm-eval:{self.name}:{at}",
                    meta={_DOC: at},
                )
            )
        return examples

    def rate(self, example: Example, answer: Answer) -> Measured:
        """The task's first score of the answer, cut where the task stops and passed through its filters. Raises DataError for a score that
        is no number of one row."""
        request = self._requests[int(example.meta[_DOC])]
        request.resps = [_until(answer.text, request.args[1].get("until") or ())]
        for each in self._task._filters:
            each.apply([request])
        filtered = next(iter(request.filtered_resps.values()), request.resps[0])
        scores = self._task.process_results(request.doc, [filtered[0] if isinstance(filtered, list) else filtered])
        name, value = next(iter(scores.items()))
        if not isinstance(value, int | float):
            raise DataError(f"the score '{name}' of '{self.name}' is no number of one row", remedy="run the harness, and compare its logs")
        return Measured(float(value), detail=name)


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text


@lru_cache(maxsize=8)
def harness_task(name: str, folder: str | None = None) -> HarnessTask:
    """The task, read once. Raises NotFound for an unknown name, MissingExtra without the harness."""
    return HarnessTask(name, folder)


def harness_metric(name: str, folder: str | None = None) -> Metric:
    """The task's own rating; without the harness it only reads scores that are there."""
    try:
        return Metric(name="lm_eval", rate=harness_task(name, folder).rate)
    except MissingExtra:
        return Metric(name="lm_eval", rate=lambda *_: None)


def _load(name: str, folder: str | None) -> Any:
    try:
        tasks = importlib.import_module("lm_eval.tasks")
    except ModuleNotFoundError as error:
        raise MissingExtra("lm-evaluation-harness is not installed", remedy="pip install 'lm-eval[api]'") from error
    if folder is not None and not Path(folder).is_dir():
        raise NotFound("no folder of tasks", where=folder)
    manager = tasks.TaskManager(include_path=folder)
    if name not in manager.all_subtasks:
        close = nearest(name, manager.all_subtasks)
        raise NotFound(f"lm-evaluation-harness has no task '{name}'", allowed="lm_eval ls tasks lists them", remedy=close)
    return manager.load_task_or_group(name)[name]
