"""Rows and a grader as what reinforcement trains on: prompts with their items, and rewards. Knows nothing about losses or jobs."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from tunesmith.core.rows import Row
from tunesmith.core.types import Answer, Example, Prompt, Sampling
from tunesmith.evaluate import graders
from tunesmith.models.base import Model
from tunesmith.train.facts import cores
from tunesmith.train.items import Item
from tunesmith.train.rollout import Graded, Reward, Task

# The one error of a grader that is the answer's own: it was to be JSON and is not. That is worth nothing, and is no missing reward.
_OF_THE_ANSWER = "sample_parse_error"


def tasks_of(rows: Sequence[Row], prompts: Sequence[Item]) -> list[Task]:
    """Each prompt with what a grader may read of the row that it is of; rows of one id have their prompts in the same order."""
    known = defaultdict[str, deque[Example]](deque)
    for row in rows:
        if isinstance(row, Example):
            known[row.id].append(row)
    return [Task(prompt.rows[0], item_of(known[prompt.rows[0].example_id].popleft())) for prompt in prompts]


def item_of(row: Example) -> dict[str, Any]:
    """What `{{ item.KEY }}` reads: the row's own keys. `reference` is its reference answer, else the words of its last assistant turn."""
    own: dict[str, Any] = {"group": row.group, "label": row.label, "reference": row.answer or None}
    own |= {"messages": [msgspec.to_builtins(turn) for turn in row.messages]}
    return row.meta | {key: value for key, value in own.items() if value is not None}


def reward_of(grader: Mapping[str, Any], resolve: Callable[[str], Model]) -> Reward:
    """Grades many answers at once. `resolve` gives a grading model by the word that the grader has for it.

    Python graders run in the sandbox; whoever may not use them is refused before. Raises UsageError for a grader that is none.
    """
    parsed, ask = graders.parse(grader, python=True), Asker(resolve)

    def reward(answers: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Graded]:
        with ThreadPoolExecutor(cores()) as pool:
            return [_graded(grade) for grade in pool.map(lambda pair: graders.run(parsed, pair[0], pair[1], ask), answers)]

    return reward


def _graded(grade: graders.Grade) -> Graded:
    wrong = {key: value for key, value in grade.errors.items() if key != _OF_THE_ANSWER}
    return Graded(None, ", ".join(f"{key}: {value}" for key, value in wrong.items())) if wrong else Graded(grade.reward)


class Asker:
    """Asks grading models, each loaded when it is first asked; one answer at a time."""

    def __init__(self, resolve: Callable[[str], Model]) -> None:
        self._resolve, self._models, self._lock = resolve, dict[str, Model](), threading.Lock()

    def __call__(self, name: str, prompt: Prompt, sampling: Sampling) -> Answer:
        with self._lock:
            if name not in self._models:
                self._models[name] = self._resolve(name)
            return self._models[name].answer([prompt], sampling)[0]
