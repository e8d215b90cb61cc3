"""Trainings that an experiment makes beside the project's own: on a part of its rows, or on a teacher's answers. Each is a stage named by
its inputs, so that one that was killed goes on and a finished one is found."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tunesmith.core.memory import give_back
from tunesmith.core.model_ref import ModelRef, artifact_in, artifact_ref
from tunesmith.core.rows import write_parquet
from tunesmith.core.types import Example, Message, digest
from tunesmith.evaluate.prompts import as_given, solved
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.decide.desk import Asking, Desk
from tunesmith.flow.pipeline.tokens_stage import tokenize
from tunesmith.flow.pipeline.training_stage import taught
from tunesmith.flow.runner import Output, Runner, Stage
from tunesmith.flow.train_progress import TrainProgress
from tunesmith.models.base import Model
from tunesmith.models.grounded import GroundedModel
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
    taught_rows = [_solved(row, answer.text) for row, answer in zip(rows, answers, strict=True) if answer.text.strip()]
    key = digest([row.id for row in rows], [answer.text for answer in answers])
    about = f"training on the answers of {teacher.name}"
    return _on_rows(desk, context, taught_rows, context.questions("validation"), ("decide:distilled", about, key))


def on_passages(desk: Desk, context: ProjectContext, looks_up: Model, hidden: Mapping[str, Collection[str]]) -> Taught:
    """A supervised training on the rows as `looks_up`, a model with an index, would be asked them: with their passages, so that the model
    learns when to copy from them (RAFT, arXiv 2403.10131). `hidden` are the ids of passages that a row must not see: what solves it."""
    rows, validation = (_grounded_rows(context, looks_up, part, hidden) for part in ("train", "validation"))
    key = digest([(row.id, row.messages) for row in (*rows, *validation)])
    return _on_rows(desk, context, rows, validation, ("decide:passages", "training on the rows with their passages", key))


def _grounded_rows(context: ProjectContext, looks_up: Model, part: str, hidden: Mapping[str, Collection[str]]) -> list[Example]:
    rows = context.questions(part)
    assert isinstance(looks_up, GroundedModel)
    made = looks_up.ground([as_given(row) for row in rows], context.sampling(), [hidden.get(row.id, ()) for row in rows])
    return [
        msgspec.structs.replace(row, messages=(*one.prompt.messages, solved(row)[-1]), reference=None)
        for row, one in zip(rows, made, strict=True)
    ]


def _on_rows(
    desk: Desk, context: ProjectContext, rows: Sequence[Example], validation: Sequence[Example], named: tuple[str, str, str]
) -> Taught:
    """A supervised training of the project's plan on other rows than its own; the last of `named` is their digest."""
    work = desk.folder / "taught" / named[2]
    split, tokens = work / "split", work / "tokens"
    shutil.rmtree(work, ignore_errors=True)
    for place in (split, tokens):
        place.mkdir(parents=True)
    write_parquet(split / "train.parquet", rows)
    write_parquet(split / "validation.parquet", validation)
    shutil.copyfile(context.runner.folder("split") / "ledger.jsonl", split / "ledger.jsonl")
    plan = msgspec.structs.replace(taught(context), method="sft", metric_rows=0, patience=None, keep="last", replay=None)
    tokenize(split, context.base, plan, tokens, context.progress.say)
    return _trained(context, plan, load_items(tokens / "train.npz"), load_items(tokens / "validation.npz"), named)


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
