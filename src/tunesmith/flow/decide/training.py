"""Trainings that an experiment makes beside the project's own: on a part of its rows, or on a teacher's answers. Each is a stage named by
its inputs, so that one that was killed goes on and a finished one is found."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tunesmith.core.memory import give_back
from tunesmith.core.model_ref import ModelRef, artifact_in, artifact_ref
from tunesmith.core.rows import write_parquet
from tunesmith.core.types import Example, Message, digest
from tunesmith.evaluate.prompts import as_given
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.decide.desk import Asking, Desk
from tunesmith.flow.pipeline.tokens_stage import tokenize
from tunesmith.flow.pipeline.training_stage import taught
from tunesmith.flow.runner import Output, Runner, Stage
from tunesmith.flow.train_progress import TrainProgress
from tunesmith.models.base import Model
from tunesmith.train.items import Item, load_items
from tunesmith.train.plan import Plan


@dataclass(frozen=True)
class Taught:
    """What a training made: the model as it is written down, the seconds that it took, on how many rows."""

    ref: ModelRef
    seconds: float
    rows: int


def whole(context: ProjectContext) -> Taught:
    """The project's own training on all of its rows, which `tunesmith run` finds done."""
    context.forget_model()
    done = context.runner.run("train")
    return Taught(context.tuned, float(done.output["seconds"]), int(done.output["rows"]))


def subset(context: ProjectContext, share: float, seed: int) -> list[int]:
    """Numbers of the training items in a share of the rows: near-duplicate clusters in an order of the seed, so that a smaller share of the
    same seed lies within a larger one."""
    items = load_items(context.runner.folder("tokens") / "train.npz")
    clusters = context.clusters(context.rows("train"))
    names = [clusters.get(item.rows[0].example_id, str(i)) for i, item in enumerate(items)]
    order = {name: place for place, name in enumerate(np.random.default_rng(seed).permutation(sorted(set(names))).tolist())}
    ranked = sorted(range(len(items)), key=lambda i: (order[names[i]], i))
    return sorted(ranked[: max(1, round(share * len(items)))])


def on_part(context: ProjectContext, numbers: Sequence[int], seed: int) -> Taught:
    """A training of the project's plan on some of its training items."""
    tokens = context.runner.folder("tokens")
    items = load_items(tokens / "train.npz")
    plan = msgspec.structs.replace(taught(context), seed=seed, metric_rows=0, patience=None, keep="last")
    inputs = (context.runner.digests["tokens"], list(numbers))
    about = f"training on {len(numbers)} of {len(items)} rows"
    return _trained(context, plan, [items[i] for i in numbers], load_items(tokens / "validation.npz"), ("decide:part", about, inputs))


def on_answers(desk: Desk, context: ProjectContext, base: str, teacher: Model, asking: Asking) -> Taught:
    """A supervised training on what the teacher answers to the training questions (sequence-level distillation, arXiv 1606.07947)."""
    rows = context.questions("train")
    answers = desk.answers(teacher, [as_given(row) for row in rows], desk.sampling(base), asking, "asking the teacher")
    solved = [_solved(row, answer.text) for row, answer in zip(rows, answers, strict=True) if answer.text.strip()]
    key = digest([row.id for row in rows], [answer.text for answer in answers])
    work = desk.folder / "taught" / key
    split, tokens = work / "split", work / "tokens"
    shutil.rmtree(work, ignore_errors=True)
    for place in (split, tokens):
        place.mkdir(parents=True)
    write_parquet(split / "train.parquet", solved)
    write_parquet(split / "validation.parquet", context.questions("validation"))
    shutil.copyfile(context.runner.folder("split") / "ledger.jsonl", split / "ledger.jsonl")
    plan = msgspec.structs.replace(taught(context), method="sft", metric_rows=0, patience=None, keep="last")
    tokenize(split, context.base, plan, tokens, context.progress.say)
    about = f"training on the answers of {teacher.name}"
    items, validation = load_items(tokens / "train.npz"), load_items(tokens / "validation.npz")
    return _trained(context, plan, items, validation, ("decide:distilled", about, key))


def _solved(row: Example, answer: str) -> Example:
    return msgspec.structs.replace(row, messages=(*row.prompt, Message(role="assistant", content=answer)), reference=None)


def _trained(context: ProjectContext, plan: Plan, items: Sequence[Item], validation: Sequence[Item], named: tuple[str, str, Any]) -> Taught:
    name, about, inputs = named

    def step(work: Path) -> Output:
        from tunesmith.train.loop import train

        context.forget_model()
        give_back(cycles=True)
        result = train(plan, items, validation, base=context.base, out=work, on_event=TrainProgress(context.progress))
        return {"seconds": result.seconds, "rows": result.rows, "steps": result.steps, "train_loss": result.train_loss}

    stage = Stage(name, (plan, context.base_digest, inputs), about=about)
    done = Runner(context.store, context.project.name, context.progress, [stage], {name: step}).run(name)
    ref = artifact_ref(context.start.as_base, artifact_in(done.folder), context.store.folder, made_by=f"run:{done.digest}")
    return Taught(ref, float(done.output["seconds"]), int(done.output["rows"]))
