"""The training loop: one flat function over packs. Knows nothing about chats, stores, or what the rows mean."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record
from tunesmith.train import checkpoint
from tunesmith.train.adapters import Trainable, groups, prepare
from tunesmith.train.artifact import SelfTest, save_artifact, self_test
from tunesmith.train.card import write_card
from tunesmith.train.checkpoint import State
from tunesmith.train.facts import machine_rate
from tunesmith.train.items import Item, Row, as_items, mismatch, refuse_overlap, usable
from tunesmith.train.lanes import Batch, Lanes, evaluate, gradients, lanes
from tunesmith.train.objectives import SFT, objective_of, report
from tunesmith.train.packing import epoch_order
from tunesmith.train.plan import Plan, ResolvedPlan
from tunesmith.train.recovery import Diverged, fall_back, falls, judge, rate_factor, watched, write_checkpoint
from tunesmith.train.reference import references
from tunesmith.train.run import OnEvent, Paused, Run, open_run
from tunesmith.train.validation import Measure, Validation


class TrainResult(Record, frozen=True):
    """A finished run. Losses in nats per trained token; `artifact` is the adapter's (or model's) folder, `seconds` all sessions'.

    `valid_loss` and `valid_metric` (of the metric that is named) are those of the weights that were kept.
    """

    artifact: str
    steps: int
    epochs: int
    train_loss: float
    valid_loss: float | None
    best_step: int | None
    rows: int
    tokens: int
    trained_tokens: int
    trainable_parameters: int
    seconds: float
    identity: str
    dropped: tuple[str, ...] = ()
    truncated: tuple[str, ...] = ()
    test: SelfTest | None = None
    early_stopped: bool = False
    recoveries: int = 0
    metric: str | None = None
    valid_metric: float | None = None


def rate_at(step: int, total: int, plan: ResolvedPlan) -> float:
    """Share of the learning rate at step 1…total: linear warm-up, then the schedule down to 0 after the last step."""
    warmup = math.ceil(plan.warmup_ratio * total)
    if step <= warmup:
        return step / warmup
    done = (step - 1 - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[plan.schedule]


def train(
    plan: Plan,
    rows: Sequence[Row],
    validation: Sequence[Row] = (),
    *,
    base: Path,
    out: Path,
    on_event: OnEvent = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    measure: Measure | None = None,
) -> TrainResult:
    """Train `base` on `rows` as the plan says, into the folder `out`; continue there from the newest sound checkpoint.

    A run killed at any moment and started again gives the same weights, bit for bit, on a CPU. `should_stop` is asked after every step;
    when it says yes, a checkpoint is written and Paused raised. `measure` joins every evaluation, and then decides which one is best.
    Raises ConfigError (the plan), DataError (rows without anything to train), TrainingError (another run's folder, nothing left to train,
    loss not finite after all recoveries, an artifact that fails its test), StoreError (the disk).
    """
    if plan.patience is not None and not validation:
        raise ConfigError("patience needs validation rows", where="train.patience", remedy="hold rows out, or leave it out")
    if plan.metric_rows and (measure is None or not validation):
        raise ConfigError(
            "metric_rows needs validation rows and a metric", where="train.metric_rows", remedy="hold rows out, or leave it out"
        )
    out.mkdir(parents=True, exist_ok=True)
    items, valid = as_items(plan.method, rows), as_items(plan.method, validation)
    run = open_run(plan, items, valid, base, out, on_event, beside=None if measure is None else measure.name)
    done = run.finished(TrainResult)
    if done is not None:
        run.on_event({"event": "finished", "step": done.steps, "cached": True})
        return done
    resolved = run.manifest.resolved
    kept, dropped, truncated = usable(items, resolved.max_length, resolved.over_length)
    valid = usable(valid, resolved.max_length, resolved.over_length)[0] if valid else []
    refuse_overlap(kept, valid)
    if plan.method == "kto":
        kept, valid = mismatch(kept), mismatch(valid)
    result = None
    with lanes(resolved) as side:
        while result is None:
            try:
                result = _run(run, kept, valid, base, side, should_stop, measure)
            except Diverged as diverged:
                fall_back(run, diverged)
    return run.finish(msgspec.structs.replace(result, dropped=tuple(dropped), truncated=tuple(truncated)))


def _run(
    run: Run,
    items: Sequence[Item],
    validation: Sequence[Item],
    base: Path,
    side: Lanes,
    should_stop: Callable[[], bool],
    measure: Measure | None,
) -> TrainResult:
    plan, out = run.manifest.resolved, run.out
    trainable = prepare(base, plan)
    parameters = list(trainable.parameters().values())
    optimizer = torch.optim.AdamW(groups(trainable, plan), fused=True)
    per_epoch = math.ceil(len(items) / plan.batch_size)
    total = per_epoch * plan.epochs
    objective = objective_of(plan)
    reference = references(run, "train", items, objective, trainable, side)
    valid_batch = Batch(validation, references(run, "validation", validation, objective, trainable, side))
    judged = Validation(run, trainable, objective, valid_batch, side, base, measure)
    state = State(step=0, identity=run.identity)
    last = checkpoint.newest(out, run.identity)
    if last is not None:
        checkpoint.load(last[0], trainable, optimizer)
        state = last[1]
        checkpoint.prune(out, keep=plan.keep_checkpoints, best=state.best_step, epoch_steps=per_epoch)
    run.rewind(state.step if last is not None else -1)
    fallen, limit = falls(out), machine_rate(run.manifest.facts, plan)
    run.emit(
        "start",
        step=state.step,
        total_steps=total,
        rows=len(items),
        validation_rows=len(validation),
        trainable_parameters=sum(p.numel() for p in parameters),
        resumed=last is not None,
        plan=msgspec.to_builtins(plan),
        reasons=msgspec.to_builtins(run.manifest.reasons),
    )
    if validation and last is None:
        judged.look(state, step=0, total_steps=total, epoch=0.0)
    trainable.model.train()
    step = state.step
    while step < total and not _stale(state, plan):
        started = time.perf_counter()
        step += 1
        epoch, offset = divmod(step - 1, per_epoch)
        order = epoch_order(len(items), seed=plan.seed, epoch=epoch)[offset * plan.batch_size : (offset + 1) * plan.batch_size]
        batch = Batch([items[i] for i in order], reference[order])
        # Dropout is a function of seed, step and pack, so that a resumed run repeats it.
        sums = gradients(trainable, objective, batch, plan, side, seed=(plan.seed * 1_000_003 + step) * 1009)
        found = report(sums)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm))
        judge(run, state, step, found["loss"], norm, fallen)
        scale = rate_at(step, total, plan) * rate_factor(fallen, step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_rate"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        tokens = sum(len(row.ids) for item in batch.items for row in item.rows)
        before = State(step=0, identity="") if offset == 0 else state
        state = msgspec.structs.replace(
            watched(state, found["loss"]),
            step=step,
            seconds=state.seconds + seconds,
            tokens=state.tokens + tokens,
            epoch_loss=before.epoch_loss + sums["loss"],
            epoch_weight=before.epoch_weight + sums["weight"],
        )
        run.emit(
            "step",
            step=step,
            total_steps=total,
            epoch=step / per_epoch,
            **{f"train_{key}": value for key, value in found.items()},
            learning_rate=plan.learning_rate * scale,
            grad_norm=norm,
            tokens=tokens,
            tokens_per_s=tokens / seconds,
            computed_tokens=int(sums["computed"]),
            limit_share=trainable.flops(sums["computed"], sums["positions"]) / (limit * seconds),
            seconds_left=(total - step) * state.seconds / step,
        )
        if validation and (step == total or step % (plan.eval_every or per_epoch) == 0):
            state = judged.look(state, step=step, total_steps=total, epoch=step / per_epoch)
        ends = step == total or _stale(state, plan)
        pause = not ends and should_stop()
        due = ends or step % (plan.checkpoint_every or per_epoch) == 0 or step % per_epoch == 0 or state.best_step == step
        if due or pause:
            write_checkpoint(run, trainable, optimizer, msgspec.structs.replace(state, planned=due), per_epoch)
        if pause:
            run.emit("paused", step=step, total_steps=total)
            raise Paused(step)
    if step < total:
        run.emit("early_stopped", step=step, total_steps=total, best_step=state.best_step, best_loss=state.best_loss)
    return _finish(run, trainable, items, state, base, side, measure)


def _stale(state: State, plan: ResolvedPlan) -> bool:
    """Whether validation has not improved for as long as the plan waits."""
    return plan.patience is not None and state.stale >= plan.patience


def _finish(
    run: Run, trainable: Trainable, items: Sequence[Item], state: State, base: Path, side: Lanes, measure: Measure | None
) -> TrainResult:
    """Choose the weights to keep, save them, let the artifact test itself."""
    plan, valid_loss, valid_metric = run.manifest.resolved, state.valid_loss, state.valid_metric
    if (plan.keep == "best" or plan.patience is not None) and state.best_step not in (None, state.step):
        best = checkpoint.folder_of(run.out, state.best_step or 0)
        if checkpoint.sound(best) is not None:
            checkpoint.load_weights(trainable, best)
            valid_loss, valid_metric = state.best_loss, state.best_metric
            run.emit("best_restored", step=state.step, best_step=state.best_step, valid_loss=valid_loss, valid_metric=valid_metric)
    folder = save_artifact(run.out, base, trainable)
    few = sorted((item.rows[0] for item in items), key=lambda row: (len(row.ids), row.example_id))[:4]
    loss = report(evaluate(trainable, SFT(), Batch([Item((row,)) for row in few], np.zeros((len(few), 1), np.float32)), plan, side))["loss"]
    test = self_test(folder, base, trainable, few, loss, plan)
    run.emit("saved", step=state.step, folder=str(folder), **msgspec.to_builtins(test))
    train_loss = state.epoch_loss / max(1.0, state.epoch_weight)
    scores = {"training loss, last epoch": train_loss, "validation loss": valid_loss}
    if measure is not None:
        scores[f"{measure.name} on validation rows"] = valid_metric
    write_card(folder, base, run.manifest, state, scores, test)
    per_epoch = math.ceil(len(items) / plan.batch_size)
    return TrainResult(
        artifact=str(folder),
        steps=state.step,
        epochs=state.step // per_epoch,
        train_loss=train_loss,
        valid_loss=valid_loss,
        best_step=state.best_step,
        rows=len(items),
        tokens=state.tokens,
        trained_tokens=_trained_tokens(items, plan, state.step),
        trainable_parameters=sum(p.numel() for p in trainable.parameters().values()),
        seconds=state.seconds,
        identity=run.identity,
        test=test,
        early_stopped=state.step < per_epoch * plan.epochs,
        recoveries=len(falls(run.out)),
        metric=None if measure is None else measure.name,
        valid_metric=valid_metric,
    )


def _trained_tokens(items: Sequence[Item], plan: ResolvedPlan, steps: int) -> int:
    """Tokens with loss in the first `steps` steps; the last epoch may be cut short."""
    counts = np.array([sum(row.trained for row in item.rows) for item in items])
    epochs, rest = divmod(steps, math.ceil(len(items) / plan.batch_size))
    order = epoch_order(len(items), seed=plan.seed, epoch=epochs)[: rest * plan.batch_size]
    return int(counts.sum() * epochs + counts[order].sum())
