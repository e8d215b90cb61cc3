"""A model in training answers prompts as it stands; answers and rewards become items with advantages. Knows nothing about losses or steps.

Every draw follows from the plan's seed, the step, the prompt and the number of the sample, so a resumed run draws the same answers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from tunesmith.core.chat import Rendered, Renderer
from tunesmith.models.local import row_seed
from tunesmith.nets.cached_attention import NAME, packed_attention
from tunesmith.nets.decoder import Decoder, Engine, Request
from tunesmith.train.adapters import Trainable
from tunesmith.train.items import Item
from tunesmith.train.plan import ResolvedPlan


class Task(NamedTuple):
    """A prompt (its mask is empty) and what a grader may read of its row."""

    prompt: Rendered
    item: Mapping[str, Any]


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
    """Draws answers from the model that is being trained, adapter and all, with the decoder that serves."""

    def __init__(self, trainable: Trainable, base: Path, plan: ResolvedPlan) -> None:
        transformers.AttentionInterface.register(NAME, packed_attention)
        self.trainable, self.plan, self.renderer = trainable, plan, Renderer.load(base)
        self.engine = Engine(trainable.causal)

    def draw(self, tasks: Sequence[Task], count: int, step: int) -> list[Sample]:
        """`count` answers to each task, task after task; another `step`, other draws."""
        options, decoder = self.plan.reinforcement, Decoder(self.engine)
        seed, said = self.plan.seed * 1_000_003 + step, dict[int, list[int]]()
        for task in tasks:
            ids = task.prompt.ids.tolist()
            for choice in range(count):
                request = Request(
                    ids=ids,
                    max_tokens=options.max_tokens,
                    stop_ids=self.renderer.stop_ids,
                    temperature=options.temperature,
                    seed=row_seed(seed, ids, choice),
                    share=len(ids),
                )
                said[decoder.add(request)] = []
        with self._answering():
            while decoder.busy:
                for token in decoder.step():
                    said[token.sequence].append(token.id)
        owners = [task for task in tasks for _ in range(count)]
        return [self._sample(task, ids) for task, ids in zip(owners, said.values(), strict=True)]

    def _sample(self, task: Task, said: list[int]) -> Sample:
        prompt, answer = task.prompt.ids, np.array(said, np.int32)
        mask = np.concatenate([np.zeros(len(prompt), np.uint8), np.ones(len(answer), np.uint8)])
        return Sample(task, Rendered(task.prompt.example_id, np.concatenate([prompt, answer]), mask), self.renderer.decode(said))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The decoder's attention, no dropout, all threads at one pass."""
        model, causal, threads = self.trainable.model, self.trainable.causal, torch.get_num_threads()
        was = model.training
        before = causal.config._attn_implementation
        causal.set_attn_implementation(NAME)
        model.eval()
        torch.set_num_threads(self.plan.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            model.train(was)
            causal.set_attn_implementation(before)


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
        rows, found = [row for group in self.groups for row in group.rows], {"failed": float(len(self.failures))}
        if rows:
            found |= {"reward": statistics.fmean(self.rewards), "answer_tokens": statistics.fmean(row.trained for row in rows)}
        return found


def roll_out(sampler: Sampler, reward: Reward, tasks: Sequence[Task], count: int, step: int) -> Rollout:
    """`count` graded answers to each task."""
    samples = sampler.draw(tasks, count, step)
    graded = reward([(sample.text, sample.task.item) for sample in samples])
    groups, failures = [], []
    for first in range(0, len(samples), count):
        pairs = list(zip(samples, graded, strict=True))[first : first + count]
        known = [(sample.row, one.reward) for sample, one in pairs if one.reward is not None]
        groups.append(Group(tuple(row for row, _ in known), tuple(value for _, value in known)))
        failures += [one.why for _, one in pairs if one.reward is None]
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
