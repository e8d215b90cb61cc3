"""What a run minimises: from log-probabilities of rows to a loss, one class a method. Knows nothing about models, packs' layout or steps.

A loss is a sum over items times `scale`, which is one over the weight of the whole optimiser step; so packing, lanes and accumulation
change nothing. Log-probabilities are natural, summed over the trained tokens of a row unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tunesmith.train.items import Item
from tunesmith.train.loss import Head, chunked_logp, chunked_nll
from tunesmith.train.packing import Pack
from tunesmith.train.plan import PreferencePlan

Sums = dict[str, float]


class Step(NamedTuple):
    """What a loss may know of its optimiser step: one over its weight, and KTO's estimate of the divergence."""

    scale: float
    divergence: float = 0.0


class Objective(Protocol):
    """What is minimised. `rows` of each item carry the gradient; `reference`: it wants the starting model's log-probabilities;
    `divergence`: it wants the step's estimate of the divergence from them."""

    rows: int
    reference: bool
    divergence: bool

    def weight(self, items: Sequence[Item]) -> float:
        """What the loss of these items is divided by: trained tokens, or items."""
        ...

    def loss(self, hidden: Tensor, head: Head, packed: Pack, reference: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Sums]:
        """hidden [M, H] at the pack's `at`, the head that makes logits of it, reference [items, rows of an item], labels [items];
        returns (scaled loss, sums)."""
        ...


def report(sums: Sums) -> dict[str, float]:
    """Means for people: `loss`, and whichever of the accuracies and margins the method has. KTO's margin is the mean reward of the wanted
    rows less that of the unwanted ones, where there are both."""
    means = {"loss": sums["loss"] / sums["weight"]}
    if sums.get("targets"):
        means["token_accuracy"] = sums["hits"] / sums["targets"]
    if sums.get("pairs"):
        means |= {"reward_accuracy": sums["won"] / sums["pairs"], "reward_margin": sums["margin"] / sums["pairs"]}
    if sums.get("balanced"):
        means["router_loss"] = sums["balance"] / sums["balanced"]
    if sums.get("wanted") and sums.get("unwanted"):
        means["reward_margin"] = sums["wanted_reward"] / sums["wanted"] - sums["unwanted_reward"] / sums["unwanted"]
    return means


def row_sums(logp: Tensor, packed: Pack, rows: int) -> tuple[Tensor, Tensor]:
    """Per row of the pack: Σ log p and the number of trained tokens, float32 [rows]."""
    row = torch.from_numpy(packed.row).to(logp.device)
    total = torch.zeros(rows, device=logp.device).index_add(0, row, logp)
    return total, torch.bincount(row, minlength=rows).to(logp)


class SFT:
    """Mean negative log-likelihood of the trained tokens, in nats a token."""

    rows, reference, divergence = 1, False, False

    def weight(self, items: Sequence[Item]) -> float:
        return float(sum(int(item.rows[0].mask[1:].sum()) for item in items))

    def loss(self, hidden: Tensor, head: Head, packed: Pack, reference: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Sums]:
        targets = torch.from_numpy(packed.targets).to(hidden.device)
        loss, nll, hit = chunked_nll(hidden, head, targets, torch.full((len(targets),), step.scale, device=hidden.device))
        count = float(len(targets))
        return loss, {"loss": float(nll.double().sum()), "weight": count, "targets": count, "hits": float(hit.sum())}


class _Pairs:
    """What DPO and ORPO share: items of two rows, the preferred one first."""

    rows, divergence = 2, False

    def __init__(self, options: PreferencePlan) -> None:
        self.options = options

    def weight(self, items: Sequence[Item]) -> float:
        return float(len(items))

    def logps(self, hidden: Tensor, head: Head, packed: Pack, pairs: int) -> tuple[Tensor, Tensor]:
        """Σ log p and token counts, each [pairs, 2]."""
        targets = torch.from_numpy(packed.targets).to(hidden.device)
        total, count = row_sums(chunked_logp(hidden, head, targets), packed, 2 * pairs)
        return total.view(pairs, 2), count.view(pairs, 2)


