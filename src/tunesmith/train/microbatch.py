"""Packs → losses and gradients, several packs side by side; knows nothing about steps, schedules or what the rows mean.

Cores that share one matrix product wait for each other at every operation; cores that compute a pack each do not. The gradients are
added in the packs' order, so the sum is the same whichever lane was first, and however many cores the machine has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.core.chat import Rendered
from tunesmith.core.memory import give_back
from tunesmith.nets.dropout import dropout_seed
from tunesmith.train.adapters import Trainable
from tunesmith.train.items import Item
from tunesmith.train.loss import chunked_logp
from tunesmith.train.objectives import Objective, Step, Sums, row_sums
from tunesmith.train.packing import Pack, micro_batches, pack
from tunesmith.train.plan import ResolvedPlan

T = TypeVar("T")
Reference = npt.NDArray[np.float32]
Gradients = tuple[Sums, tuple[Tensor, ...]]  # of one pack: its sums, and the gradient of every trainable parameter


class Work(NamedTuple):
    """One pack and the numbers of the items whose rows it holds, item after item."""

    pack: Pack
    items: list[int]


@dataclass(frozen=True, slots=True)
class Lanes:
    """A pool of threads, each with its own cores. Open one with `lanes(plan)`."""

    pool: ThreadPoolExecutor
    threads: int

    def map(self, work: Callable[[int, Work], T], packs: Sequence[Work], *, parallel: bool = True) -> list[T]:
        """`work(number, pack)` for every pack; results in the packs' order. Not `parallel`: one after the other, on all cores."""
        if parallel:
            return list(self.pool.map(work, range(len(packs)), packs))
        each = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            return [work(number, item) for number, item in enumerate(packs)]
        finally:
            torch.set_num_threads(each)


