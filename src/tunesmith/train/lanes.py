"""Packs → losses and gradients, several packs side by side; knows nothing about steps, schedules or what the rows mean.

Cores that share one matrix product wait for each other at every operation; cores that compute a pack each do not. The gradients are
added in the packs' order, so the sum is the same whichever lane was first, and however many cores the machine has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from tunesmith.core.chat import Rendered
from tunesmith.models.layers import dropout_seed
from tunesmith.train.adapters import Trainable
from tunesmith.train.loss import chunked_nll
from tunesmith.train.packing import Pack, micro_batches, pack
from tunesmith.train.plan import ResolvedPlan

T = TypeVar("T")


class Sums(NamedTuple):
    """What packs add up to: Σ nll in nats, how many targets were the likeliest token, targets, tokens computed."""

    nll: float = 0.0
    hits: int = 0
    targets: int = 0
    computed: int = 0

    def plus(self, other: Sums) -> Sums:
        """The sums of both."""
        return Sums(self.nll + other.nll, self.hits + other.hits, self.targets + other.targets, self.computed + other.computed)


@dataclass(frozen=True, slots=True)
class Lanes:
    """A pool of threads, each with its own cores. Open one with `lanes(plan)`."""

    pool: ThreadPoolExecutor

    def map(self, work: Callable[[int, Pack], T], packs: Sequence[Pack]) -> list[T]:
        """`work(number, pack)` for every pack; results in the packs' order."""
        return list(self.pool.map(work, range(len(packs)), packs))


@contextmanager
def lanes(plan: ResolvedPlan) -> Iterator[Lanes]:
    """The plan's lanes, each with threads / lanes cores; torch's own setting is put back at the end."""
    before = torch.get_num_threads()
    each = max(1, plan.threads // plan.lanes)
    torch.set_num_threads(each)
    try:
        with ThreadPoolExecutor(plan.lanes, "lane", initializer=torch.set_num_threads, initargs=(each,)) as pool:
            yield Lanes(pool)
    finally:
        torch.set_num_threads(before)


def packs_of(rows: Sequence[Rendered], plan: ResolvedPlan, *, budget: int | None = None) -> list[Pack]:
    """The rows as packs: as many as the lanes and the memory ask for; one row a pack when the plan does not pack."""
    if not plan.pack:
        return [pack([row], share=False) for row in rows]
    groups = micro_batches(rows, budget or plan.micro_batch_tokens, lanes=plan.lanes, share=plan.share_prefix)
    return [pack([rows[i] for i in group], share=plan.share_prefix) for group in groups]


def pack_loss(trainable: Trainable, one: Pack, weight: float) -> tuple[Tensor, Sums]:
    """Forward one pack: the differentiable Σ nll · weight, and its sums."""
    ids, positions, at, targets = (torch.from_numpy(a).to(trainable.device) for a in (one.ids, one.positions, one.at, one.targets))
    hidden = trainable.hidden(ids, positions, spans=one.spans, longest=one.longest)
    coefficients = torch.full((len(at),), weight, device=trainable.device)
    loss, nll, hit = chunked_nll(hidden[at], trainable.head.weight, targets, coefficients)
    return loss, Sums(float(nll.double().sum()), int(hit.sum()), len(at), len(ids))


def gradients(trainable: Trainable, packs: Sequence[Pack], lanes: Lanes, *, weight: float, seed: int) -> Sums:
    """Put the gradient of Σ nll · weight over all packs into `.grad` of the trainable parameters; return the sums."""
    parameters = list(trainable.parameters().values())

    def work(number: int, one: Pack) -> tuple[Sums, tuple[Tensor, ...]]:
        with dropout_seed(seed + number):
            loss, sums = pack_loss(trainable, one, weight)
            return sums, torch.autograd.grad(loss, parameters)

    total = Sums()
    for sums, grads in lanes.map(work, packs):
        total = total.plus(sums)
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad if p.grad is None else p.grad.add_(grad)
    return total


def evaluate(trainable: Trainable, rows: Sequence[Rendered], plan: ResolvedPlan, lanes: Lanes) -> tuple[float, float]:
    """Mean nats per trained token and token accuracy over the rows; dropout off, no gradients."""

    def work(_: int, one: Pack) -> Sums:
        with torch.no_grad():
            return pack_loss(trainable, one, 0.0)[1]

    trainable.model.eval()
    total = Sums()
    for sums in lanes.map(work, packs_of(rows, plan, budget=2 * plan.micro_batch_tokens)):
        total = total.plus(sums)
    trainable.model.train()
    return total.nll / total.targets, total.hits / total.targets