def dpo_losses(policy: Tensor, reference: Tensor, counts: Tensor, options: PreferencePlan) -> tuple[Tensor, Tensor]:
    """DPO per pair: (loss, reward margin), each [pairs], from Σ log p of (preferred, other) [pairs, 2].

    sigmoid: −(1 − ε) log σ(βh) − ε log σ(−βh) with h the difference of the log-ratios (arXiv 2305.18290; ε: conservative DPO).
    ipo: (h − 1/(2β))² on log-ratios averaged over tokens (arXiv 2310.12036). `length_normalised` averages them for sigmoid too.
    """
    ratios = policy - reference
    if options.length_normalised or options.loss == "ipo":
        ratios = ratios / counts
    h = ratios[:, 0] - ratios[:, 1]
    if options.loss == "ipo":
        losses = (h - 1 / (2 * options.beta)).square()
    else:
        epsilon = options.label_smoothing
        losses = -(1 - epsilon) * F.logsigmoid(options.beta * h) - epsilon * F.logsigmoid(-options.beta * h)
    return losses, options.beta * h.detach()


def orpo_losses(policy: Tensor, counts: Tensor, options: PreferencePlan) -> tuple[Tensor, Tensor]:
    """ORPO per pair (arXiv 2403.07691): mean NLL of the preferred answer − β · log σ(log odds ratio); (loss, margin), each [pairs]."""
    mean = policy / counts
    odds = mean - torch.log1p(-mean.exp())
    ratio = odds[:, 0] - odds[:, 1]
    return -mean[:, 0] - options.beta * F.logsigmoid(ratio), options.beta * (mean[:, 0] - mean[:, 1]).detach()


def kto_losses(ratios: Tensor, desirable: Tensor, divergence: float, options: PreferencePlan) -> Tensor:
    """KTO per row (arXiv 2402.01306): λ·(1 − σ(±β(log-ratio − divergence))), plus for desirable rows, minus for the others; [rows]."""
    sign = torch.where(desirable, 1.0, -1.0)
    weights = torch.where(desirable, options.desirable_weight, options.undesirable_weight)
    return weights * (1 - torch.sigmoid(options.beta * sign * (ratios - divergence)))


class DPO(_Pairs):
    """Direct preference optimisation and IPO, optionally with an SFT term on the preferred answer and without a reference."""

    reference = True

    def loss(self, hidden: Tensor, head: Head, packed: Pack, reference: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Sums]:
        policy, counts = self.logps(hidden, head, packed, len(labels))
        if self.options.reference_free:
            reference = torch.zeros_like(reference)
        losses, margins = dpo_losses(policy, reference, counts, self.options)
        if self.options.sft_weight:
            losses = losses - self.options.sft_weight * policy[:, 0] / counts[:, 0]
        return losses.sum() * step.scale, _pair_sums(losses, margins)


class ORPO(_Pairs):
    """Odds-ratio preference optimisation: no reference model."""

    reference = False

    def loss(self, hidden: Tensor, head: Head, packed: Pack, reference: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Sums]:
        policy, counts = self.logps(hidden, head, packed, len(labels))
        losses, margins = orpo_losses(policy, counts, self.options)
        return losses.sum() * step.scale, _pair_sums(losses, margins)


def _pair_sums(losses: Tensor, margins: Tensor) -> Sums:
    count = float(len(losses))
    won = float((margins > 0).sum())
    return {"loss": float(losses.detach().double().sum()), "weight": count, "pairs": count, "won": won, "margin": float(margins.sum())}


class KTO:
    """Kahneman–Tversky optimisation: rows that are desirable (label 1) or not (label 0).

    The second row of an item joins its prompt with another item's answer; the step's mean log-ratio of those estimates the divergence.
    """

    rows, reference, divergence = 1, True, True

    def __init__(self, options: PreferencePlan) -> None:
        self.options = options

    def weight(self, items: Sequence[Item]) -> float:
        return float(len(items))

    def loss(self, hidden: Tensor, head: Head, packed: Pack, reference: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Sums]:
        targets = torch.from_numpy(packed.targets).to(hidden.device)
        policy, _ = row_sums(chunked_logp(hidden, head, targets), packed, len(labels))
        ratios, wanted = policy - reference[:, 0], labels > 0.5
        losses = kto_losses(ratios, wanted, step.divergence, self.options)
        rewards = self.options.beta * ratios.detach().double()
        sums = {"loss": float(losses.detach().double().sum()), "weight": float(len(labels))}
        sums |= {"wanted": float(wanted.sum()), "wanted_reward": float(rewards[wanted].sum())}
        return losses.sum() * step.scale, sums | {"unwanted": float((~wanted).sum()), "unwanted_reward": float(rewards[~wanted].sum())}
