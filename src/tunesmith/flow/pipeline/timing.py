"""How fast this machine is at this run's own work: one training step and a few answers are timed before a long run, and what each stage
then takes corrects what is said of the rest. Knows the formulas of the estimate only by what they gave.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.types import Record, digest
from tunesmith.evaluate.likelihood import by_likelihood
from tunesmith.evaluate.prompts import as_given
from tunesmith.flow.context import TUNED
from tunesmith.flow.pipeline.answering_time import answering_seconds
from tunesmith.store.layout import user_folder

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext
    from tunesmith.train.estimate import Estimate
    from tunesmith.train.items import Item

# A shorter run is not worth the seconds that the timing takes. What was timed is believed for an hour, and while about as much else runs:
# figures that were timed beside other work were 2 times too slow for an idle machine.
LONG_S, KEPT_S, LOAD_DIFFERS = 60.0, 3_600.0, 0.4
# Tokens of training that are timed, after a few that are not; questions that are asked, and how far an answer is followed.
_STEP_TOKENS, _QUESTIONS, _FOLLOWED = 1_200, 24, 40
# A stage that took so many times as long as was said, or so many times less, corrects the rest aloud.
_OFF, _SAID_FROM_S = 1.5, 10.0


class Speeds(Record, frozen=True):
    """How many times as long as the formulas say training and answering take here; `filled` is the share of its allowed length that an
    answer of the base fills (None: not seen). `basis` says where this comes from, `load` how many processes a core wanted to run then."""

    train: float = 1.0
    answer: float = 1.0
    filled: float | None = None
    basis: str = "by formula, nothing was timed"
    at: float = 0.0
    load: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it was timed lately, on a machine that was about as busy as now."""
        return 0 <= time.time() - self.at < KEPT_S and abs(load_per_core() - self.load) < LOAD_DIFFERS


