"""Evaluations as the store keeps them, and any other result that can be compared with them; asks nothing and judges nothing.

A word names one of: an id of the leaderboard (or how it begins), `run:ARM` (an arm of the project's finished run), a folder with
`evaluation.json`, a `samples_*.jsonl` of lm-evaluation-harness, an Inspect log (`.eval`, `.json`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.errors import NotFound, StoreError, UsageError
from tunesmith.core.rows import read_jsonl
from tunesmith.core.seal import checked
from tunesmith.core.stats import Interval
from tunesmith.core.types import Example, Record, Sampling
from tunesmith.evaluate.compare import Comparison, merged
from tunesmith.evaluate.metrics import Metric, metric
from tunesmith.evaluate.run import Evaluation, dataset_digest, load_evaluation
from tunesmith.flow.evaluation.metrics import build

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext


class KeptEvaluation(Record, frozen=True):
    """One evaluation as the store keeps it. `noise` is the standard deviation of a value over the seeds; `usd` what all of its answers cost
    and `paid_usd` what this run added; `opening` the how-manieth look at sealed rows this was (0: they are not sealed)."""

    id: str
    model: str
    data: str
    variant: str
    dataset_digest: str
    metrics: tuple[str, ...]
    options: dict[str, dict[str, Any]]
    sampling: Sampling
    seeds: tuple[int, ...]
    rows: int
    values: dict[str, float | None]
    intervals: dict[str, Interval | None]
    missing: dict[str, int]
    noise: dict[str, float]
    asked: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    created: float
    usd: float | None = None
    paid_usd: float | None = None
    opening: int = 0


@dataclass(frozen=True)
class Result:
    """An evaluation to look at: its runs (one a seed), its rows, which of them belong together, and its metrics."""

    name: str
    runs: list[Evaluation]
    examples: list[Example]
    metrics: list[Metric]
    clusters: dict[str, str] = field(default_factory=dict)
    record: KeptEvaluation | None = None

    @property
    def whole(self) -> Evaluation:
        """All runs as one: each row's scores averaged."""
        return merged(self.runs, self.metrics)


def kept_evaluations(folder: Path) -> list[KeptEvaluation]:
    """Every evaluation of `evaluations/`, the newest first."""
    evaluations = [msgspec.json.decode(path.read_bytes(), type=KeptEvaluation) for path in folder.glob("*/kept.json")]
    return sorted(evaluations, key=lambda evaluation: -evaluation.created)


def result(word: str, folder: Path, context: ProjectContext | None = None) -> Result | None:
    """The result that the word names, or None when it names none (perhaps a model). Raises UsageError for an id that is not unique."""
    place = Path(word).expanduser()
    if word.startswith("run:"):
        return _arm(word.removeprefix("run:"), context)
    if place.is_file() and place.suffix in (".jsonl", ".json", ".eval"):
        return _imported(place)
    if (place / "evaluation.json").is_file():
        return _folder(place)
    if re.fullmatch(r"[0-9a-f]{4,16}", word):
        folders = [path.parent for path in folder.glob(f"{word}*/kept.json")]
        if len(folders) > 1:
            raise UsageError(f"'{word}' begins {len(folders)} ids", allowed=", ".join(sorted(path.name for path in folders)))
        return load_kept(folder, folders[0].name) if folders else None
    return None


def arm_evaluations(context: ProjectContext, arms: Sequence[str]) -> dict[str, Evaluation]:
    """The finished evaluation of each arm of a run."""
    return {arm: load_evaluation(context.runner.folder(f"evaluate:{arm}")) for arm in arms}


def load_comparisons(folder: Path) -> dict[str, Comparison]:
    """What a run's stage `compare` wrote: the comparison with each baseline."""
    return msgspec.json.decode((folder / "comparisons.json").read_bytes(), type=dict[str, Comparison])


def load_kept(folder: Path, name: str) -> Result:
    """The evaluation of that id. Raises NotFound when the store has none."""
    path = folder / name / "kept.json"
    if not path.is_file():
        raise NotFound(f"no evaluation '{name}'", where=str(folder), remedy="tunesmith report lists them")
    record = msgspec.json.decode(checked(path).read_bytes(), type=KeptEvaluation)
    places = [folder / name / f"seed-{seed}" for seed in record.seeds] or [folder / name]
    rows = folder / "rows" / f"{record.dataset_digest}.jsonl"
    clusters = rows.with_suffix(".clusters.json")
    examples = list(read_jsonl(rows, Example))
    if dataset_digest(examples) != record.dataset_digest:
        raise StoreError(
            "the rows are not those that were asked", where=str(rows), remedy="evaluate again; kept answers are not asked again"
        )
    return Result(
        record.model,
        [load_evaluation(place) for place in places],
        examples,
        [build(metric_name, record.options.get(metric_name, {})) for metric_name in record.metrics],
        msgspec.json.decode(checked(clusters).read_bytes(), type=dict[str, str]) if clusters.is_file() else {},
        record,
    )


def finished_arms(context: ProjectContext) -> list[str]:
    """The arms of the project's run that were measured."""
    return [arm for arm in context.arms if context.runner.peek(f"evaluate:{arm}") is not None]


def _arm(arm: str, context: ProjectContext | None) -> Result:
    if context is None or arm not in context.arms or context.runner.peek(f"evaluate:{arm}") is None:
        done = finished_arms(context) if context else []
        raise NotFound(f"no finished arm '{arm}'", allowed=", ".join(done) or "none yet", remedy="tunesmith run")
    evaluation = load_evaluation(context.runner.folder(f"evaluate:{arm}"))
    asked = context.questions("test")
    return Result(arm, [evaluation], asked, [metric(metric_name) for metric_name in evaluation.metrics], context.clusters(asked))


def _imported(path: Path) -> Result:
    from tunesmith.evaluate.importers import inspect_log, lm_eval_log

    log = lm_eval_log(path, model=path.parent.name) if path.suffix == ".jsonl" else inspect_log(path)
    return Result(log.evaluation.model, [log.evaluation], log.examples, _plain(log.evaluation), _groups(log.examples))


def _folder(place: Path) -> Result:
    evaluation = load_evaluation(place)
    return Result(evaluation.model, [evaluation], [], _plain(evaluation))


def _plain(evaluation: Evaluation) -> list[Metric]:
    """Metrics that only read the scores that are there: higher is better, and shares where every score is one."""
    return [_scored(name, [score.value for score in evaluation.scores(name) if score.value is not None]) for name in evaluation.metrics]


def _scored(name: str, values: Sequence[float]) -> Metric:
    shares: dict[str, Any] = {} if all(0 <= value <= 1 for value in values) else {"low": float("-inf"), "high": float("inf")}
    return Metric(name=name, rate=lambda *_: None, **shares)


def _groups(examples: Sequence[Example]) -> dict[str, str]:
    return {row.id: row.group for row in examples if row.group is not None}
