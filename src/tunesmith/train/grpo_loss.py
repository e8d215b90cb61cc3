"""Group-relative policy optimisation as a loss: advantages and three log-probabilities of each token in, a loss out. Knows nothing about
sampling, rewards or steps.

arXiv 2402.03300 (grpo), 2503.14476 (dapo), 2503.20783 (dr_grpo).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tunesmith.core.chat import Rendered
from tunesmith.train.adapters import Trainable
from tunesmith.train.items import Item
from tunesmith.train.loss import Head, chunked_logp
from tunesmith.train.microbatch import Lanes, Reference, Work, hidden_at, packs_of
from tunesmith.train.objectives import Step, Sums
from tunesmith.train.packing import Ints, Pack
from tunesmith.train.plan import ResolvedPlan, ResolvedReinforcement


def places(row: Ints) -> Ints:
    """The number of each target within its row, from the row of each target: [0, 0, 1, 0, 1] gives [0, 1, 0, 1, 2] counted by row."""
    order = np.argsort(row, kind="stable")
    counts = np.bincount(row)
    logps = np.empty(len(row), np.int64)
    logps[order] = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return logps


def bounds(options: ResolvedReinforcement) -> tuple[float, float]:
    """Between what the ratio to the probabilities at sampling counts."""
    return 1 - options.clip, 1 + (options.clip if options.clip_high is None else options.clip_high)


def grpo_losses(logp: Tensor, old: Tensor, base: Tensor, advantage: Tensor, options: ResolvedReinforcement) -> tuple[Tensor, Tensor]:
    """Per token (loss, estimated divergence from the base), all [M].

    −min(ρA, clip(ρ, 1 − ε, 1 + ε′)A) + β(e^d − d − 1) with ρ = p/p_old and d = log p_base − log p; the last term is the unbiased, never
    negative estimate of the Kullback–Leibler divergence.
    """
    ratio = (logp - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(*bounds(options)) * advantage)
    divergence = (base - logp).exp() - (base - logp) - 1
    return options.beta * divergence - gain, divergence


def weight(rows: Sequence[Rendered], options: ResolvedReinforcement) -> float:
    """What the sum over the rows is divided by: rows whose tokens are averaged first (grpo), tokens (dapo), a constant (dr_grpo)."""
    if options.loss == "dapo":
        return float(sum(row.trained for row in rows))
    return float(len(rows) * (options.max_tokens if options.loss == "dr_grpo" else 1))


class GRPO:
    """The loss of a batch of samples. An item's label is its advantage, its `reference` float32 [2, longest answer] the log-probabilities
    at sampling and of the base; `on_policy` says that the model is still the one that sampled.

    `total` is the weight of all samples, also of those that have no gradient and are left out.
    """

    rows, reference, divergence = 1, False, False

    def __init__(self, options: ResolvedReinforcement, total: float, *, on_policy: bool) -> None:
        self.options, self.total, self.on_policy = options, total, on_policy

    def weight(self, items: Sequence[Item]) -> float:
        """See `Objective.weight`."""
        return self.total

    def loss(self, hidden: Tensor, head: Head, packed: Pack, reference: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Sums]:
        """See `Objective.loss`."""
        targets, row, place = (torch.from_numpy(a).to(hidden.device) for a in (packed.targets, packed.row, places(packed.row)))
        logp = chunked_logp(hidden, head.at(self.options.temperature), targets)
        old = logp.detach() if self.on_policy else reference[row, 0, place]
        losses, divergence = grpo_losses(logp, old, reference[row, 1, place], labels[row], self.options)
        if self.options.loss == "grpo":
            losses = losses / torch.bincount(row)[row]
        ratio, (low, high) = (logp.detach() - old).exp(), bounds(self.options)
        sums = {
            "loss": float(losses.detach().double().sum()),
            "tokens": float(len(targets)),
            "entropy": -float(logp.detach().double().sum()),
            "clipped": float(torch.where(labels[row] > 0, ratio > high, ratio < low).sum()),
        }
        return losses.sum() * step.scale, sums | ({"kl": float(divergence.detach().double().sum())} if self.options.beta else {})


def token_logps(trainable: Trainable, items: Sequence[Item], plan: ResolvedPlan, lanes: Lanes) -> Reference:
    """Log p of each answer token at the sampling temperature, dropout off, no gradients: float32 [items, longest answer], then zeros."""

    def work(_: int, piece: Work) -> Tensor:
        with torch.no_grad():
            targets = torch.from_numpy(piece.pack.targets).to(trainable.device)
            return chunked_logp(hidden_at(trainable, piece.pack), trainable.head.at(plan.reinforcement.temperature), targets).cpu()

    was = trainable.model.training
    trainable.model.eval()
    logps = np.zeros((len(items), max(item.rows[0].trained for item in items)), np.float32)
    packs = packs_of([item.rows for item in items], plan, budget=2 * plan.micro_batch_tokens, shares=trainable.route.tree)
    for piece, logp in zip(packs, lanes.map(work, packs, parallel=trainable.parallel), strict=True):
        logps[np.asarray(piece.items)[piece.pack.row], places(piece.pack.row)] = logp.numpy()
    trainable.model.train(was)
    return logps


def known_logps(trainable: Trainable, items: Sequence[Item], plan: ResolvedPlan, lanes: Lanes) -> Reference:
    """What a batch of samples must remember, float32 [items, 2, longest answer]: log p now where several updates will need it, and of the
    base (the adapter switched off) where the divergence counts; zeros where not."""
    options, longest = plan.reinforcement, max(item.rows[0].trained for item in items)
    logps = np.zeros((len(items), 2, longest), np.float32)
    if options.updates > 1:
        logps[:, 0] = token_logps(trainable, items, plan, lanes)
    if options.beta:
        with trainable.model.disable_adapter():
            logps[:, 1] = token_logps(trainable, items, plan, lanes)
    return logps
