"""Reinforcement with graders as rewards: one flat loop of sampling, grading and updating. Knows nothing about how a grader grades.

Nothing is drawn from a generator that would have to be saved: order, answers and dropout are functions of seed, epoch and step, so a run
that was killed ends in the same weights as one that was not, as long as the rewards are the same.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.core.types import Record, canonical, digest
from tunesmith.train import checkpoint
from tunesmith.train.adapters import Trainable, groups, prepare
from tunesmith.train.artifact import SelfTest, save_artifact, self_test
from tunesmith.train.card import write_card
from tunesmith.train.checkpoint import State
from tunesmith.train.grpo_loss import GRPO, known_logps, weight
from tunesmith.train.items import Item, as_items, refuse_overlap
from tunesmith.train.lanes import Batch, Lanes, evaluate, gradients, lanes
from tunesmith.train.loop import rate_at
from tunesmith.train.objectives import SFT, Sums, report
from tunesmith.train.packing import epoch_order
from tunesmith.train.plan import Plan, ResolvedPlan
from tunesmith.train.recovery import Diverged, fall_back, falls, judge, rate_factor, write_checkpoint
from tunesmith.train.rollout import Reward, Rollout, Sampler, Task, roll_out, with_advantages
from tunesmith.train.run import OnEvent, Paused, Run, open_run, told

HELD_OUT = -1  # the step whose draws answer the held-out prompts, the same at every evaluation


class Reinforced(Record, frozen=True):
    """A finished run. Rewards are means: over the last epoch's samples, over the held-out prompts before the first step and at the end.

    `trained_tokens` counts the answers' tokens, `failed` the answers that no grader could grade; `seconds` are all sessions'.
    """

    artifact: str
    steps: int
    epochs: int
    train_reward: float | None
    first_valid_reward: float | None
    valid_reward: float | None
    best_step: int | None
    rows: int
    trained_tokens: int
    trainable_parameters: int
    seconds: float
    identity: str
    dropped: tuple[str, ...] = ()
    failed: int = 0
    test: SelfTest | None = None
    early_stopped: bool = False
    recoveries: int = 0


def reinforce(
    plan: Plan,
    tasks: Sequence[Task],
    reward: Reward,
    validation: Sequence[Task] = (),
    *,
    base: Path,
    out: Path,
    on_event: OnEvent = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Reinforced:
    """Train `base` by the rewards of its own answers to `tasks`, into the folder `out`; continue there from the newest sound checkpoint.

    See `loop.train` for resuming, `should_stop` and what is raised; besides, TrainingError when no prompt leaves room for an answer, or
    when in no step an answer was better than another.
    """
    if plan.method != "grpo":
        raise ConfigError(f"method {plan.method} takes no rewards", where="train.method", allowed="grpo")
    if (plan.patience is not None or plan.keep == "best") and not validation:
        raise ConfigError("patience and keep: best need held-out prompts", where="train.patience", remedy="hold rows out, or leave it out")
    out.mkdir(parents=True, exist_ok=True)
    prompts, held_out = (as_items("grpo", [task.prompt for task in some]) for some in (tasks, validation))
    beside = digest([canonical(task.item).decode() for task in (*tasks, *validation)])
    run = open_run(plan, prompts, held_out, base, out, on_event, beside=beside)
    done = run.finished(Reinforced)
    if done is not None:
        run.on_event({"event": "finished", "step": done.steps, "cached": True})
        return done
    resolved = run.manifest.resolved
    refuse_overlap(prompts, held_out)
    kept, dropped = _answerable(tasks, resolved)
    result = None
    with lanes(resolved) as side:
        while result is None:
            try:
                result = _run(run, (kept, list(validation)), reward, base, side, should_stop)
            except Diverged as diverged:
                fall_back(run, diverged)
    return run.finish(msgspec.structs.replace(result, dropped=dropped))


def _answerable(tasks: Sequence[Task], plan: ResolvedPlan) -> tuple[list[Task], tuple[str, ...]]:
    """The tasks whose prompt leaves room for a whole answer, and the ids of the others."""
    room = plan.max_length - plan.reinforcement.max_tokens
    kept = [task for task in tasks if len(task.prompt.ids) <= room]
    if not kept:
        raise TrainingError(
            f"none of {len(tasks)} prompts has at most {room} tokens",
            where="train.max_length",
            allowed=f"max_length {plan.max_length} less max_tokens {plan.reinforcement.max_tokens}",
            remedy="a smaller reinforcement.max_tokens, or a larger max_length",
        )
    return kept, tuple(task.prompt.example_id for task in tasks if len(task.prompt.ids) > room)


def _run(
    run: Run, tasks: tuple[list[Task], list[Task]], reward: Reward, base: Path, side: Lanes, should_stop: Callable[[], bool]
) -> Reinforced:
    plan, options, (prompts, held_out) = run.manifest.resolved, run.manifest.resolved.reinforcement, tasks
    trainable = prepare(base, plan)
    parameters = list(trainable.parameters().values())
    optimizer = torch.optim.AdamW(groups(trainable, plan), fused=True)
    sampler = Sampler(trainable, base, plan)
    per_epoch = math.ceil(len(prompts) / plan.batch_size)
    total = per_epoch * plan.epochs
    state = State(step=0, identity=run.identity)
    last = checkpoint.newest(run.out, run.identity)
    if last is not None:
        checkpoint.load(last[0], trainable, optimizer)
        state = last[1]
        checkpoint.prune(run.out, keep=plan.keep_checkpoints, best=state.best_step, epoch_steps=per_epoch)
    run.rewind(state.step if last is not None else -1)
    fallen = falls(run.out)
    run.emit(
        "start",
        step=state.step,
        total_steps=total,
        rows=len(prompts),
        validation_rows=len(held_out),
        trainable_parameters=sum(p.numel() for p in parameters),
        resumed=last is not None,
        plan=msgspec.to_builtins(plan),
        reasons=msgspec.to_builtins(run.manifest.reasons),
    )
    if held_out and last is None:
        found = roll_out(sampler, reward, held_out, options.eval_samples, HELD_OUT)
        run.emit("evaluation", step=0, total_steps=total, epoch=0.0, **_named("valid_", found.means()))
    trainable.model.train()
    step = state.step
    while step < total and not _stale(state, plan):
        started = time.perf_counter()
        step += 1
        epoch, offset = divmod(step - 1, per_epoch)
        order = epoch_order(len(prompts), seed=plan.seed, epoch=epoch)[offset * plan.batch_size : (offset + 1) * plan.batch_size]
        rollout = roll_out(sampler, reward, [prompts[i] for i in order], options.samples, step)
        if rollout.failures:
            run.emit("grading_failed", step=step, count=len(rollout.failures), why=rollout.failures[0])
        sampled = time.perf_counter()
        items, whole = _with_gradient(rollout, plan)
        known = known_logps(trainable, items, plan, side) if items else np.zeros((0, 2, 0), np.float32)
        scale = rate_at(step, total, plan) * rate_factor(fallen, step)
        for group in optimizer.param_groups:
            group["lr"] = group["base_rate"] * scale
        sums: Sums = {}
        norm = 0.0
        for update in range(options.updates if items else 0):
            objective = GRPO(options, whole, on_policy=options.updates == 1)
            seed = (plan.seed * 1_000_003 + step * options.updates + update) * 1009
            sums = gradients(trainable, objective, Batch(items, known), plan, side, seed=seed)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm))
            judge(run, state, step, sums["loss"], norm, fallen)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        tokens = sum(row.trained for group in rollout.groups for row in group.rows)
        state = msgspec.structs.replace(state, step=step, seconds=state.seconds + seconds, tokens=state.tokens + tokens)
        run.emit(
            "step",
            step=step,
            total_steps=total,
            epoch=step / per_epoch,
            **_named("train_", rollout.means() | {"degenerate": rollout.degenerate} | _means(sums, whole)),
            learning_rate=plan.learning_rate * scale,
            grad_norm=norm,
            tokens=tokens,
            tokens_per_s=tokens / seconds,
            sampling_share=(sampled - started) / seconds,
            seconds_left=(total - step) * state.seconds / step,
        )
        if held_out and (step == total or step % (plan.eval_every or per_epoch) == 0):
            found = roll_out(sampler, reward, held_out, options.eval_samples, HELD_OUT)
            state = _judged(state, found)
            run.emit("evaluation", step=step, total_steps=total, epoch=step / per_epoch, **_named("valid_", found.means()))
        ends = step == total or _stale(state, plan)
        pause = not ends and should_stop()
        due = ends or step % (plan.checkpoint_every or per_epoch) == 0 or step % per_epoch == 0 or state.best_step == step
        if due or pause:
            write_checkpoint(run, trainable, optimizer, msgspec.structs.replace(state, planned=due), per_epoch)
        if pause:
            run.emit("paused", step=step, total_steps=total)
            raise Paused(step)
    if step < total:
        run.emit("early_stopped", step=step, total_steps=total, best_step=state.best_step)
    return _finish(run, trainable, prompts, state, base, side)


def _with_gradient(rollout: Rollout, plan: ResolvedPlan) -> tuple[list[Item], float]:
    """The samples that the loss of this step depends on, and the weight of all."""
    items = with_advantages(rollout, scaled=plan.reinforcement.loss != "dr_grpo")
    whole = weight([item.rows[0] for item in items], plan.reinforcement)
    return [item for item in items if item.label or plan.reinforcement.beta], whole


def _means(sums: Sums, whole: float) -> dict[str, float]:
    """What people see of the last update: `loss`; over its tokens `entropy` (nats, as their mean surprise), share of `clipped` ones, and
    `kl` to the base (nats) where it counts. An update for which no sample has a gradient has a loss of 0."""
    if not sums:
        return {"loss": 0.0}
    return {"loss": sums["loss"] / whole} | {name: sums[name] / sums["tokens"] for name in ("entropy", "clipped", "kl") if name in sums}


def _named(prefix: str, figures: dict[str, float]) -> dict[str, Any]:
    return {prefix + name: value for name, value in figures.items()}


def _judged(state: State, found: Rollout) -> State:
    """The state after an evaluation, whose metric is the mean reward."""
    if not found.rewards:
        return state
    reward = statistics.fmean(found.rewards)
    state = msgspec.structs.replace(state, valid_metric=reward, stale=state.stale + 1)
    better = state.best_metric is None or reward > state.best_metric
    return msgspec.structs.replace(state, best_metric=reward, best_step=state.step, stale=0) if better else state


def _stale(state: State, plan: ResolvedPlan) -> bool:
    """Whether the held-out reward has not risen for as long as the plan waits."""
    return plan.patience is not None and state.stale >= plan.patience


def _finish(run: Run, trainable: Trainable, prompts: Sequence[Task], state: State, base: Path, side: Lanes) -> Reinforced:
    """Choose the weights to keep, save them, let the artifact test itself."""
    plan, events = run.manifest.resolved, told(run.out)
    steps = [event for event in events if event["event"] == "step"]
    if all(event["train_degenerate"] == 1.0 for event in steps):
        raise TrainingError(
            f"in none of {len(steps)} steps was an answer better than another, so nothing was learned",
            where="train.reinforcement",
            remedy="a grader with shades between right and wrong, easier prompts, more samples, or SFT first",
        )
    valid = {event["step"]: event.get("valid_reward") for event in events if event["event"] == "evaluation"}
    chosen = state.step
    if (plan.keep == "best" or plan.patience is not None) and state.best_step not in (None, state.step):
        best = checkpoint.folder_of(run.out, state.best_step or 0)
        if checkpoint.sound(best) is not None:
            checkpoint.load_weights(trainable, best)
            chosen = state.best_step or 0
            run.emit("best_restored", step=state.step, best_step=chosen, valid_reward=valid.get(chosen))
    folder = save_artifact(run.out, base, trainable)
    rows = sorted((task.prompt for task in prompts), key=lambda row: (len(row.ids), row.example_id))[:4]
    few = [Item((replace(row, mask=np.ones(len(row.ids), np.uint8)),)) for row in rows]
    loss = report(evaluate(trainable, SFT(), Batch(few, np.zeros((len(few), 1), np.float32)), plan, side))["loss"]
    test = self_test(folder, base, trainable, [item.rows[0] for item in few], loss, plan)
    run.emit("saved", step=state.step, folder=str(folder), **msgspec.to_builtins(test))
    per_epoch = math.ceil(len(prompts) / plan.batch_size)
    last = [event["train_reward"] for event in steps if event["step"] > state.step - per_epoch and "train_reward" in event]
    result = Reinforced(
        artifact=str(folder),
        steps=state.step,
        epochs=state.step // per_epoch,
        train_reward=statistics.fmean(last) if last else None,
        first_valid_reward=valid.get(0),
        valid_reward=valid.get(chosen),
        best_step=state.best_step,
        rows=len(prompts),
        trained_tokens=state.tokens,
        trainable_parameters=sum(p.numel() for p in trainable.parameters().values()),
        seconds=state.seconds,
        identity=run.identity,
        failed=int(sum(event["train_failed"] for event in steps)),
        test=test,
        early_stopped=state.step < per_epoch * plan.epochs,
        recoveries=len(falls(run.out)),
    )
    scores = {
        "mean reward of the last epoch's samples": result.train_reward,
        "mean reward over held-out prompts before training": result.first_valid_reward,
        "mean reward over held-out prompts": result.valid_reward,
    }
    write_card(folder, base, run.manifest, state, scores, test)
    return result
