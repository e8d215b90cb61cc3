"""Reinforcement with graders as rewards: one flat loop of sampling, grading and updating. Knows nothing about how a grader grades.

Nothing is drawn from a generator that would have to be saved: order, answers and dropout are functions of seed, epoch and step, so a run
that was killed ends in the same weights as one that was not, as long as the rewards are the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.core.types import Record, canonical, digest
from tunesmith.train.artifact import SelfTest
from tunesmith.train.card import write_card
from tunesmith.train.checkpoint import TrainingState
from tunesmith.train.grpo_loss import GRPO, known_logps, weight
from tunesmith.train.items import Item, refuse_overlap
from tunesmith.train.methods import METHODS
from tunesmith.train.microbatch import Lanes, StepItems, gradients, lanes
from tunesmith.train.objectives import Sums
from tunesmith.train.plan import Plan, ResolvedPlan
from tunesmith.train.recovery import Diverged, fall_back, judge
from tunesmith.train.rollout import Reward, Rollout, Sampler, Task, roll_out, with_advantages
from tunesmith.train.run import OnEvent, RunFolder, alone, open_run, reported
from tunesmith.train.trainer import Trainer

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


@alone
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
    method = METHODS[plan.method]
    if not method.graded:
        allowed = " or ".join(name for name, known in METHODS.items() if known.graded)
        raise ConfigError(f"method {plan.method} takes no rewards", where="train.method", allowed=allowed)
    if (plan.patience is not None or plan.keep == "best") and not validation:
        raise ConfigError("patience and keep: best need held-out prompts", where="train.patience", remedy="hold rows out, or leave it out")
    out.mkdir(parents=True, exist_ok=True)
    prompts, held_out = (method.items([task.prompt for task in some]) for some in (tasks, validation))
    beside = digest([canonical(task.item).decode() for task in (*tasks, *validation)])
    run = open_run(plan, prompts, held_out, base, out, on_event, beside=beside)
    done = run.finished(Reinforced)
    if done is not None:
        run.on_event({"event": "finished", "step": done.steps, "cached": True})
        return done
    resolved = run.manifest.resolved
    refuse_overlap(prompts, held_out)
    fitting, dropped = _answerable(tasks, resolved)
    result = None
    with lanes(resolved) as side:
        while result is None:
            try:
                result = _run(run, (fitting, list(validation)), reward, base, side, should_stop)
            except Diverged as diverged:
                fall_back(run, diverged)
    return run.finish(msgspec.structs.replace(result, dropped=dropped))


def _answerable(tasks: Sequence[Task], plan: ResolvedPlan) -> tuple[list[Task], tuple[str, ...]]:
    """The tasks whose prompt leaves room for a whole answer, and the ids of the others."""
    room = plan.max_length - plan.reinforcement.max_tokens
    fitting = [task for task in tasks if len(task.prompt.ids) <= room]
    if not fitting:
        raise TrainingError(
            f"none of {len(tasks)} prompts has at most {room} tokens",
            where="train.max_length",
            allowed=f"max_length {plan.max_length} less max_tokens {plan.reinforcement.max_tokens}",
            remedy="a smaller reinforcement.max_tokens, or a larger max_length",
        )
    return fitting, tuple(task.prompt.example_id for task in tasks if len(task.prompt.ids) > room)


def _run(
    run: RunFolder, tasks: tuple[list[Task], list[Task]], reward: Reward, base: Path, side: Lanes, should_stop: Callable[[], bool]
) -> Reinforced:
    trainer, (prompts, held_out) = Trainer(run, base, len(tasks[0]), [task.prompt for task in tasks[0]]), tasks
    plan, options, trainable = trainer.plan, trainer.plan.reinforcement, trainer.trainable
    sampler = Sampler(trainable, base, plan)
    state = trainer.begin(len(held_out))
    if held_out and not state.step:
        judged = roll_out(sampler, reward, held_out, options.eval_samples, HELD_OUT)
        run.emit("evaluation", **trainer.place(0), **_named("valid_", judged.means()))
    while not trainer.over(state):
        started, step = time.perf_counter(), state.step + 1
        rollout = roll_out(sampler, reward, [prompts[i] for i in trainer.order(step)], options.samples, step)
        if rollout.failures:
            run.emit("grading_failed", step=step, count=len(rollout.failures), why=rollout.failures[0])
        sampled = time.perf_counter()
        items, whole = _with_gradient(rollout, plan)
        known = known_logps(trainable, items, plan, side) if items else np.zeros((0, 2, 0), np.float32)
        sums: Sums = {}
        norm = 0.0
        for update in range(options.updates if items else 0):
            objective = GRPO(options, whole, on_policy=options.updates == 1)
            seed = (plan.seed * 1_000_003 + step * options.updates + update) * 1009
            sums = gradients(trainable, objective, StepItems(items, known), plan, side, seed=seed)
            norm = trainer.clip()
            judge(run, state, step, sums["loss"], norm, trainer.fallen)
            trainer.update(step)
        seconds = time.perf_counter() - started
        tokens = sum(row.trained for group in rollout.groups for row in group.rows)
        state = msgspec.structs.replace(state, step=step, seconds=state.seconds + seconds, tokens=state.tokens + tokens)
        run.emit(
            "step",
            **trainer.place(step),
            **_named("train_", rollout.means() | {"degenerate": rollout.degenerate} | _means(sums, whole)),
            learning_rate=trainer.rate(step),
            grad_norm=norm,
            tokens=tokens,
            tokens_per_s=tokens / seconds,
            sampling_share=(sampled - started) / seconds,
            seconds_left=(trainer.total - step) * state.seconds / step,
        )
        if held_out and trainer.looks(step):
            judged = roll_out(sampler, reward, held_out, options.eval_samples, HELD_OUT)
            state = _judged(state, judged)
            run.emit("evaluation", **trainer.place(step), **_named("valid_", judged.means()))
        trainer.keep(state, should_stop)
    return _finish(trainer, prompts, state, side)


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


def _judged(state: TrainingState, rollout: Rollout) -> TrainingState:
    """The state after an evaluation, whose metric is the mean reward."""
    if not rollout.rewards:
        return state
    reward = statistics.fmean(rollout.rewards)
    state = msgspec.structs.replace(state, valid_metric=reward, stale=state.stale + 1)
    better = state.best_metric is None or reward > state.best_metric
    return msgspec.structs.replace(state, best_metric=reward, best_step=state.step, stale=0) if better else state


def _finish(trainer: Trainer, prompts: Sequence[Task], state: TrainingState, side: Lanes) -> Reinforced:
    """Choose the weights to keep, save them, let the artifact test itself."""
    run, events = trainer.run, reported(trainer.run.out)
    steps = [event for event in events if event["event"] == "step"]
    if all(event["train_degenerate"] == 1.0 for event in steps):
        raise TrainingError(
            f"in none of {len(steps)} steps was an answer better than another, so nothing was learned",
            where="train.reinforcement",
            remedy="a grader with shades between right and wrong, easier prompts, more samples, or SFT first",
        )
    valid = {event["step"]: event.get("valid_reward") for event in events if event["event"] == "evaluation"}
    chosen = trainer.choose(state)
    if chosen != state.step:
        run.emit("best_restored", step=state.step, best_step=chosen, valid_reward=valid.get(chosen))
    folder, test = trainer.save(state, [replace(task.prompt, mask=np.ones(len(task.prompt.ids), np.uint8)) for task in prompts], side)
    last = [event["train_reward"] for event in steps if event["step"] > state.step - trainer.per_epoch and "train_reward" in event]
    result = Reinforced(
        artifact=str(folder),
        steps=state.step,
        epochs=state.step // trainer.per_epoch,
        train_reward=statistics.fmean(last) if last else None,
        first_valid_reward=valid.get(0),
        valid_reward=valid.get(chosen),
        best_step=state.best_step,
        rows=len(prompts),
        trained_tokens=state.tokens,
        trainable_parameters=trainer.trainable_parameters,
        seconds=state.seconds,
        identity=run.identity,
        failed=int(sum(event["train_failed"] for event in steps)),
        test=test,
        early_stopped=state.step < trainer.total,
        recoveries=len(trainer.fallen),
    )
    scores = {
        "mean reward of the last epoch's samples": result.train_reward,
        "mean reward over held-out prompts before training": result.first_valid_reward,
        "mean reward over held-out prompts": result.valid_reward,
    }
    write_card(folder, trainer.base, run.manifest, state, scores, test)
    return result
