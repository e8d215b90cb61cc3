"""A model in training answers prompts as it stands; answers and rewards become items with advantages. Knows nothing about losses or steps.

Every draw follows from the plan's seed, the step, the prompt and the number of the sample, so a resumed run draws the same answers.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import TrainingError
from tunesmith.core.types import digest
from tunesmith.models.decode_check import DecodeChoice, Way, choose, place
from tunesmith.models.local import row_seed
from tunesmith.models.routed import turn_of
from tunesmith.models.trial import RAISED, shown
from tunesmith.nets.cached_attention import NAME, packed_attention
from tunesmith.nets.decoder import Decoder, Engine
from tunesmith.nets.plain_decoder import PlainDecoder, PlainEngine
from tunesmith.nets.sequences import DecodeRequest, SequenceDecoder
from tunesmith.train.adapters import Trainable
from tunesmith.train.choice import PLAIN
from tunesmith.train.items import Item
from tunesmith.train.plan import ResolvedPlan

_log = logging.getLogger("tunesmith.train")


class Task(NamedTuple):
    """A prompt (its mask is empty), what a grader may read of its row, and how many tokens an answer may have (None: the plan says)."""

    prompt: Rendered
    item: Mapping[str, Any]
    max_tokens: int | None = None


class Graded(NamedTuple):
    """A reward, or None and why there is none: a grader that failed says nothing about the answer."""

    reward: float | None
    why: str = ""


Reward = Callable[[Sequence[tuple[str, Mapping[str, Any]]]], Sequence[Graded]]


class Sample(NamedTuple):
    """An answer to a task: its text, and prompt and answer as a row whose trained tokens are the answer's."""

    task: Task
    row: Rendered
    text: str


