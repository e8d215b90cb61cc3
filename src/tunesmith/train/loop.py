"""The training loop: one flat function over packs. Knows nothing about chats, stores, or what the rows mean."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from tunesmith.core.errors import StoreError, TrainingError
from tunesmith.core.store import write_whole
from tunesmith.core.types import Record
from tunesmith.train import checkpoint
from tunesmith.train.adapters import Trainable, groups, prepare
from tunesmith.train.artifact import SelfTest, save_artifact, self_test
from tunesmith.train.checkpoint import State
from tunesmith.train.items import Item, Row, as_items, mismatch, usable
from tunesmith.train.lanes import Batch, Lanes, evaluate, gradients, lanes
from tunesmith.train.objectives import SFT, objective_of, report
from tunesmith.train.packing import epoch_order
from tunesmith.train.plan import Plan, ResolvedPlan
from tunesmith.train.reference import references
from tunesmith.train.run import OnEvent, Run, open_run


class TrainResult(Record, frozen=True):
    """A finished run. Losses in nats per trained token; `artifact` is the adapter's (or model's) folder, `seconds` all sessions'."""

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


def rate_at(step: int, total: int, plan: ResolvedPlan) -> float:
    """Share of the learning rate at step 1…total: linear warm-up, then the schedule down to 0 after the last step."""
    warmup = math.ceil(plan.warmup_ratio * total)
    if step <= warmup:
        return step / warmup
    done = (step - 1 - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[plan.schedule]


def train(
    plan: Plan, rows: Sequence[Row], validation: Sequence[Row] = (), *, base: Path, out: Path, on_event: OnEvent = lambda _: None
) -> TrainResult:
    """Train `base` on `rows` as the plan says, into the folder `out`; continue there from the newest sound checkpoint.

    A run killed at any moment and started again gives the same weights, bit for bit, on a CPU. Raises ConfigError (the plan), DataError
    (rows without anything to train), TrainingError (another run's folder, nothing left to train, loss not finite, an artifact that fails
    its test), StoreError (the disk).
    """
    out.mkdir(parents=True, exist_ok=True)
    items, valid = as_items(plan.method, rows), as_items(plan.method, validation)
    run = open_run(plan, items, valid, base, out, on_event)
    done = _finished(run)
    if done is not None:
        run.on_event({"event": "finished", "step": done.steps, "cached": True})
        return done
    resolved = run.manifest.resolved
    kept, dropped, truncated = usable(items, resolved.max_length, resolved.over_length)
    valid = usable(valid, resolved.max_length, resolved.over_length)[0] if valid else []
    _refuse_overlap(kept, valid)
    if plan.method == "kto":
        kept, valid = mismatch(kept), mismatch(valid)
    with lanes(resolved) as side:
        result = _run(run, kept, valid, base, side)
    result = msgspec.structs.replace(result, dropped=tuple(dropped), truncated=tuple(truncated))
    write_whole(out / "result.json", msgspec.json.format(msgspec.json.encode(result)))
    run.emit("finished", step=result.steps, seconds=result.seconds)
    return result


def _finished(run: Run) -> TrainResult | None:
    try:
        done = msgspec.json.decode((run.out / "result.json").read_bytes(), type=TrainResult)
    except (OSError, msgspec.DecodeError):
        return None
    return done if done.identity == run.identity and Path(done.artifact).exists() else None


def _refuse_overlap(items: Sequence[Item], validation: Sequence[Item]) -> None:
    seen = {item.rows[0].ids.tobytes() for item in items}
    shared = [item.rows[0].example_id for item in validation if item.rows[0].ids.tobytes() in seen]
    if shared:
        raise TrainingError(f"{len(shared)} validation rows are training rows too: {', '.join(shared[:5])}", remedy="split the data again")


def _run(run: Run, items: Sequence[Item], validation: Sequence[Item], base: Path, side: Lanes) -> TrainResult:
    plan, out = run.manifest.resolved, run.out
    trainable = prepare(base, plan)
    parameters = list(trainable.parameters().values())
    optimizer = torch.optim.AdamW(groups(trainable, plan), fused=True)
    per_epoch = math.ceil(len(items) / plan.batch_size)
    total = per_epoch * plan.epochs
    objective = objective_of(plan)
    reference = references(run, "train", items, objective, trainable, side)
    valid_batch = Batch(validation, references(run, "validation", validation, objective, trainable, side))
    state = State(step=0, identity=run.identity)
    last = checkpoint.newest(out, run.identity)
    if last is not None:
        checkpoint.load(last[0], trainable, optimizer)
        state = last[1]
    run.rewind(state.step if last is not None else -1)
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
        found = report(evaluate(trainable, objective, valid_batch, plan, side))
        run.emit("evaluation", step=0, total_steps=total, epoch=0.0, **{f"valid_{key}": value for key, value in found.items()})
    trainable.model.train()
    step = state.step
    while step < total:
        started = time.perf_counter()
        step += 1
        epoch, offset = divmod(step - 1, per_epoch)
        order = epoch_order(len(items), seed=plan.seed, epoch=epoch)[offset * plan.batch_size : (offset + 1) * plan.batch_size]
        batch = Batch([items[i] for i in order], reference[order])
        # Dropout is a function of seed, step and pack, so that a resumed run repeats it.
        sums = gradients(trainable, objective, batch, plan, side, seed=(plan.seed * 1_000_003 + step) * 1009)
        found = report(sums)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm))
        if not (math.isfinite(found["loss"]) and math.isfinite(norm)):
            raise TrainingError(
                f"loss {found['loss']} and gradient norm {norm} at step {step}", remedy="a lower learning_rate, or dtype: float32"
            )
        scale = rate_at(step, total, plan)
        for group in optimizer.param_groups:
            group["lr"] = group["base_rate"] * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        tokens = sum(len(row.ids) for item in batch.items for row in item.rows)
        before = State(step=0, identity="") if offset == 0 else state
        state = msgspec.structs.replace(
            state,
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
            tokens_per_s=tokens / seconds,
            computed_tokens=int(sums["computed"]),
            limit_share=trainable.flops(sums["computed"], sums["positions"]) / (1e9 * run.manifest.facts.gflops * plan.threads * seconds),
            seconds_left=(total - step) * state.seconds / step,
        )
        if validation and (step == total or step % (plan.eval_every or per_epoch) == 0):
            found = report(evaluate(trainable, objective, valid_batch, plan, side))
            if state.best_loss is None or found["loss"] < state.best_loss:
                state = msgspec.structs.replace(state, best_loss=found["loss"], best_step=step)
            state = msgspec.structs.replace(state, valid_loss=found["loss"])
            run.emit("evaluation", step=step, total_steps=total, epoch=step / per_epoch, **{f"valid_{key}": v for key, v in found.items()})
        if step == total or step % (plan.checkpoint_every or per_epoch) == 0 or step % per_epoch == 0 or state.best_step == step:
            _checkpoint(run, trainable, optimizer, state, per_epoch)
    return _finish(run, trainable, items, state, base, side)


