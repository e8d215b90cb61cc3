"""The course of a run, the same for every method: its steps and their rate, its checkpoints and the way back to them, what it keeps.

Knows nothing about losses, rewards or what an item means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from tunesmith.core.atomic import write_atomic
from tunesmith.core.chat import Rendered
from tunesmith.train import checkpoint
from tunesmith.train.adapters import groups, leaves_the_base, load_base, prepare
from tunesmith.train.artifact import SelfTest, save_artifact, self_test
from tunesmith.train.checkpoint import TrainingState
from tunesmith.train.devices import untried
from tunesmith.train.microbatch import Lanes, StepItems, gradients, row_logps
from tunesmith.train.objectives import Objective, Sums
from tunesmith.train.packing import epoch_order
from tunesmith.train.plan import ResolvedPlan
from tunesmith.train.recovery import falls, rate_factor, write_checkpoint
from tunesmith.train.run import Paused, RunFolder
from tunesmith.train.side_by_side import StepRequest, shared_base

ROUTE = "route.txt"
FEW, LONG = 4, 512  # rows on which an artifact tests itself, and how many tokens they may have where there are shorter ones


def rate_at(step: int, total: int, plan: ResolvedPlan) -> float:
    """Share of the learning rate at step 1…total: linear warm-up, then the schedule down to 0 after the last step."""
    warmup = math.ceil(plan.warmup_ratio * total)
    if step <= warmup:
        return step / warmup
    done = (step - 1 - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[plan.schedule]


def kept_route(out: Path) -> str | None:
    """The name of the route on which the run in a folder began."""
    return (out / ROUTE).read_text("utf-8") if (out / ROUTE).is_file() else None


class Trainer:
    """One run on its way: the model, its optimiser, and `total` steps over `count` items an epoch."""

    def __init__(self, run: RunFolder, base: Path, count: int, probe: Sequence[Rendered] = ()) -> None:
        self.run, self.base, self.count, self.plan = run, base, count, run.manifest.resolved
        self.shared = shared_base() if leaves_the_base(self.plan) else None
        load = load_base if self.shared is None else self.shared.model
        self.trainable = prepare(base, self.plan, probe, route=kept_route(run.out), load=load)
        write_atomic(run.out / ROUTE, self.trainable.route.name)  # a run that continues computes as it began
        self.parameters = list(self.trainable.parameters().values())
        self.optimizer = torch.optim.AdamW(groups(self.trainable, self.plan), fused=True)
        self.per_epoch = math.ceil(count / self.plan.batch_size)
        self.total = self.per_epoch * self.plan.epochs
        self.fallen = falls(run.out)

    def begin(self, validation_rows: int) -> TrainingState:
        """Go back to the newest sound checkpoint and report the start; the state there, with step 0 where there was none."""
        run, plan, state = self.run, self.plan, TrainingState(step=0, identity=self.run.identity)
        last = checkpoint.newest(run.out, run.identity)
        if last is not None:
            checkpoint.load(last[0], self.trainable, self.optimizer)
            state = last[1]
            checkpoint.prune(run.out, keep=plan.keep_checkpoints, best=state.best_step, epoch_steps=self.per_epoch)
        run.rewind(state.step if last is not None else -1)
        run.emit(
            "start",
            step=state.step,
            total_steps=self.total,
            rows=self.count,
            validation_rows=validation_rows,
            trainable_parameters=self.trainable_parameters,
            resumed=last is not None,
            plan=msgspec.to_builtins(plan),
            reasons=msgspec.to_builtins(run.manifest.reasons),
            route=self.trainable.route.name,
            route_why=self.trainable.choice.why(),
            reach=self.trainable.reach.share,
            unreached=self.trainable.reach.sentence(),
            untried=untried(plan.device),
        )
        self.trainable.model.train()
        return state

    @property
    def trainable_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def place(self, step: int) -> dict[str, Any]:
        """What every event says of where the run stands."""
        return {"step": step, "total_steps": self.total, "epoch": step / self.per_epoch}

    def order(self, step: int) -> npt.NDArray[np.int64]:
        """The numbers of the items that a step takes."""
        epoch, offset = divmod(step - 1, self.per_epoch)
        size = self.plan.batch_size
        return epoch_order(self.count, seed=self.plan.seed, epoch=epoch)[offset * size : (offset + 1) * size]

    def begins_epoch(self, step: int) -> bool:
        """Whether a step is the first of its epoch."""
        return (step - 1) % self.per_epoch == 0

    def gradients(self, objective: Objective, batch: StepItems, side: Lanes, step: int) -> Sums:
        """The gradient of a step's loss in `.grad` of the parameters; the sums. Together with the trainings beside it, where there are any.
        Dropout is a function of seed, step and pack, so that a resumed run repeats it."""
        seed = (self.plan.seed * 1_000_003 + step) * 1009
        if self.shared is None:
            return gradients(self.trainable, objective, batch, self.plan, side, seed=seed)
        return self.shared.gradients(StepRequest(self.trainable, objective, batch, self.plan, side, seed))

    def clip(self) -> float:
        """Hold the gradients to the plan's norm; what the norm was."""
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm))

    def rate(self, step: int) -> float:
        """The learning rate of a step (of B too, unless LoRA+ gives it its own)."""
        return self.plan.learning_rate * self._scale(step)

    def _scale(self, step: int) -> float:
        return rate_at(step, self.total, self.plan) * rate_factor(self.fallen, step)

    def update(self, step: int) -> None:
        """Change the weights by the gradients, at the step's rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_rate"] * self._scale(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def looks(self, step: int) -> bool:
        """Whether the plan evaluates after a step."""
        return step == self.total or step % (self.plan.eval_every or self.per_epoch) == 0

    def over(self, state: TrainingState) -> bool:
        """Whether the last step was done, or validation has not improved for as long as the plan waits."""
        return state.step >= self.total or (self.plan.patience is not None and state.stale >= self.plan.patience)

    def keep(self, state: TrainingState, should_stop: Callable[[], bool]) -> None:
        """End a step: write a checkpoint where the plan has one. Raises Paused, after one, when the run is asked to stop."""
        step, over = state.step, self.over(state)
        pause = not over and should_stop()
        due = over or step % (self.plan.checkpoint_every or self.per_epoch) == 0 or step % self.per_epoch == 0 or state.best_step == step
        if due or pause:
            saved = msgspec.structs.replace(state, planned=due)
            write_checkpoint(self.run, self.base, self.trainable, self.optimizer, saved, self.per_epoch)
        if pause:
            self.run.emit("paused", step=step, total_steps=self.total)
            raise Paused(step)

    def choose(self, state: TrainingState) -> int:
        """The step whose weights are to be kept, with those weights in the model: the last, or the best where the plan says so."""
        if state.step < self.total:
            self.run.emit("early_stopped", **self.place(state.step), best_step=state.best_step, best_loss=state.best_loss)
        if self.plan.keep != "best" and self.plan.patience is None:
            return state.step
        best = checkpoint.folder_of(self.run.out, state.best_step or 0)
        if state.best_step in (None, state.step) or checkpoint.sound(best) is None:
            return state.step
        checkpoint.load_weights(self.trainable, best)
        return state.best_step or 0

    def save(self, state: TrainingState, rows: Sequence[Rendered], side: Lanes) -> tuple[Path, SelfTest]:
        """Save the model and let the artifact test itself on a few unlike rows."""
        folder = save_artifact(self.run.out, self.base, self.trainable)
        few = unlike(rows)
        totals = row_logps(self.trainable, few, self.plan, side)
        losses = [-float(total) / int(row.mask[1:].astype(bool).sum()) for total, row in zip(totals, few, strict=True)]
        test = self_test(folder, self.base, self.trainable, few, losses, self.plan)
        self.run.emit("saved", step=state.step, folder=str(folder), **msgspec.to_builtins(test))
        return folder, test


def unlike(rows: Sequence[Rendered]) -> list[Rendered]:
    """The shortest row, the longest of those that are not long, and two between them."""
    known = sorted(rows, key=lambda row: (len(row.ids), row.example_id))
    short = [row for row in known if len(row.ids) <= LONG] or known[:1]
    last = len(short) - 1
    return [short[i] for i in sorted({last * k // (FEW - 1) for k in range(FEW)})]
