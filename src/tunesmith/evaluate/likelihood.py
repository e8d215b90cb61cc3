"""How likely a model finds texts that are there already, in place of answers: for documents, which ask nothing. Knows no metric.

A `Likelihood` is a model whose "answer" to a whole conversation is what that conversation's last turn costs it: nats and tokens. So texts
go the way of answers: asked once, kept, compared row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.core.types import Answer, Prompt, Sampling, digest
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.prompts import PromptVariant
from tunesmith.models.base import Model, OnAnswer

whole = PromptVariant("likelihood", lambda example: Prompt(messages=example.messages, tools=example.tools))


class Scorer(Protocol):
    """A model that says how likely a text is."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def likelihoods(self, prompts: Sequence[Prompt]) -> Iterator[Answer]:
        """For each conversation an answer with {"nats", "tokens"} of its last turn."""
        ...


def by_likelihood(metrics: Sequence[Metric], *, documents: bool) -> bool:
    """Whether the metrics rate the likelihood of texts. Raises ConfigError for a mixture, and for answers that documents do not ask for."""
    texts = [metric.name for metric in metrics if metric.rates == "likelihood"]
    answers = [metric.name for metric in metrics if metric.rates != "likelihood"]
    if texts and answers:
        what = f"{', '.join(texts)} rate the likelihood of a text, {', '.join(answers)} answers"
        raise ConfigError(f"{what}: one evaluation does one of the two", where="metrics", remedy="evaluate them apart")
    if documents and answers:
        what = f"{', '.join(answers)} rates answers, and documents ask nothing"
        raise ConfigError(what, where="metrics", allowed="bits_per_byte, perplexity")
    return bool(texts)


@dataclass
class Likelihood:
    """A model around a scorer. Its answers have no words but one entry of log-probabilities: {"nats", "tokens"}."""

    scorer: Scorer

    @classmethod
    def of(cls, model: Model) -> Likelihood:
        """The likelihood of a model that says one. Raises UsageError for one that only answers."""
        if not hasattr(model, "likelihoods"):
            raise UsageError(f"'{model.name}' does not say how likely a text is", allowed="a local model", remedy="name a local model")
        scorer: Any = model
        return cls(scorer)

    @property
    def name(self) -> str:
        """The model's."""
        return self.scorer.name

    @property
    def digest(self) -> str:
        """The model's, but not that of its answers."""
        return digest("likelihood", self.scorer.digest)

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """What each conversation's last turn costs. `sampling` draws nothing."""
        answers: list[Answer] = []
        for answer in self.scorer.likelihoods(prompts):
            answers.append(answer)
            if on_answer is not None:
                on_answer(len(answers) - 1, answer)
        return answers