def load_per_core() -> float:
    """Processes that want to run, for each core: the mean of the last minute; 0 where the system does not say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return 0.0


def speeds(context: ProjectContext, training: Estimate, expected_s: float) -> Speeds:
    """What was timed and still holds, else timed now, where the run is long enough to be worth it."""
    if expected_s < LONG_S or training.plan.device != "cpu":
        return Speeds()
    file = user_folder() / "speeds" / f"{_key(context, training)}.json"
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=Speeds)
    except (OSError, msgspec.DecodeError):
        stored = None
    if stored is not None and stored.holds:
        return stored
    context.progress.say("timing one training step and a few answers, for the estimate")
    timed = _timed(context, training)
    write_atomic(file, msgspec.json.encode(timed))
    return timed


def _key(context: ProjectContext, training: Estimate) -> str:
    from tunesmith.train.facts import environment

    plan = training.plan
    asked = (context.base_digest, plan.method, plan.adapter, plan.dtype, plan.threads, plan.lanes, plan.batch_size, context.sampling())
    return digest(msgspec.to_builtins(asked), environment())


def _timed(context: ProjectContext, training: Estimate) -> Speeds:
    from tunesmith.train.items import load_items, usable
    from tunesmith.train.methods import METHODS

    plan, load = training.plan, load_per_core()
    train = 1.0
    if not METHODS[plan.method].graded:
        items, _, _ = usable(load_items(context.runner.folder("tokens") / "train.npz"), plan.max_length, plan.over_length)
        train = _training_factor(context, training, items)
    answer, filled = _answering_factor(context, training)
    basis = f"timed here: training takes {train:.2g} ×, answers {answer:.2g} × what the formulas say"
    return Speeds(train=train, answer=answer, filled=filled, basis=basis, at=time.time(), load=load)


def _training_factor(context: ProjectContext, training: Estimate, items: list[Item]) -> float:
    """Measured over expected seconds of one step's forward and backward passes, on the plan's lanes."""
    import torch

    from tunesmith.train.adapters import prepare
    from tunesmith.train.estimate import step_seconds
    from tunesmith.train.loss import chunked_nll
    from tunesmith.train.microbatch import Work, lanes, packs_of
    from tunesmith.train.packing import epoch_order

    plan = training.plan
    order = epoch_order(len(items), seed=plan.seed, epoch=0)
    chosen = [items[i] for i in order[: plan.batch_size].tolist()]
    tokens = sum(len(row.ids) for item in chosen for row in item.rows)
    for number in order[len(chosen) :].tolist():
        if tokens >= _STEP_TOKENS:
            break
        chosen.append(items[number])
        tokens += sum(len(row.ids) for row in items[number].rows)
    trainable = prepare(context.base, plan, [row for item in items for row in item.rows])
    trainable.model.train()
    parameters = list(trainable.parameters().values())

    def work(number: int, piece: Work) -> None:
        targets = torch.from_numpy(piece.pack.targets)
        loss, *_ = chunked_nll(trainable.states(piece.pack), trainable.head, targets, torch.ones(len(targets)))
        torch.autograd.grad(loss, parameters, allow_unused=True)

    with lanes(plan) as side:
        side.map(work, packs_of([chosen[0].rows] * plan.lanes, plan, shares=False), parallel=trainable.parallel)
        packs = packs_of([item.rows for item in chosen], plan, shares=trainable.route.tree)
        begin = time.perf_counter()
        side.map(work, packs, parallel=trainable.parallel)
        measured = time.perf_counter() - begin
    computed, trained = sum(len(piece.pack.ids) for piece in packs), sum(len(piece.pack.at) for piece in packs)
    return measured / step_seconds(training, context.base, computed, trained)


def _answering_factor(context: ProjectContext, training: Estimate) -> tuple[float, float | None]:
    """Measured over expected seconds of the base's answers to training questions; and how much of the allowed length they fill."""
    if by_likelihood(context.metrics, documents=context.documents):
        return 1.0, None
    sampling = context.sampling()
    questions = [as_given(row) for row in context.questions("train")[:_QUESTIONS]]
    model = context.model
    model.answer(questions[:1], msgspec.structs.replace(sampling, max_tokens=1))
    followed = min(_FOLLOWED, sampling.max_tokens)
    begin = time.perf_counter()
    answers = model.answer(questions, msgspec.structs.replace(sampling, max_tokens=followed))
    measured = time.perf_counter() - begin
    written = [answer.completion_tokens for answer in answers]
    read = sum(answer.prompt_tokens for answer in answers)
    expected = answering_seconds(context, training.rate, read=read, rows=len(answers), written=sum(written))
    lengths = [sampling.max_tokens if answer.finish_reason == "length" else answer.completion_tokens for answer in answers]
    return measured / expected, sum(lengths) / len(lengths) / sampling.max_tokens


@dataclass
class Expected:
    """What was said of the stages that wait, and how it came out. `seconds` by stage; what a kind of stage took corrects its others."""

    seconds: dict[str, float]
    _began: float = field(default_factory=time.monotonic)
    estimated_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.estimated_s = sum(self.seconds.values())

    def took(self, name: str, seconds: float) -> str:
        """Note a stage's real time; a sentence where what was said of the rest is corrected, else nothing."""
        before = self.seconds.pop(name, None)
        if before is None or max(before, seconds) < _SAID_FROM_S:
            return ""
        factor = seconds / max(before, 1e-9)
        kind = _kind(name)
        for other in self.seconds:
            if _kind(other) == kind:
                self.seconds[other] *= factor
        if 1 / _OFF <= factor <= _OFF or not self.seconds:
            return ""
        left = sum(self.seconds.values())
        return f"{name} took {in_words(seconds)}, {in_words(before)} were estimated; the rest takes about {in_words(left)}"

    def outcome(self) -> dict[str, Any]:
        """Seconds that were said and that it took since, and by what factor they differ (at least 1)."""
        took = time.monotonic() - self._began
        ratio = took / self.estimated_s if self.estimated_s else math.inf
        return {"estimated_s": self.estimated_s, "took_s": took, "error": max(ratio, 1 / ratio)}


def _kind(name: str) -> str:
    """Stages that answer are of one kind, but the tuned model's, which runs an adapter."""
    return "answer" if name.startswith("evaluate:") and name != f"evaluate:{TUNED}" else name


def in_words(seconds: float) -> str:
    """Seconds as a person says them."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
