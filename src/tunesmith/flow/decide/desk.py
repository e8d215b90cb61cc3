"""The desk of an experiment: its rows, its metric, the bases at work, and whom they are asked by: every answer is kept and never asked for
twice, whatever interrupted the experiment. Knows no arm and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import ConfigError, ContextExceeded
from tunesmith.core.passages import SourceText
from tunesmith.core.text_vectors import TextIndex
from tunesmith.core.types import Answer, Example, Prompt, Sampling, Score, digest
from tunesmith.data.documents.reading import read
from tunesmith.decide.cost import tokens_usd
from tunesmith.decide.plan import Decide
from tunesmith.decide.shots import random_order, spread
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.prompts import asked
from tunesmith.evaluate.run import Answers, Evaluation, ask_all, cache_key, evaluate
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.datasets.tokens import price_of
from tunesmith.flow.decide.budget import Budget
from tunesmith.models.around import Around
from tunesmith.models.base import Model, OnAnswer
from tunesmith.models.encoder import Encoder
from tunesmith.models.resolve import Models, is_remote

Floats = NDArray[np.float64]
Variant = Callable[[Example], Prompt]
WORDS = "words"  # in place of an encoder: likeness by tf-idf
_COVERED = 1_000  # texts of which some are picked that cover them


class Within(Around):
    """A model for prompts of which some may be longer than it reads: those are answered with nothing, as a server would refuse them."""

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        try:
            return self.model.answer(prompts, sampling, on_answer)
        except ContextExceeded:
            if len(prompts) == 1:
                return [Answer(text="", finish_reason="length")]
        half = len(prompts) // 2
        first = self.answer(prompts[:half], sampling, on_answer)
        tell = None if on_answer is None else lambda i, answer: on_answer(half + i, answer)
        return first + self.answer(prompts[half:], sampling, tell)


@dataclass
class Billed(Around):
    """A hosted model whose new answers are paid for out of the budget, at (dollars read, dollars written) for a million tokens."""

    budget: Budget
    price: tuple[float, float]

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`."""
        answers = self.model.answer(prompts, sampling, on_answer)
        read, written = (sum(getattr(answer, key) for answer in answers) for key in ("prompt_tokens", "completion_tokens"))
        self.budget.paid_usd += tokens_usd(read, written, self.price) or 0.0
        return answers


@dataclass
class Asking:
    """What one piece of work asked: the answers' files with their keys, tokens included, so that its cost is known after an
    interruption too."""

    keys: dict[Path, set[str]] = field(default_factory=dict)

    def note(self, cache: Path, keys: Sequence[str]) -> None:
        """Remember that these answers were needed."""
        self.keys.setdefault(cache, set()).update(keys)

    @property
    def count(self) -> int:
        """How many different answers were needed."""
        return sum(len(keys) for keys in self.keys.values())

    def cost(self) -> tuple[float, int, int]:
        """(seconds while the models answered, tokens read, tokens written) of all answers when they were made."""
        seconds, read, written = 0.0, 0, 0
        for cache, keys in self.keys.items():
            kept = Answers(cache)
            answers = [answer for key in keys if (answer := kept.get(key)) is not None]
            seconds += kept.seconds(sorted(keys))
            kept.close()
            read += sum(answer.prompt_tokens for answer in answers)
            written += sum(answer.completion_tokens for answer in answers)
        return seconds, read, written