class Sampler:
    """Draws answers from the model that is being trained, adapter and all, with the decoders that serve: the fastest that says what
    transformers says."""

    def __init__(self, trainable: Trainable, base: Path, plan: ResolvedPlan) -> None:
        transformers.AttentionInterface.register(NAME, packed_attention)
        self.trainable, self.plan, self.renderer = trainable, plan, Renderer.load(base)
        self.fast = Engine(trainable.causal)
        self.plain = PlainEngine(trainable.causal, self.fast.lock, turn=turn_of(trainable.causal))
        self._training = (trainable.route, str(trainable.causal.config._attn_implementation))
        self.choice = self._chosen(base)

    def _chosen(self, base: Path) -> DecodeChoice:
        """The fastest route. Raises TrainingError where transformers itself cannot read the model."""
        turn, plan = self.plain.turn, self.plan
        ways = [Way("cached", lambda: self._decoder("cached"))]
        if turn is None or plan.max_length <= turn:
            ways.insert(0, Way("batched", lambda: self._decoder("batched")))
        file = place(base, None, self.trainable.causal, digest(plan.adapter, self.trainable.route.name, len(ways)))
        try:
            with self._answering("cached"):
                choice = choose(lambda _: (self.plain, ways), None, file)
        except RAISED as error:
            raise TrainingError(f"transformers itself cannot compute this base: {shown(error)}", where=str(base)) from error
        if choice.route == "reread":
            self.plain.reread.add(None)
        _log.info("answers are drawn %s", choice.why())
        return choice

    def _decoder(self, route: str) -> SequenceDecoder:
        """A fresh decoder of that route, for which the model is made ready."""
        self._lay(route)
        return Decoder(self.fast) if route == "batched" else PlainDecoder(self.plain)

    def _lay(self, route: str | None) -> None:
        """Prepare the model for answers on a route; None: for training."""
        trainable, (own, attention) = self.trainable, self._training
        wanted = own if route in (None, "batched") else PLAIN
        if trainable.route is not wanted:
            trainable.go(wanted)
        if wanted is own:
            trainable.causal.set_attn_implementation(NAME if route == "batched" else attention)

    def draw(self, tasks: Sequence[Task], count: int, step: int) -> list[Sample]:
        """`count` answers to each task, task after task; another `step`, other draws."""
        with self._answering(self.choice.route):
            answers = self._answers(tasks, count, step)
        owners = [task for task in tasks for _ in range(count)]
        return [self._sample(task, ids) for task, ids in zip(owners, answers, strict=True)]

    def _answers(self, tasks: Sequence[Task], count: int, step: int) -> list[list[int]]:
        """The token ids of `count` answers to each task."""
        options, decoder = self.plan.reinforcement, self._decoder(self.choice.route)
        seed, answers = self.plan.seed * 1_000_003 + step, dict[int, list[int]]()
        for task in tasks:
            ids = task.prompt.ids.tolist()
            for choice in range(count):
                request = DecodeRequest(
                    ids=ids,
                    max_tokens=task.max_tokens or options.max_tokens,
                    stop_ids=self.renderer.stop_ids,
                    temperature=options.temperature,
                    seed=row_seed(seed, ids, choice),
                    share=len(ids),
                )
                answers[decoder.add(request)] = []
        while decoder.busy:
            for token in decoder.step():
                answers[token.sequence].append(token.id)
        return list(answers.values())

    def _sample(self, task: Task, token_ids: list[int]) -> Sample:
        prompt, answer = task.prompt.ids, np.array(token_ids, np.int32)
        mask = np.concatenate([np.zeros(len(prompt), np.uint8), np.ones(len(answer), np.uint8)])
        return Sample(task, Rendered(task.prompt.example_id, np.concatenate([prompt, answer]), mask), self.renderer.decode(token_ids))

    @contextmanager
    def _answering(self, route: str) -> Iterator[None]:
        """The model ready for answers on a route, no dropout, all threads at one pass."""
        model, threads = self.trainable.model, torch.get_num_threads()
        was = model.training
        self._lay(route)
        model.eval()
        torch.set_num_threads(self.plan.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            model.train(was)
            self._lay(None)


class Group(NamedTuple):
    """The answers to one prompt that were graded, with their rewards."""

    rows: tuple[Rendered, ...]
    rewards: tuple[float, ...]

    @property
    def degenerate(self) -> bool:
        """Whether the rewards tell no answer from another."""
        return len(set(self.rewards)) < 2


class Rollout(NamedTuple):
    """The graded answers of one step, and why others could not be graded."""

    groups: tuple[Group, ...]
    failures: tuple[str, ...]

    @property
    def rewards(self) -> list[float]:
        """All rewards."""
        return [reward for group in self.groups for reward in group.rewards]

    @property
    def degenerate(self) -> float:
        """The share of prompts whose rewards tell no answer from another."""
        return statistics.fmean(group.degenerate for group in self.groups)

    def means(self) -> dict[str, float]:
        """`failed`, how many answers were not graded; of the others, where there are any, the means of `reward` and `answer_tokens`."""
        rows, means = [row for group in self.groups for row in group.rows], {"failed": float(len(self.failures))}
        if rows:
            means |= {"reward": statistics.fmean(self.rewards), "answer_tokens": statistics.fmean(row.trained for row in rows)}
        return means


def roll_out(sampler: Sampler, reward: Reward, tasks: Sequence[Task], count: int, step: int) -> Rollout:
    """`count` graded answers to each task."""
    samples = sampler.draw(tasks, count, step)
    graded = reward([(sample.text, sample.task.item) for sample in samples])
    groups, failures = [], []
    for first in range(0, len(samples), count):
        pairs = list(zip(samples, graded, strict=True))[first : first + count]
        known = [(sample.row, grade.reward) for sample, grade in pairs if grade.reward is not None]
        groups.append(Group(tuple(row for row, _ in known), tuple(value for _, value in known)))
        failures += [grade.why for _, grade in pairs if grade.reward is None]
    return Rollout(tuple(groups), tuple(failures))


def advantages(rewards: Sequence[float], *, scaled: bool) -> list[float]:
    """How much better each answer of a group is than their mean, over their standard deviation (n − 1) when `scaled`; 0 if all are equal.

    The small constant is TRL's.
    """
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    mean, width = statistics.fmean(rewards), statistics.stdev(rewards) + 1e-4 if scaled else 1.0
    return [(reward - mean) / width for reward in rewards]


def with_advantages(rollout: Rollout, *, scaled: bool) -> list[Item]:
    """Every graded answer as an item whose label is its advantage."""
    return [
        Item((row,), value)
        for group in rollout.groups
        for row, value in zip(group.rows, advantages(group.rewards, scaled=scaled), strict=True)
    ]
