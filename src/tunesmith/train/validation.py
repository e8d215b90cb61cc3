"""What a run is judged by along the way: the loss over its validation rows and, where one is handed in, the task's own metric.

Knows nothing about what a metric asks or how it rates.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.train.adapters import Trainable
from tunesmith.train.artifact import save_artifact
from tunesmith.train.checkpoint import TrainingState
from tunesmith.train.microbatch import Lanes, StepItems, evaluate
from tunesmith.train.objectives import Objective, report
from tunesmith.train.run import RunFolder


@dataclass(frozen=True, slots=True)
class Measure:
    """The task's own metric. `value(folder)` measures the model whose adapter (or weights) lie in `folder`; None when it cannot."""

    name: str
    higher_is_better: bool
    value: Callable[[Path], float | None]


@dataclass(frozen=True, slots=True)
class Validation:
    """Looks at the model as it is: on `batch` for the loss, through `measure` for the metric, which decides where there is one."""

    run: RunFolder
    trainable: Trainable
    objective: Objective
    batch: StepItems
    side: Lanes
    base: Path
    measure: Measure | None

    def look(self, state: TrainingState, **place: Any) -> TrainingState:
        """Report an evaluation at `place` (step, total_steps, epoch); the state with it, and with the best so far."""
        plan, step = self.run.manifest.resolved, place["step"]
        figures = report(evaluate(self.trainable, self.objective, self.batch, plan, self.side))
        named, value = {}, None
        if self.measure is not None:
            value = self._measured(self.measure)
            named = {"metric": self.measure.name, f"valid_{self.measure.name}": value}
        self.run.emit("evaluation", **place, **{f"valid_{key}": number for key, number in figures.items()}, **named)
        state = msgspec.structs.replace(state, valid_loss=figures["loss"], valid_metric=value, stale=state.stale + 1)
        if not self._is_best(state):
            return state
        return msgspec.structs.replace(state, best_loss=figures["loss"], best_metric=value, best_step=step, stale=0)

    def _measured(self, measure: Measure) -> float | None:
        """The metric of the model as it would be saved now; not a number counts as none."""
        folder = self.run.out / "measured"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
        value = measure.value(save_artifact(folder, self.base, self.trainable))
        shutil.rmtree(folder)
        return None if value is None or not math.isfinite(value) else value

    def _is_best(self, state: TrainingState) -> bool:
        if state.best_step is None:
            return True
        if self.measure is None:
            return state.best_loss is None or (state.valid_loss or 0.0) < state.best_loss
        if state.valid_metric is None or state.best_metric is None:
            return state.best_metric is None and state.valid_metric is not None
        gain = state.valid_metric - state.best_metric
        return gain > 0 if self.measure.higher_is_better else gain < 0