@dataclass
class Desk:
    """One experiment's rows and models. `folder` is where its results lie; `contexts` has a project for each base, first for its own."""

    plan: Decide
    folder: Path
    contexts: dict[str, ProjectContext]
    budget: Budget
    indexes: dict[str, str] = field(default_factory=dict)  # the digest of each that was made, by what is in it

    @property
    def project(self) -> ProjectContext:
        """The project on its own base."""
        return next(iter(self.contexts.values()))

    @cached_property
    def train(self) -> list[Example]:
        """The training rows."""
        return self.project.questions("train")

    @cached_property
    def validation(self) -> list[Example]:
        """The rows on which every choice is made."""
        return self.project.questions("validation")[: self.plan.validation_rows]

    @cached_property
    def documents(self) -> list[SourceText]:
        """What the documents say. Raises NotFound and DataError for those that cannot be read."""
        plan = self.plan
        return read(plan.documents, self.project.folder, plan.skip).texts if plan.documents else []

    @cached_property
    def metric(self) -> Metric:
        """What decides. Raises ConfigError for a metric that has no best value, or no bounds."""
        metric = self.project.metrics[0]
        if metric.better == "neither" or not np.isfinite([metric.low, metric.high]).all() or metric.rates != "answers":
            raise ConfigError(
                f"{metric.name} cannot decide between arms",
                where="evaluate.metrics",
                allowed="first a metric of answers between two bounds that is better when higher or when lower",
                remedy="tunesmith metrics lists them with their bounds",
            )
        return metric

    def values(self, scores: Sequence[Score]) -> Floats:
        """Scores as numbers between 0 and 1, of which 1 is the best; nan for a missing one."""
        raw = np.array([np.nan if score.value is None else score.value for score in scores], dtype=np.float64)
        share = (raw - self.metric.low) / (self.metric.high - self.metric.low)
        return share if self.metric.better == "higher" else 1.0 - share

    def sampling(self, base: str) -> Sampling:
        """How the answers of a base are drawn, greedily; another model draws as the project's own base."""
        return self.contexts.get(base, self.project).sampling()

    def cache(self, model: Model) -> Path:
        """The file of all answers that a model gave, the same as `tunesmith eval` keeps."""
        return self.project.store.layout.evaluations / "answers" / f"{digest(model.digest)[:16]}.jsonl"

    def answers(self, model: Model, prompts: Sequence[Prompt], sampling: Sampling, asking: Asking, label: str) -> list[Answer]:
        """The answers to these prompts, noted in `asking`."""
        cache = self.cache(model)
        asking.note(cache, [cache_key(model, prompt, sampling) for prompt in prompts])
        return ask_all(Within(model), prompts, sampling, cache, lambda done, total: self.project.progress.bar(label, done, total))

    def scored(self, model: Model, variant: Variant, rows: Sequence[Example], sampling: Sampling, asking: Asking) -> Floats:
        """What the model scores on rows, each between 0 (worst) and 1; a missing score counts as the worst here, where choices are made."""
        answers = self.answers(model, [variant(row) for row in rows], sampling, asking, "choosing")
        return np.nan_to_num(self.values(self.metric.rows(rows, answers)), nan=0.0)

    def quality(self, model: Model, variant: Variant, rows: Sequence[Example], sampling: Sampling, asking: Asking) -> float:
        """The metric's value on rows, between 0 (worst) and 1: pooled where the metric is pooled, else the mean of `scored`."""
        if self.metric.kind == "mean":
            return float(self.scored(model, variant, rows, sampling, asking).mean())
        answers = self.answers(model, [variant(row) for row in rows], sampling, asking, "choosing")
        value = self.metric.value(self.metric.rows(rows, answers))
        share = 0.0 if value is None else (value - self.metric.low) / (self.metric.high - self.metric.low)
        return share if value is None or self.metric.better == "higher" else 1.0 - share

    def evaluation(self, model: Model, variant: Variant, rows: Sequence[Example], sampling: Sampling, out: Path) -> Evaluation:
        """The evaluation of these rows, written into a folder of the experiment."""
        label = f"asking {out.name}"
        return evaluate(
            Within(model),
            rows,
            self.project.metrics,
            sampling=sampling,
            prompt_variant=variant,
            out=self.folder / out,
            cache=self.cache(model),
            on_progress=lambda done, total: self.project.progress.bar(label, done, total),
        )

    def alone(self, model: Model, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
        """The answers to prompts that are asked one by one, each waiting for the one before: times are those of a single request. They are
        kept apart from answers that were given together."""
        cache = self.folder / "alone" / f"{digest(model.digest)[:16]}.jsonl"
        return [ask_all(Within(model), [prompt], sampling, cache)[0] for prompt in prompts]

    @cached_property
    def _index(self) -> Likeness:
        return Likeness([asked(row) for row in self.train], self.project, self.plan.encoder)

    def covering(self, count: int) -> list[int]:
        """So many training rows that cover all of them."""
        return self._index.covering(count)

    def hosted(self, word: str, models: Models) -> Model:
        """The model of a word that names one besides the bases; what a hosted one costs is paid out of the budget."""
        model, listed = models.resolve(word), price_of(word) if is_remote(word) else None
        return model if listed is None else Billed(model, self.budget, (listed.input, listed.output))

    def forget(self, keep: str | None = None) -> None:
        """Let go of the weights of all bases but one."""
        for name, context in self.contexts.items():
            if name != keep:
                context.forget_model()


class Likeness:
    """Which training rows are alike: by the vectors of an encoder of the catalogue, or by their words."""

    def __init__(self, texts: Sequence[str], project: ProjectContext, encoder: str) -> None:
        self._texts = texts
        self._encoder = None if encoder == WORDS else Encoder(project.catalog.encoder(encoder))

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        assert self._encoder is not None
        return self._encoder([self._encoder.ids(text) for text in self._texts])

    def covering(self, count: int) -> list[int]:
        """Numbers of `count` texts that cover the others; of very many, texts of a sample."""
        sample = random_order(len(self._texts))[:_COVERED]
        some = [self._texts[i] for i in sample]
        vectors = self._vectors[sample] if self._encoder is not None else TextIndex(some).similar(some)
        return [sample[i] for i in spread(vectors, count)]
