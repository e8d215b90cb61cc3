"""The training loop: one flat function over packs. Knows nothing about chats, stores, or what the rows mean."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record
from tunesmith.train.artifact import SelfTest
from tunesmith.train.card import write_card
from tunesmith.train.checkpoint import TrainingState
from tunesmith.train.facts import machine_rate
from tunesmith.train.items import Item, Row, mismatch, refuse_overlap, usable
from tunesmith.train.methods import METHODS
from tunesmith.train.microbatch import Lanes, StepItems, lanes
from tunesmith.train.objectives import report
from tunesmith.train.packing import epoch_order
from tunesmith.train.plan import Plan, ResolvedPlan
from tunesmith.train.recovery import Diverged, fall_back, judge, watched
from tunesmith.train.reference import references
from tunesmith.train.run import OnEvent, RunFolder, alone, open_run, reported
from tunesmith.train.self_distil import SelfTeacher
from tunesmith.train.trainer import Trainer
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


@alone
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
    method = METHODS[plan.method]
    items, valid = method.items(rows), method.items(validation)
    run = open_run(plan, items, valid, base, out, on_event, beside=None if measure is None else measure.name)
    done = run.finished(TrainResult)
    if done is not None:
        run.on_event({"event": "finished", "step": done.steps, "cached": True})
        return done
    resolved = run.manifest.resolved
    ready, dropped, truncated = usable(items, resolved.max_length, resolved.over_length)
    valid = usable(valid, resolved.max_length, resolved.over_length)[0] if valid else []
    refuse_overlap(ready, valid)
    if method.mismatched:
        ready, valid = (mismatch(some, resolved.max_length) for some in (ready, valid))
    result = None
    with lanes(resolved) as side:
        while result is None:
            try:
                result = _run(run, ready, valid, base, side, should_stop, measure)
            except Diverged as diverged:
                fall_back(run, diverged)
    return run.finish(msgspec.structs.replace(result, dropped=tuple(dropped), truncated=tuple(truncated)))


def _run(
    run: RunFolder,
    items: Sequence[Item],
    validation: Sequence[Item],
    base: Path,
    side: Lanes,
    should_stop: Callable[[], bool],
    measure: Measure | None,
) -> TrainResult:
    trainer = Trainer(run, base, len(items), [row for item in items for row in item.rows])
    plan, trainable, method = trainer.plan, trainer.trainable, METHODS[trainer.plan.method]
    objective, teacher = method.objective(plan), SelfTeacher(trainable, base, plan, side) if method.demonstrated else None
    if teacher is not None:  # held-out answers are judged without being shown
        validation = [item._replace(rows=item.rows[:1]) for item in validation]
    reference = references(run, "train", items, objective, trainable, side)
    valid_batch = StepItems(validation, references(run, "validation", validation, objective, trainable, side))
    judged = Validation(run, trainable, objective, valid_batch, side, base, measure)
    limit = machine_rate(run.manifest.facts, plan)
    state = trainer.begin(len(validation))
    if validation and not state.step:
        judged.look(state, **trainer.place(0))
    while not trainer.over(state):
        started, step = time.perf_counter(), state.step + 1
        order = trainer.order(step)
        batch, loss = StepItems([items[i] for i in order], reference[order]), objective
        if teacher is not None:
            loss, batch = teacher.step(batch.items, step)
        sums = trainer.gradients(loss, batch, side, step)
        figures, norm = report(sums), trainer.clip()
        judge(run, state, step, figures["loss"], norm, trainer.fallen)
        trainer.update(step)
        seconds = time.perf_counter() - started
        tokens = sum(len(row.ids) for item in batch.items for row in item.rows)
        before = TrainingState(step=0, identity="") if trainer.begins_epoch(step) else state
        state = msgspec.structs.replace(
            watched(state, figures["loss"]),
            step=step,
            seconds=state.seconds + seconds,
            tokens=state.tokens + tokens,
            epoch_loss=before.epoch_loss + sums["loss"],
            epoch_weight=before.epoch_weight + sums["weight"],
        )
        run.emit(
            "step",
            **trainer.place(step),
            **{f"train_{key}": value for key, value in figures.items()},
            learning_rate=trainer.rate(step),
            grad_norm=norm,
            tokens=tokens,
            tokens_per_s=tokens / seconds,
            computed_tokens=int(sums["computed"]),
            **({} if teacher is None else {"answer_tokens": int(sums["weight"])}),
            limit_share=trainable.flops(sums["computed"], sums["positions"]) / (limit * seconds),
            seconds_left=(trainer.total - step) * state.seconds / step,
        )
        if validation and trainer.looks(step):
            state = judged.look(state, **trainer.place(step))
        trainer.keep(state, should_stop)
    return _finish(trainer, items, state, side, measure)


def _finish(trainer: Trainer, items: Sequence[Item], state: TrainingState, side: Lanes, measure: Measure | None) -> TrainResult:
    """Choose the weights to keep, save them, let the artifact test itself."""
    run, plan, valid_loss, valid_metric = trainer.run, trainer.plan, state.valid_loss, state.valid_metric
    if trainer.choose(state) != state.step:
        valid_loss, valid_metric = state.best_loss, state.best_metric
        run.emit("best_restored", step=state.step, best_step=state.best_step, valid_loss=valid_loss, valid_metric=valid_metric)
    folder, test = trainer.save(state, [item.rows[0] for item in items], side)
    train_loss = state.epoch_loss / max(1.0, state.epoch_weight)
    scores = {"training loss, last epoch": train_loss, "validation loss": valid_loss}
    if measure is not None:
        scores[f"{measure.name} on validation rows"] = valid_metric
    write_card(folder, trainer.base, run.manifest, state, scores, test)
    return TrainResult(
        artifact=str(folder),
        steps=state.step,
        epochs=state.step // trainer.per_epoch,
        train_loss=train_loss,
        valid_loss=valid_loss,
        best_step=state.best_step,
        rows=len(items),
        tokens=state.tokens,
        trained_tokens=_drawn_tokens(run) if METHODS[plan.method].demonstrated else _trained_tokens(items, plan, state.step),
        trainable_parameters=trainer.trainable_parameters,
        seconds=state.seconds,
        identity=run.identity,
        test=test,
        early_stopped=state.step < trainer.total,
        recoveries=len(trainer.fallen),
        metric=None if measure is None else measure.name,
        valid_metric=valid_metric,
    )


def _drawn_tokens(run: RunFolder) -> int:
    """Tokens with loss where the model drew them itself."""
    return sum(event["answer_tokens"] for event in reported(run.out) if event["event"] == "step")


def _trained_tokens(items: Sequence[Item], plan: ResolvedPlan, steps: int) -> int:
    """Tokens with loss in the first `steps` steps; the last epoch may be cut short."""
    counts = np.array([sum(row.trained for row in item.rows) for item in items])
    epochs, rest = divmod(steps, math.ceil(len(items) / plan.batch_size))
    order = epoch_order(len(items), seed=plan.seed, epoch=epochs)[: rest * plan.batch_size]
    return int(counts.sum() * epochs + counts[order].sum())