@contextmanager
def lanes(plan: ResolvedPlan) -> Iterator[Lanes]:
    """The plan's lanes, each with threads / lanes cores; torch's own setting is put back at the end."""
    before = torch.get_num_threads()
    each = max(1, plan.threads // plan.lanes)
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(plan.lanes, "lane", initializer=torch.set_num_threads, initargs=(each,)) as pool:
            yield Lanes(pool, plan.threads)
    finally:
        torch.set_num_threads(before)


def packs_of(items: Sequence[Sequence[Rendered]], plan: ResolvedPlan, *, budget: int | None = None, shares: bool = True) -> list[Work]:
    """The items' rows as packs: as many as the lanes and the memory ask for; one item a pack when the plan does not pack.

    `shares` says whether the model's route can lay down once what rows have in common.
    """
    share = plan.pack and plan.share_prefix and shares
    if plan.pack:
        groups = micro_batches(items, budget or plan.micro_batch_tokens, lanes=plan.lanes, share=share)
    else:
        groups = [[i] for i in range(len(items))]
    return [Work(pack([row for i in group for row in items[i]], share=share), group) for group in groups]


def hidden_at(trainable: Trainable, packed: Pack) -> Tensor:
    """Forward one pack: the states [M, H] that predict its targets (on the plain route, logits [M, V])."""
    return trainable.states(packed)


def row_logps(trainable: Trainable, rows: Sequence[Rendered], plan: ResolvedPlan, lanes: Lanes) -> Reference:
    """Σ log p of each row's trained tokens, dropout off, no gradients: float32 [rows]."""

    def work(_: int, piece: Work) -> Tensor:
        with torch.no_grad():
            targets = torch.from_numpy(piece.pack.targets).to(trainable.device)
            logp = chunked_logp(hidden_at(trainable, piece.pack), trainable.head, targets)
            return row_sums(logp, piece.pack, len(piece.items))[0].cpu()

    was = trainable.model.training
    trainable.model.eval()
    totals = np.empty(len(rows), np.float32)
    packs = packs_of([(row,) for row in rows], plan, budget=2 * plan.micro_batch_tokens, shares=trainable.route.tree)
    for piece, total in zip(packs, lanes.map(work, packs, parallel=trainable.parallel), strict=True):
        totals[piece.items] = total.numpy()
    trainable.model.train(was)
    return totals


@dataclass(frozen=True, slots=True)
class StepItems:
    """The items of one step or evaluation, with the starting model's log-probabilities float32 [items, rows] (KTO: mismatched last)."""

    items: Sequence[Item]
    reference: Reference

    def step(self, trainable: Trainable, objective: Objective, plan: ResolvedPlan, lanes: Lanes) -> Step:
        """The scale of the loss, and KTO's divergence: the mean log-ratio of the mismatched rows, at least 0."""
        scale = 1.0 / objective.weight(self.items)
        if not objective.divergence:
            return Step(scale)
        rows = [item.mismatched for item in self.items if item.mismatched is not None]
        policy = row_logps(trainable, rows, plan, lanes)
        return Step(scale, max(0.0, float((policy - self.reference[:, -1]).mean())))

    def loss(
        self, trainable: Trainable, objective: Objective, piece: Work, step: Step, *, states: Tensor | None = None
    ) -> tuple[Tensor, Sums]:
        """The scaled loss of one pack and its sums; `states` at its targets where they were computed already."""
        device = trainable.device
        reference = torch.from_numpy(self.reference[piece.items]).to(device)
        labels = torch.tensor([self.items[i].label for i in piece.items], device=device)
        states = hidden_at(trainable, piece.pack) if states is None else states
        loss, sums = objective.loss(states, trainable.head, piece.pack, reference, labels, step)
        if trainable.balance is not None:  # a row at a time, so that packing changes nothing; the mean over the rows of the step
            loss = loss + trainable.balance / sum(len(item.rows) for item in self.items)
            sums |= {"balance": float(trainable.balance.detach()), "balanced": float(len(piece.pack.rows))}
        return loss, sums | {"computed": float(len(piece.pack.ids)), "positions": float(len(piece.pack.at))}


def _add(total: Sums, sums: Sums) -> Sums:
    return {key: total.get(key, 0.0) + value for key, value in sums.items()}


def gradients(trainable: Trainable, objective: Objective, batch: StepItems, plan: ResolvedPlan, lanes: Lanes, *, seed: int) -> Sums:
    """Put the gradient of the batch's loss into `.grad` of the trainable parameters; return the sums. Dropout follows `seed`."""
    parameters = list(trainable.parameters().values())
    step = batch.step(trainable, objective, plan, lanes)

    def work(number: int, piece: Work) -> Gradients:
        with dropout_seed(seed + number):
            loss, sums = batch.loss(trainable, objective, piece, step)
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)  # rows of text reach no expert that no token chose
            return sums, tuple(torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, grads, strict=True))

    packs = packs_of([item.rows for item in batch.items], plan, shares=trainable.route.tree)
    return collected(trainable, lanes.map(work, packs, parallel=trainable.parallel))


def collected(trainable: Trainable, packs: Iterable[Gradients]) -> Sums:
    """Put the gradients of a step's packs, in their order, into `.grad` of the trainable parameters; the sums of all of them."""
    total, parameters = Sums(), list(trainable.parameters().values())
    for sums, grads in packs:
        total = _add(total, sums)
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad if p.grad is None else p.grad.add_(grad)
    return total


def evaluate(trainable: Trainable, objective: Objective, batch: StepItems, plan: ResolvedPlan, lanes: Lanes) -> Sums:
    """The sums of the batch with dropout off and no gradients (see `objectives.report`)."""
    trainable.model.eval()
    step = batch.step(trainable, objective, plan, lanes)

    def work(_: int, piece: Work) -> Sums:
        with torch.no_grad():
            return batch.loss(trainable, objective, piece, step)[1]

    total: Sums = {}
    packs = packs_of([item.rows for item in batch.items], plan, budget=2 * plan.micro_batch_tokens, shares=trainable.route.tree)
    for sums in lanes.map(work, packs, parallel=trainable.parallel):
        total = _add(total, sums)
    trainable.model.train()
    give_back()
    return total
