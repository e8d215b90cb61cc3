"""What all trials of a study share: tokenised rows, questions, the base in memory; and one training and one evaluation on them.

Both are the functions of a run. A training stops at a share of its steps with a checkpoint, and the same call goes on from there to the
same bytes; answers that were given are not asked again. The test part is never looked at.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tunesmith.core.errors import TunesmithError
from tunesmith.core.memory import give_back
from tunesmith.core.model_ref import is_adapter
from tunesmith.core.types import Example
from tunesmith.evaluate.compare import Comparison, compare, merged
from tunesmith.evaluate.compare import estimate as interval_of
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.run import Evaluation
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.pipeline.evaluate_stage import rated
from tunesmith.flow.pipeline.training_stage import fit, taught
from tunesmith.flow.tuning.width import Meter, cpu_seconds
from tunesmith.train import items as training_items
from tunesmith.train.facts import gather
from tunesmith.train.items import Item
from tunesmith.train.plan import Facts, Plan

if TYPE_CHECKING:
    from tunesmith.core.stats import Interval

_BESIDE = 3.0  # the answering base stays in memory beside a training where so many times its size is free


class StudyStopped(Exception):
    """The study was asked to stop, or its time is up; what was trained is in a checkpoint."""


@dataclass(frozen=True)
class Trained:
    """A training, as far as it went: the folder of its weights, its validation loss there, and the tokens of all its steps."""

    weights: Path
    loss: float | None
    tokens: int


@dataclass
class _Course:
    """Where a training is, from what it tells."""

    label: str
    bar: Callable[[str, float, float], None]
    step: int = 0
    total: int = 0

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in ("start", "step"):
            self.step, self.total = event["step"], event["total_steps"]
            self.bar(self.label, self.step, self.total)


@dataclass
class StudyMaterials:
    """The materials of a study. `meter` is that of the trainings carried out last."""

    context: ProjectContext
    rows: int | None = None
    by_loss: bool = False  # a training is then looked at only after a step at which its validation loss is measured
    meter: Meter = field(default_factory=Meter)

    @cached_property
    def items(self) -> dict[str, list[Item]]:
        """The tokenised rows, read once."""
        folder = self.context.runner.folder("tokens")
        return {part: training_items.load_items(folder / f"{part}.npz") for part in ("train", "validation")}

    @cached_property
    def questions(self) -> list[Example]:
        """The validation rows that are asked."""
        return self.context.questions("validation")[: self.rows]

    @cached_property
    def clusters(self) -> dict[str, str]:
        """Which of them belong together."""
        asked = {row.id for row in self.questions}
        return self.context.clusters(row for row in self.context.rows("validation") if row.id in asked)

    @property
    def metric(self) -> Metric:
        """The metric that decides."""
        return self.context.metrics[0]

    @cached_property
    def plan(self) -> Plan:
        """The project's own plan."""
        return taught(self.context)

    @cached_property
    def facts(self) -> Facts:
        """What the rule behind each "auto" may know."""
        return gather(self.plan, self.items["train"], self.context.base)

    def proxy(self, share: float) -> dict[str, list[Item]]:
        """About that share of the training rows, whole near-duplicate clusters, the same for every trial."""
        items, clusters = self.items["train"], self.context.clusters(self.context.rows("train"))
        ids = [item.rows[0].example_id for item in items]
        group = [clusters.get(name, clusters.get(name.rpartition("/")[0], name)) for name in ids]  # pieces of a text are named ID/NUMBER
        sizes = Counter(group)
        names, chosen, rows = sorted(sizes), set[str](), 0
        for name in (names[i] for i in np.random.default_rng(0).permutation(len(names))):
            if not rows or rows + sizes[name] <= share * len(items):
                chosen.add(name)
                rows += sizes[name]
        few = [item for item, name in zip(items, group, strict=True) if name in chosen]
        return {"train": few, "validation": self.items["validation"]}

    def train(
        self, plan: Plan, work: Path, share: float, *, items: dict[str, list[Item]] | None = None, label: str, stop: Callable[[], bool]
    ) -> Trained:
        """Train to that share of the steps, on from where it was. Raises Stopped when `stop` says so before, and as `train.loop.train`."""
        from tunesmith.train.run import Paused

        there = _paused_at(work, share)
        if there is not None:
            return there
        self._make_room()
        course, meter = _Course(label, self.context.progress.bar), self.meter

        def tell(event: dict[str, Any]) -> None:
            course(event)
            meter(event)

        def enough() -> bool:
            seen = not self.by_loss or plan.eval_every is None or course.step % plan.eval_every == 0
            return stop() or (seen and course.step >= math.ceil(share * course.total))

        try:
            result = fit(self.context, plan, items or self.items, work, tell, enough)
        except Paused as pause:
            there = _paused_at(work, share)
            if there is None:
                raise StudyStopped from pause
            return there
        _drop_checkpoints(work)
        loss = getattr(result, "valid_loss", None)
        return Trained(Path(result.artifact), loss, _tokens(work))

    def together(self, trainings: Sequence[Callable[[], Trained]]) -> list[Trained | Exception]:
        """Each training's outcome, or what it raised; several are carried out side by side on one base."""
        self.meter = Meter(cpu_seconds if self.facts.device == "cpu" else time.monotonic)
        if len(trainings) > 1:
            from tunesmith.train.side_by_side import side_by_side

            return side_by_side(trainings)
        try:
            return [training() for training in trainings]
        except (TunesmithError, StudyStopped) as error:
            return [error]

    def _make_room(self) -> None:
        """The base that answers stays in memory where there is room for it beside a training; else it is loaded again later."""
        from tunesmith.train.estimate import available_bytes

        size, free = sum(path.stat().st_size for path in self.context.base.glob("*.safetensors")), available_bytes()
        if free is not None and free < _BESIDE * size:
            self.context.forget_model()
        give_back(cycles=True)

    def ask(self, weights: Path, work: Path, label: str) -> Evaluation:
        """The validation questions, asked of the model whose adapter or weights lie there; it is not kept in memory."""
        store = self.context.models.weights
        if not is_adapter(weights):
            model = store.model(label, weights)
            try:
                return rated(self.context, model, self.questions, work, label=label)
            finally:
                store.forget()
        model = store.model(label, self.context.base, weights)
        try:
            return rated(self.context, model, self.questions, work, label=label)
        finally:
            if model.adapter is not None:
                model.engine.adapters.unload(model.adapter)

    def interval(self, evaluation: Evaluation) -> Interval | None:
        """The interval of the metric that decides."""
        return interval_of(self.metric, evaluation.scores(self.metric.name), self.clusters)

    def compared(self, a: list[Evaluation], b: list[Evaluation], names: tuple[str, str], level: float) -> Comparison:
        """B against A row by row on the metric that decides; several evaluations of one plan are averaged."""
        return paired(self.metric, self.clusters, (a, b), names, level)


