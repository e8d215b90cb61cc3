"""What is done when a step goes wrong: fall back to an earlier checkpoint at half the rate. Knows nothing about models or data.

What happened is written to fallen.json before the run goes on, and the rate of every step follows from that file alone; so a run that is
killed while it recovers ends in the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import msgspec
import torch

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import StoreError, TrainingError
from tunesmith.core.types import Record
from tunesmith.train import checkpoint
from tunesmith.train.adapters import Trainable
from tunesmith.train.checkpoint import TrainingState
from tunesmith.train.run import RunFolder

# How many of the last losses a new one is compared with, and how many there must be before it is.
RECENT, SETTLED = 32, 8
# The estimate from n losses is widened by 1 + FEW / n, so that a thousand steps of mere noise rarely hold a spike (see the tests).
FEW = 16


class Fall(Record, frozen=True):
    """One recovery: the step that went wrong, the step whose weights the run went back to (0: the start), why."""

    failed_step: int
    back_to: int
    why: str


class Diverged(Exception):
    """A step went wrong and the plan allows another try."""

    def __init__(self, step: int, why: str) -> None:
        self.step, self.why = step, why
        super().__init__(f"step {step}: {why}")


def falls(out: Path) -> tuple[Fall, ...]:
    """The recoveries of a run so far."""
    path = out / "fallen.json"
    return msgspec.json.decode(path.read_bytes(), type=tuple[Fall, ...]) if path.exists() else ()


def rate_factor(fallen: tuple[Fall, ...], step: int) -> float:
    """What the learning rate of a step is multiplied by: a half for each time that the run went back to before it."""
    return float(0.5 ** sum(fall.back_to < step for fall in fallen))


def judge(run: RunFolder, state: TrainingState, step: int, loss: float, norm: float, fallen: tuple[Fall, ...]) -> None:
    """Raises Diverged for a step whose loss or gradient is not finite or whose loss jumped, TrainingError once no recovery is left.

    A jump without a recovery left is only reported.
    """
    plan = run.manifest.resolved
    finite = math.isfinite(loss) and math.isfinite(norm)
    limit = math.inf if plan.spike is None else spike_limit(state.recent, plan.spike)
    if finite and loss <= limit:
        return
    why = f"loss {loss:.4g} above {limit:.4g}" if finite else f"loss {loss} and gradient norm {norm}"
    if len(fallen) < plan.recoveries:
        raise Diverged(step, why)
    if not finite:
        raise TrainingError(f"{why} at step {step}, after {len(fallen)} recoveries", remedy="a lower learning_rate, or dtype: float32")
    run.emit("spike", step=step, train_loss=loss, limit=limit)


def spike_limit(recent: Sequence[float], deviations: float) -> float:
    """The loss above which a step is a spike: above all of the recent ones, and `deviations` (at least 1 nat) above their median.

    The deviation is robust and a steady fall does not widen it: 1.4826 · the median absolute deviation (Iglewicz and Hoaglin 1993) of
    the differences of neighbours / √2 (von Neumann 1941), which is σ for independent normal noise. Infinite until SETTLED losses are known.
    """
    if len(recent) < SETTLED:
        return math.inf
    steps = [after - before for before, after in pairwise(recent)]
    slope = median(steps)
    deviation = 1.4826 / math.sqrt(2) * median(abs(step - slope) for step in steps)
    return max(*recent, median(recent) + max(1.0, deviations * deviation * (1 + FEW / len(recent))))


def watched(state: TrainingState, loss: float) -> TrainingState:
    """The state with the loss among its recent ones."""
    return msgspec.structs.replace(state, recent=(*state.recent, loss)[-RECENT:])


def fall_back(run: RunFolder, diverged: Diverged) -> None:
    """Go back to the newest sound checkpoint that is older than the update before the failed step, or to the start.

    The loss of a step shows what the update before it did, so a checkpoint written right after that update would only fail again. One
    that only a pause wrote does not count: pausing must not change the result.
    """
    back_to = 0
    for folder in checkpoint.checkpoints(run.out):
        state = checkpoint.sound(folder)
        if state is not None and state.planned and state.identity == run.identity and state.step < diverged.step - 1:
            back_to = state.step
            break
    checkpoint.discard_after(run.out, back_to)
    fallen = (*falls(run.out), Fall(failed_step=diverged.step, back_to=back_to, why=diverged.why))
    write_atomic(run.out / "fallen.json", msgspec.json.encode(fallen))
    run.emit("fell_back", step=back_to, failed_step=diverged.step, why=diverged.why, rate_factor=rate_factor(fallen, back_to + 1))


def write_checkpoint(
    run: RunFolder, base: Path, trainable: Trainable, optimizer: torch.optim.Optimizer, state: TrainingState, per_epoch: int
) -> None:
    """Write a checkpoint; a full disk is reported and the run goes on, with the last good one to fall back to."""
    try:
        folder = checkpoint.save(run.out, base, trainable, optimizer, state)
    except StoreError as error:
        run.emit("checkpoint_failed", step=state.step, error=str(error))
        return
    checkpoint.prune(run.out, keep=run.manifest.resolved.keep_checkpoints, best=state.best_step, epoch_steps=per_epoch)
    run.emit("checkpoint", step=state.step, folder=str(folder))
