"""The comparison stage: the tuned model against every baseline, and the gate. Knows no formula."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tunesmith.evaluate.compare import Comparison, compare
from tunesmith.evaluate.metrics import Metric, metric
from tunesmith.evaluate.run import Evaluation
from tunesmith.flow.context import TUNED, ProjectContext
from tunesmith.flow.evaluation.compare import gate
from tunesmith.flow.evaluation.results import arm_evaluations
from tunesmith.flow.runner import Output


def judge(context: ProjectContext, work: Path) -> Output:
    """Compare on the same rows, clusters as one observation; writes comparisons.json. The best baseline by the first metric decides."""
    metrics = [metric(name) for name in context.project.evaluate.metrics]
    evaluations = arm_evaluations(context, context.arms)
    tuned, baselines = evaluations.pop(TUNED), evaluations
    clusters = context.clusters(context.rows("test"))
    comparisons = {arm: _against(arm, baseline, tuned, metrics, clusters) for arm, baseline in baselines.items()}
    (work / "comparisons.json").write_bytes(msgspec.json.encode(comparisons))
    best = _best(baselines, metrics[0])
    (line,) = gate(comparisons[best], {rated.name: rated.better for rated in metrics}, context.project.gate)
    sentence = comparisons[best].metric(line.metric).sentence
    verdict = f"{sentence[:1].upper()}{sentence[1:]} Gate: {line.decision}, {line.reason}."
    return {"decision": line.decision, "verdict": verdict, "best_baseline": best, "gate": msgspec.structs.asdict(line)}


def _against(arm: str, baseline: Evaluation, tuned: Evaluation, metrics: list[Metric], clusters: dict[str, str]) -> Comparison:
    scores = [[score for row in side.rows for score in row.scores] for side in (baseline, tuned)]
    return compare(scores[0], scores[1], metrics=metrics, clusters=clusters, names=(arm, "the tuned model"))


def _best(baselines: dict[str, Evaluation], by: Metric) -> str:
    sign = -1.0 if by.better == "lower" else 1.0

    def value(arm: str) -> float:
        measured = baselines[arm].values[by.name]
        return float("-inf") if measured is None else sign * measured

    return max(baselines, key=value)