def _checkpoint(run: Run, trainable: Trainable, optimizer: torch.optim.Optimizer, state: State, per_epoch: int) -> None:
    """Write a checkpoint; a full disk is reported and the run goes on, with the last good one to fall back to."""
    try:
        folder = checkpoint.save(run.out, trainable, optimizer, state)
    except StoreError as error:
        run.emit("checkpoint_failed", step=state.step, error=str(error))
        return
    checkpoint.prune(run.out, keep=run.manifest.resolved.keep_checkpoints, best=state.best_step, epoch_steps=per_epoch)
    run.emit("checkpoint", step=state.step, folder=str(folder))


def _finish(run: Run, trainable: Trainable, items: Sequence[Item], state: State, base: Path, side: Lanes) -> TrainResult:
    """Choose the weights to keep, save them, let the artifact test itself."""
    plan, valid_loss = run.manifest.resolved, state.valid_loss
    if plan.keep == "best" and state.best_step not in (None, state.step):
        best = checkpoint.folder_of(run.out, state.best_step or 0)
        if checkpoint.sound(best) is not None:
            checkpoint.load_weights(trainable, best)
            valid_loss = state.best_loss
            run.emit("best_restored", step=state.step, best_step=state.best_step, valid_loss=valid_loss)
    folder = save_artifact(run.out, base, trainable)
    few = sorted((item.rows[0] for item in items), key=lambda row: (len(row.ids), row.example_id))[:4]
    loss = report(evaluate(trainable, SFT(), Batch([Item((row,)) for row in few], np.zeros((len(few), 1), np.float32)), plan, side))["loss"]
    test = self_test(folder, base, trainable, few, loss, plan.dtype)
    run.emit("saved", step=state.step, folder=str(folder), **msgspec.to_builtins(test))
    per_epoch = math.ceil(len(items) / plan.batch_size)
    return TrainResult(
        artifact=str(folder),
        steps=state.step,
        epochs=state.step // per_epoch,
        train_loss=state.epoch_loss / max(1.0, state.epoch_weight),
        valid_loss=valid_loss,
        best_step=state.best_step,
        rows=len(items),
        tokens=state.tokens,
        trained_tokens=sum(row.trained for item in items for row in item.rows) * plan.epochs,
        trainable_parameters=sum(p.numel() for p in trainable.parameters().values()),
        seconds=state.seconds,
        identity=run.identity,
        test=test,
    )
