"""What went wrong: wins and losses, failures in named groups with the training rows nearest to them, confusion; judges nothing anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.stats import Interval, wilson
from tunesmith.core.text_vectors import TextIndex
from tunesmith.core.types import Example, Record, Score
from tunesmith.evaluate.metrics.classes import label_pair
from tunesmith.evaluate.prompts import asked
from tunesmith.evaluate.run import Evaluation


class ChangedAnswer(Record, frozen=True):
    """A row that one model answered better than the other. `gain` is B's score minus A's."""

    example_id: str
    question: str
    reference: str
    a: str
    b: str
    gain: float


def changed(examples: Sequence[Example], a: Evaluation, b: Evaluation, metric: str) -> list[ChangedAnswer]:
    """Every row whose score differs, from the greatest loss to the greatest win. Raises ConfigError for evaluations of other rows."""
    _same_rows(examples, a, b)
    rows = [
        ChangedAnswer(example_id=e.id, question=asked(e), reference=e.answer, a=x.answer.text, b=y.answer.text, gain=t.value - s.value)
        for e, x, y, s, t in zip(examples, a.rows, b.rows, a.scores(metric), b.scores(metric), strict=True)
        if s.value is not None and t.value is not None and s.value != t.value
    ]
    return sorted(rows, key=lambda row: row.gain)


class Neighbour(Record, frozen=True):
    """A training row and its likeness to the question, from 0 to 1."""

    example_id: str
    similarity: float


class FailureGroup(Record, frozen=True):
    """Failures alike in words, named by the words that set them apart.

    `support` is the median likeness of the nearest training row (None: no training rows given), `nearest` the training rows most like
    each failure, in the order of `example_ids`.
    """

    name: str
    example_ids: tuple[str, ...]
    share: float
    support: float | None = None
    nearest: tuple[tuple[Neighbour, ...], ...] = ()


def failure_groups(
    examples: Sequence[Example],
    scores: Sequence[Score],
    *,
    train: Sequence[Example] = (),
    below: float = 1.0,
    k: int = 8,
    neighbours: int = 3,
) -> list[FailureGroup]:
    """Rows whose score is under `below`, grouped by their words; the largest group first. `share` is of all failures.

    With `train`, each failure gets its nearest training rows: a large group with low support is what to collect next, one with high
    support may have been taught wrongly.
    """
    failed = [e for e, s in zip(examples, scores, strict=True) if s.value is not None and s.value < below]
    if not failed:
        return []
    everyone = TextIndex([asked(example) for example in failed])
    label = everyone.clusters(min(k, max(1, len(failed) // 3)))
    near = _nearest(failed, train, neighbours) if train else []
    groups = []
    for c in np.unique(label):
        inside = label == c
        at = np.flatnonzero(inside)
        groups.append(
            FailureGroup(
                name=" ".join(everyone.telling(inside)) or "(no words in common)",
                example_ids=tuple(failed[int(i)].id for i in at),
                share=len(at) / len(failed),
                support=float(np.median([near[int(i)][0].similarity for i in at])) if near else None,
                nearest=tuple(near[int(i)] for i in at) if near else (),
            )
        )
    return sorted(groups, key=lambda group: -group.share)


def collect_next(groups: Sequence[FailureGroup]) -> list[tuple[FailureGroup, float]]:
    """Groups by how much new rows like them should help, with weights that add up to 1: the failures, times what is missing of support."""
    need = [len(group.example_ids) * (1 - (group.support or 0.0)) for group in groups]
    total = sum(need)
    weighted = [(group, missing / total if total else 1 / len(need)) for group, missing in zip(groups, need, strict=True)]
    return sorted(weighted, key=lambda pair: -pair[1])


def _nearest(failed: Sequence[Example], train: Sequence[Example], n: int) -> list[tuple[Neighbour, ...]]:
    alike = TextIndex([asked(example) for example in train]).similar([asked(example) for example in failed])
    order = np.argsort(-alike, axis=1, kind="stable")[:, :n]
    return [tuple(Neighbour(example_id=train[int(j)].id, similarity=float(alike[i, j])) for j in row) for i, row in enumerate(order)]


class ClassScore(Record, frozen=True):
    """One label: how many rows want it, and precision, recall (with Wilson's intervals) and F1; None where nothing says or wants it."""

    label: str
    wanted: int
    said: int
    precision: Interval | None
    recall: Interval | None
    f1: float


class Confusion(Record, frozen=True):
    """`table[i][j]` rows that want label i were answered with label j; the labels by how often they are wanted."""

    labels: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]
    classes: tuple[ClassScore, ...]


def confusion(scores: Sequence[Score]) -> Confusion:
    """Confusion and per-class scores from a label metric (accuracy, balanced_accuracy, macro_f1, mcc); missing rows are left out.

    An answer that names no known label counts under the empty label.
    """
    pairs = Counter(pair for score in scores if (pair := label_pair(score)) is not None)
    wanted, answered = Counter[str](), Counter[str]()
    for (want, say), n in pairs.items():
        wanted[want] += n
        answered[say] += n
    labels = sorted({*wanted, *answered}, key=lambda label: (-wanted[label], label))
    table = tuple(tuple(pairs[want, say] for say in labels) for want in labels)
    classes = [
        ClassScore(
            label=label,
            wanted=wanted[label],
            said=answered[label],
            precision=wilson(pairs[label, label], answered[label]) if answered[label] else None,
            recall=wilson(pairs[label, label], wanted[label]) if wanted[label] else None,
            f1=2 * pairs[label, label] / (wanted[label] + answered[label]),
        )
        for label in labels
    ]
    return Confusion(labels=tuple(labels), table=table, classes=tuple(classes))


def _same_rows(examples: Sequence[Example], *evaluations: Evaluation) -> None:
    ids = [example.id for example in examples]
    for evaluation in evaluations:
        if [row.example_id for row in evaluation.rows] != ids:
            raise ConfigError(
                f"the evaluation of {evaluation.model} is of other rows", where="failures", remedy="evaluate both on these rows"
            )
