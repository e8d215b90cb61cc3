"""The value of more data: the fine-tuned arm trained on nested parts of the training rows, measured on validation rows, and the law that
the scores follow. Opens no test row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from tunesmith.core.errors import TunesmithError
from tunesmith.core.types import Record
from tunesmith.decide.curve import fit_curve
from tunesmith.evaluate.prompts import as_given
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.decide import training
from tunesmith.flow.decide.build import Built
from tunesmith.flow.decide.desk import Asking, Desk

_ROWS = 200  # validation rows at most: a curve needs a finer measure than a choice


class Point(Record, frozen=True):
    """One training: on so many rows (0: the base as it is), with which seed, what it scored (0 to 1) on how many validation rows."""

    rows: int
    seed: int
    score: float
    seconds: float
    measured_on: int


def learning_curve(desk: Desk, built: Sequence[Built], skipped: dict[str, str]) -> dict[str, Any] | None:
    """The points, the law and what twice and ten times the rows would bring; None, with the reason in `skipped`, where nothing was trained
    or the budget is too small."""
    tuned = next((one for one in built if one.arm.kind == "fine-tuned"), None)
    base = next((one for one in built if one.arm.kind == "zero-shot" and tuned is not None and one.arm.base == tuned.arm.base), None)
    if tuned is None:
        skipped["learning curve"] = "no fine-tuned arm among the arms"
        return None
    if not desk.plan.learning.shares:
        skipped["learning curve"] = "left to the experiment without --quick" if desk.plan.quick else "decide.learning.shares names no part"
        return None
    context = desk.contexts[tuned.arm.base]
    points = [_point(desk, context, tuned, tuned.opened, tuned.choices["rows"], context.project.train.seed, tuned.train_s)]
    if base is not None:
        points.append(_point(desk, context, tuned, base.opened, 0, context.project.train.seed, 0.0))
    for seed in desk.plan.learning.seeds:
        for share in desk.plan.learning.shares:
            if short := desk.budget.short(share * tuned.train_s):
                skipped["learning curve"] = f"the part of {share:g} with seed {seed} was not trained: {short}"
                break
            made = training.on_part(context, training.subset(context, share, seed), seed)
            points.append(
                _point(desk, context, tuned, lambda ref=made.ref: context.models.lazy(ref, "a part"), made.rows, seed, made.seconds)
            )
    return curve_of(points)


def _point(desk: Desk, context: ProjectContext, tuned: Built, opened: Any, rows: int, seed: int, seconds: float) -> Point:
    asked = context.questions("validation")[:_ROWS]
    score = desk.quality(opened(), as_given, asked, tuned.sampling, Asking())
    return Point(rows=rows, seed=seed, score=score, seconds=seconds, measured_on=len(asked))


def curve_of(points: Sequence[Point]) -> dict[str, Any]:
    """The points with the law that fits them, and its band at every size to draw; the error in words where no law can be fitted."""
    ordered = sorted(points, key=lambda point: (point.rows, point.seed))
    sizes, scores = [point.rows for point in ordered], [point.score for point in ordered]
    found: dict[str, Any] = {"points": msgspec.to_builtins(ordered), "law": "cannot tell", "why": "", "band": [], "more": []}
    try:
        curve = fit_curve(sizes, scores)
    except TunesmithError as error:
        return found | {"why": error.what}
    full = max(sizes)
    band = [(float(n), *curve.predict(n)) for n in np.unique(np.geomspace(min(size for size in sizes if size), 10 * full, 24).round())]
    more = [{"times": times, "rows": times * full, **_named(curve.predict(times * full))} for times in (2, 10)]
    return found | {"law": curve.law, "band": band, "more": more}


def _named(prediction: tuple[float, float, float]) -> dict[str, float]:
    value, low, high = prediction
    return {"value": value, "low": low, "high": high}
