"""Distillation: the student's distribution over the next token is drawn to a teacher's, at every trained position and over the whole
vocabulary. Knows nothing about steps, schedules or where rows come from.

The teacher reads each pack beside the student, so nothing is stored and nothing is cut to the likeliest tokens; logits of both exist a
chunk at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tunesmith.train.adapters import Trainable, load_base
from tunesmith.train.loss import Head, chunk_of
from tunesmith.train.microbatch import hidden_at
from tunesmith.train.objectives import SFT, Step, Sums
from tunesmith.train.packing import Pack
from tunesmith.train.plan import Distillation, ResolvedAdapter, ResolvedPlan
from tunesmith.train.start_check import choose_route


def divergences(student: Tensor, teacher: Tensor, options: Distillation) -> Tensor:
    """The divergence in nats of each position, [M], from logits [M, V] of student Q and teacher P at the options' temperature.

    beta 0: KL(P‖Q); 1: KL(Q‖P); between: β·KL(P‖M) + (1 − β)·KL(Q‖M) with M = βP + (1 − β)Q (arXiv 2306.13649).
    """
    q, p = (F.log_softmax(logits / options.temperature, -1) for logits in (student, teacher))
    if options.beta == 0:
        return _kl(p, q)
    if options.beta == 1:
        return _kl(q, p)
    beta = torch.tensor(options.beta, device=q.device)
    mean = torch.logaddexp(p + beta.log(), q + (1 - beta).log())
    return beta * _kl(p, mean) + (1 - beta) * _kl(q, mean)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


class _ChunkedDivergence(torch.autograd.Function):
    """Σ scale·divergence, and each position's own; the gradients are computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, head: Head, taught: Tensor, teacher: Head, scale: float, options: Distillation
    ) -> Any:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        size = chunk_of(hidden.shape[1] if weight is None else len(weight))
        each = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight and weight is not None else None
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            wise = teacher.logits(taught[part])
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                rows = None if weight is None else weight.detach().requires_grad_(wants_weight)
                own = head._replace(weight=rows).logits(states)
                vocabulary = min(own.shape[1], wise.shape[1])  # heads are padded differently
                values = divergences(own[:, :vocabulary], wise[:, :vocabulary], options)
                wanted = [states, rows] if wants_weight and rows is not None else [states]
                slopes = torch.autograd.grad(values.sum(), wanted) if wants_hidden else ()
            each[part] = values.detach()
            if grad_hidden is not None:
                grad_hidden[part] = slopes[0] * scale
            if grad_weight is not None:
                grad_weight += slopes[1] * scale
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(each)
        return each.sum() * scale, each

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if slope is None else slope * grad for slope in ctx.saved_tensors]
        return (*scaled, None, None, None, None, None)


def chunked_divergence(
    hidden: Tensor, head: Head, taught: Tensor, teacher: Head, scale: float, options: Distillation
) -> tuple[Tensor, Tensor]:
    """Σ scale·divergence at the states [M, H] of student and teacher, and each position's own, [M], without gradient."""
    with torch.autocast(hidden.device.type, enabled=False):
        both: tuple[Tensor, Tensor] = _ChunkedDivergence.apply(hidden, head.weight, head, taught, teacher, scale, options)
    return both


class Distil(SFT):
    """The mean divergence from the teacher over the trained tokens, in nats a token."""

    def __init__(self, options: Distillation, teacher: Trainable) -> None:
        self.options, self.teacher = options, teacher

    def loss(self, hidden: Tensor, head: Head, packed: Pack, reference: Tensor, labels: Tensor, step: Step) -> tuple[Tensor, Sums]:
        """See `Objective.loss`."""
        with torch.no_grad():
            taught = hidden_at(self.teacher, packed)
        loss, each = chunked_divergence(hidden, head, taught, self.teacher.head, step.scale, self.options)
        return loss, {"loss": float(each.double().sum()), "weight": float(len(each))}


def load_teacher(plan: ResolvedPlan) -> Trainable:
    """The plan's teacher, frozen, in the plan's type. Raises TrainingError when it cannot be read."""
    folder = Path(plan.distillation.teacher or "")
    model = load_base(folder, torch.bfloat16 if plan.dtype == "bfloat16" else torch.float32, plan.device)
    model.eval().requires_grad_(False)
    teacher = Trainable(model, msgspec.structs.replace(plan, adapter=ResolvedAdapter()))
    choose_route(teacher, folder, plan, (), None)
    model.eval()
    return teacher
