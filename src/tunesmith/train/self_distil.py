"""Self-distillation: the model in training draws answers, and is drawn, at each of their tokens, to what it said as the run began had the
row's answer stood in its prompt (arXiv 2601.19897). Knows nothing about steps, schedules or how a demonstration is worded.

The one that teaches stays as it began. The paper lets it follow the student slowly; kept still it needs nothing in a checkpoint, so that a
run that was killed goes on bit for bit, and it cannot be led astray by what it teaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tunesmith.core.chat import Rendered
from tunesmith.train.adapters import Trainable
from tunesmith.train.distil import chunked_divergence
from tunesmith.train.items import Item
from tunesmith.train.loss import Head
from tunesmith.train.microbatch import Lanes, StepItems, Work, hidden_at, packs_of
from tunesmith.train.objectives import SFT, Step, Sums
from tunesmith.train.packing import Pack
from tunesmith.train.plan import Distillation, ResolvedPlan
from tunesmith.train.rollout import Sampler, Task

LONGER, MORE = 2, 16  # a drawn answer may have so many times the tokens of the row's, and so many more


class SelfDistil(SFT):
    """The mean divergence from `taught`, the teacher's states of each item, over the drawn tokens, in nats a token.

    An item's label is its number in `taught`.
    """

    def __init__(self, options: Distillation, taught: Sequence[Tensor], teacher: Head) -> None:
        self.options, self.taught, self.teacher = options, taught, teacher

    def loss(self, hidden: Tensor, head: Head, packed: Pack, reference: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Sums]:
        """See `Objective.loss`."""
        row, taught = torch.from_numpy(packed.row).to(hidden.device), torch.empty_like(hidden)
        for place, number in enumerate(labels.long().tolist()):
            taught[row == place] = self.taught[number].to(taught)
        loss, each = chunked_divergence(hidden, head, taught, self.teacher, step.scale, self.options)
        return loss, {"loss": float(each.double().sum()), "weight": float(len(each))}


class SelfTeacher:
    """Makes the items of each step. Begin it before a checkpoint is read: it keeps the weights that the run starts from."""

    def __init__(self, trainable: Trainable, base: Path, plan: ResolvedPlan, side: Lanes) -> None:
        self.trainable, self.plan, self.side = trainable, plan, side
        self.sampler = Sampler(trainable, base, plan)
        self.options = Distillation(beta=plan.self_distillation.beta)
        self.start: Mapping[str, Tensor] = {name: p.detach().clone() for name, p in trainable.parameters().items()}

    def step(self, items: Sequence[Item], number: int) -> tuple[SelfDistil, StepItems]:
        """What a step minimises: one drawn answer to each item's prompt, and its loss. Draws follow from the plan's seed and `number`."""
        samples = self.sampler.draw([self._task(item) for item in items], 1, number)
        shown = [_continued(item.rows[1], sample.row) for item, sample in zip(items, samples, strict=True)]
        taught, head = self._taught(shown)
        drawn = [Item((sample.row,), float(i)) for i, sample in enumerate(samples)]
        return SelfDistil(self.options, taught, head), StepItems(drawn, np.zeros((len(drawn), 1), np.float32))

    def _task(self, item: Item) -> Task:
        """The item's prompt, and how long an answer may be: in proportion to the row's own, and within what a row may have."""
        own = item.rows[0]
        start, room = _begin(own), self.plan.max_length - max(map(_begin, item.rows))
        limit = min(LONGER * own.trained + MORE, room)
        return Task(replace(own, ids=own.ids[:start], mask=np.zeros(start, np.uint8)), {}, limit)

    def _taught(self, rows: Sequence[Rendered]) -> tuple[list[Tensor], Head]:
        """The states that predict each row's answer, of the model as it began; and its head."""
        trainable = self.trainable

        def work(_: int, piece: Work) -> Tensor:
            with torch.no_grad():
                return hidden_at(trainable, piece.pack)

        states: dict[int, Tensor] = {}
        packs = packs_of([(row,) for row in rows], self.plan, budget=2 * self.plan.micro_batch_tokens, shares=trainable.route.tree)
        with self._as_it_began():
            for piece, hidden in zip(packs, self.side.map(work, packs, parallel=trainable.parallel), strict=True):
                row = torch.from_numpy(piece.pack.row).to(hidden.device)
                states |= {number: hidden[row == place] for place, number in enumerate(piece.items)}
            head = trainable.head
            if head.weight is not None:
                learns = head.weight.requires_grad
                head = head._replace(weight=head.weight.detach().clone() if learns else head.weight)
        return [states[i] for i in range(len(rows))], head

    @contextmanager
    def _as_it_began(self) -> Iterator[None]:
        """The model with the weights of the run's start, no dropout."""
        model, parameters = self.trainable.model, self.trainable.parameters()
        now, was = {name: p.detach().clone() for name, p in parameters.items()}, model.training
        self._put(self.start)
        model.eval()
        try:
            yield
        finally:
            self._put(now)
            model.train(was)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.trainable.parameters().items():
                p.copy_(weights[name])


def _begin(row: Rendered) -> int:
    """Where the answer of a row begins."""
    return int(np.flatnonzero(row.mask)[0])


def _continued(shown: Rendered, drawn: Rendered) -> Rendered:
    """The prompt that shows an answer, with the drawn answer behind it."""
    prompt, answer = shown.ids[: _begin(shown)], drawn.ids[_begin(drawn) :]
    mask = np.concatenate([np.zeros(len(prompt), np.uint8), np.ones(len(answer), np.uint8)])
    return replace(shown, ids=np.concatenate([prompt, answer]), mask=mask)
