"""Both answers of an experiment's requests scored, the one that was shown and the copy's, by a judge that compares them or by a metric that
rates each. What is scored is kept once, where no client's words are."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tunesmith.core.errors import UsageError
from tunesmith.core.experiment import JUDGED, Experiment
from tunesmith.core.types import Answer, Example, Interaction, Record, ShadowAnswer, digest
from tunesmith.evaluate.judge import pairwise
from tunesmith.flow.evaluation.run import Bench
from tunesmith.flow.experiments import latest
from tunesmith.flow.scoring import asked
from tunesmith.store.interactions import Interactions
from tunesmith.store.quality import KeptScore, QualityScores
from tunesmith.store.shadows import ShadowAnswers

_Pair = tuple[Interaction, ShadowAnswer]


class ScoredPairs(Record, frozen=True):
    """`fresh` pairs were scored under `name`, `missing` of them without a readable score; `left` wait for the next call."""

    name: str
    variant: str
    fresh: int
    missing: int
    left: int


def score_pairs(alias: str, at: Bench, *, judge: str | None = None, metric: str | None = None, most: int = 200) -> ScoredPairs:
    """Score at most so many requests of the alias's experiment whose copy was answered, and that were not scored by this name before; which
    ones is drawn by their ids.

    A `judge` (a word for a model) compares both answers in both orders; a `metric` rates each. Raises UsageError for neither or both, and
    for an experiment without copies; NotFound for what is not there.
    """
    if (judge is None) == (metric is None):
        raise UsageError(
            "a judge and a metric" if judge is not None else "neither a judge nor a metric", allowed="--judge MODEL, or --metric NAME"
        )
    experiment = latest(alias, at.store)
    copied, name = _copied(experiment), metric or "judge"
    if judge is not None and experiment.plan.design != "pairs":
        raise UsageError("a judge compares pairs, and users are drawn here", allowed="--metric NAME", remedy="--design pairs")
    kept = QualityScores(at.store)
    waiting = _waiting(experiment, copied, at, {each.interaction for each in kept.of(alias, f"{JUDGED}:{name}@{copied}")})
    chosen = sorted(waiting, key=lambda pair: digest(pair[0].id))[:most]
    both = _judged(judge, chosen, at) if judge is not None else _rated(name, chosen)
    instrument = digest(name, judge and at.models.resolve(judge).digest, size=4)
    for variant, values in (("", [first for first, _ in both]), (f"@{copied}", [second for _, second in both])):
        rows = [
            KeptScore(
                interaction=row.id, instrument=f"{JUDGED}:{name}{variant}@{instrument}", alias=alias, metric=f"{JUDGED}:{name}{variant}",
                answered=row.created, scored=time.time(), golden=False, value=value,
            )
            for (row, _), value in zip(chosen, values, strict=True)
        ]  # fmt: skip
        kept.put(rows)
    missing = sum(first is None or second is None for first, second in both)
    return ScoredPairs(name=name, variant=copied, fresh=len(chosen), missing=missing, left=len(waiting) - len(chosen))


def _copied(experiment: Experiment) -> str:
    """The variant that answers copies. Raises UsageError where none does."""
    plan = experiment.plan
    if plan.design == "pairs":
        return plan.treatment
    if not plan.asks_baseline:
        raise UsageError(
            f"nobody answers copies in {experiment.id}", allowed="--design pairs, or --covariate judged:NAME@CONTROL",
            remedy="begin it so",
        )  # fmt: skip
    return plan.control


def _waiting(experiment: Experiment, copied: str, at: Bench, scored: set[str]) -> list[_Pair]:
    copies = {
        each.interaction: each
        for each in ShadowAnswers(at.store).of(experiment.alias)
        if each.variant == copied and not each.skipped and not each.error
    }
    rows = Interactions(at.store).answered({"experiment": experiment.id})
    return [(row, copies[row.id]) for row in rows if row.id in copies and row.id not in scored]


def _answers(pairs: Sequence[_Pair]) -> tuple[list[Example], list[Answer], list[Answer]]:
    shown = [asked(row) for row, _ in pairs]
    copies = [Answer(text=copy.answer, tool_calls=copy.tool_calls, completion_tokens=copy.completion_tokens) for _, copy in pairs]
    return [example for example, _ in shown], [answer for _, answer in shown], copies


def _judged(word: str, pairs: Sequence[_Pair], at: Bench) -> list[tuple[float | None, float | None]]:
    """The share of the win of the answer that was shown, and of the copy's."""
    examples, shown, copies = _answers(pairs)
    verdicts = pairwise(at.models.resolve(word), examples, shown, copies, cache=at.folder / "answers" / "judge.jsonl")
    return [(None if each.value is None else 1 - each.value, each.value) for each in verdicts]


def _rated(name: str, pairs: Sequence[_Pair]) -> list[tuple[float | None, float | None]]:
    from tunesmith.evaluate.metrics import metric

    rate = metric(name)
    examples, shown, copies = _answers(pairs)
    return [(a.value, b.value) for a, b in zip(rate.rows(examples, shown), rate.rows(examples, copies), strict=True)]
