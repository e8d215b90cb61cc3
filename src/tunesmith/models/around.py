"""Models around another model, with its name and digest: paced, counted. What is put around changes no answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.core.types import Answer, Prompt, Sampling
from tunesmith.models.base import Model, OnAnswer


@dataclass
class Around:
    """A model behind which another answers, with the other's name and digest."""

    model: Model

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def digest(self) -> str:
        """The model's."""
        return self.model.digest


@dataclass
class Paced(Around):
    """A model that is asked at most `per_minute` questions a minute: `batch` at a time, then a pause."""

    per_minute: float
    batch: int = 8

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        answers: list[Answer] = []
        for start in range(0, len(prompts), self.batch):
            part, began = prompts[start : start + self.batch], time.monotonic()
            tell = (lambda i, answer, start=start: on_answer(start + i, answer)) if on_answer else None
            answers += self.model.answer(part, sampling, tell)
            if start + self.batch < len(prompts):
                time.sleep(max(0.0, len(part) * 60 / self.per_minute - (time.monotonic() - began)))
        return answers


@dataclass
class Metered(Around):
    """A model whose new answers are counted, so that what this run paid is told apart from what is kept."""

    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        answers = self.model.answer(prompts, sampling, on_answer)
        self.asked += len(answers)
        self.prompt_tokens += sum(answer.prompt_tokens for answer in answers)
        self.completion_tokens += sum(answer.completion_tokens for answer in answers)
        return answers