def paired(
    metric: Metric, clusters: dict[str, str], sides: tuple[list[Evaluation], list[Evaluation]], names: tuple[str, str], level: float
) -> Comparison:
    """The second side against the first, row by row on that metric; several evaluations of a side are averaged row by row."""
    first, second = (merged([_only(each, metric.name) for each in side], [metric]).scores(metric.name) for side in sides)
    return compare(first, second, metrics=[metric], clusters=clusters, names=names, level=level)


def _only(evaluation: Evaluation, name: str) -> Evaluation:
    """The evaluation with that metric alone."""
    at = evaluation.metrics.index(name)
    rows = tuple(msgspec.structs.replace(row, scores=(row.scores[at],)) for row in evaluation.rows)
    return msgspec.structs.replace(evaluation, metrics=(name,), rows=rows)


def _paused_at(work: Path, share: float) -> Trained | None:
    """The newest sound checkpoint of a training, where it lies at that share of the steps or after; None where training is to go on."""
    from tunesmith.train import checkpoint
    from tunesmith.train.run import reported

    if share >= 1 or (work / "result.json").is_file():
        return None
    events = reported(work)
    total = next((event["total_steps"] for event in events if event["event"] == "start"), None)
    for folder in checkpoint.checkpoints(work) if total else ():
        state = checkpoint.sound(folder)
        if state is not None and total is not None and state.step >= math.ceil(share * total):
            weights = folder if is_adapter(folder) else folder / "model"
            return Trained(weights, state.valid_loss, _tokens(work, state.step))
    return None


def _tokens(work: Path, step: int | None = None) -> int:
    """Tokens of the steps of a training, as far as it was reported."""
    from tunesmith.train.run import reported

    steps = {event["step"]: int(event.get("tokens", 0)) for event in reported(work) if event["event"] == "step"}
    return sum(tokens for number, tokens in steps.items() if step is None or number <= step)


def _drop_checkpoints(work: Path) -> None:
    """A training that is over is kept as its result alone: studies are long, and disks are not."""
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
