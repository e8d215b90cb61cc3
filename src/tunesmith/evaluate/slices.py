"""Where two models differ and where one is weak: scores by slice, with tests corrected over all slices; knows nothing of why.

A slicer names the slice of every row. Slices too small to say anything are shown and not tested, so that they cost the others no power.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.stats import Difference, Interval, holm
from tunesmith.core.text_vectors import TextIndex
from tunesmith.core.types import Example, Record, Score
from tunesmith.evaluate.compare import compare, estimate
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.prompts import asked
from tunesmith.evaluate.run import Evaluation

Slicer = Callable[[Sequence[Example]], Sequence[str]]

SMALLEST = 10


class Slice(Record, frozen=True):
    """One slice under one metric. `a` and `b` are the metric's numbers over the slice (`a` None: one model only).

    `interval` is of `b`, `difference` of B minus A over the rows that both have a score for; None where those are fewer than `SMALLEST`.
    `p_adjusted` is Holm's over all tested slices of the table.
    """

    dimension: str
    name: str
    metric: str
    n: int
    a: float | None
    b: float | None
    interval: Interval | None = None
    difference: Difference | None = None
    p_adjusted: float | None = None


def by_meta(key: str) -> Slicer:
    """The value of `meta[key]`; "(none)" where it is absent."""
    return lambda examples: [str(example.meta.get(key, "(none)")) for example in examples]


def by_label(examples: Sequence[Example]) -> list[str]:
    """The row's label."""
    return [example.label if example.label is not None else "(none)" for example in examples]


def by_length(examples: Sequence[Example]) -> list[str]:
    """Thirds of the question's length in words."""
    lengths = np.array([len(asked(example).split()) for example in examples])
    low, high = np.quantile(lengths, [1 / 3, 2 / 3])
    names = (f"up to {low:.0f} words", f"{low:.0f} to {high:.0f} words", f"over {high:.0f} words")
    return [names[int(length > low) + int(length > high)] for length in lengths]


def by_cluster(k: int = 8, seed: int = 0) -> Slicer:
    """Groups of questions alike in words, named by the words that set them apart."""

    def names(examples: Sequence[Example]) -> list[str]:
        index = TextIndex([asked(example) for example in examples])
        label = index.clusters(k, seed)
        known = {int(c): " ".join(index.telling(label == c)) or f"cluster {c}" for c in np.unique(label)}
        return [known[int(c)] for c in label]

    return names


def slices(
    examples: Sequence[Example], metrics: Sequence[Metric], slicers: Mapping[str, Slicer], b: Evaluation, a: Evaluation | None = None
) -> list[Slice]:
    """Every slice under every metric, those with the smallest adjusted p-value first, then those where B is weakest.

    Rows that share a `group` are clustered. Raises ConfigError when an evaluation is of other rows.
    """
    for evaluation in (a, b):
        if evaluation is not None and [row.example_id for row in evaluation.rows] != [example.id for example in examples]:
            raise ConfigError(
                f"the evaluation of {evaluation.model} is of other rows", where="slices", remedy="evaluate both on these rows"
            )
    table = []
    for dimension, slicer in slicers.items():
        names = slicer(examples)
        for name in sorted(set(names)):
            inside = [i for i, own in enumerate(names) if own == name]
            groups = [examples[i].group or examples[i].id for i in inside]
            for metric in metrics:
                after = [b.scores(metric.name)[i] for i in inside]
                before = [a.scores(metric.name)[i] for i in inside] if a is not None else None
                table.append(_slice(dimension, name, metric, groups, before, after))
    return sorted(_adjusted(table), key=lambda s: (s.p_adjusted if s.p_adjusted is not None else 2, s.b if s.b is not None else 2))


def _slice(dimension: str, name: str, metric: Metric, groups: Sequence[str], before: list[Score] | None, after: list[Score]) -> Slice:
    there = [i for i, score in enumerate(after) if score.value is not None and (before is None or before[i].value is not None)]
    clusters = {after[i].example_id: groups[i] for i in there}
    rated = [after[i] for i in there]
    enough = len(there) >= SMALLEST and len(set(clusters.values())) > 1
    compared = compare([before[i] for i in there], rated, metrics=[metric], clusters=clusters).metrics[0] if enough and before else None
    return Slice(
        dimension=dimension,
        name=name,
        metric=metric.name,
        n=len(after),
        a=metric.value(before) if before is not None else None,
        b=metric.value(after),
        interval=compared.b if compared else estimate(metric, rated, clusters) if enough else None,
        difference=compared.difference if compared else None,
    )


def _adjusted(table: Sequence[Slice]) -> list[Slice]:
    tested = [i for i, line in enumerate(table) if line.difference is not None]
    p = holm([d.p_value for i in tested if (d := table[i].difference) is not None])
    adjusted = dict(zip(tested, (float(value) for value in p), strict=True))
    return [_with_p(line, adjusted.get(i)) for i, line in enumerate(table)]


def _with_p(line: Slice, p: float | None) -> Slice:
    return msgspec.structs.replace(line, p_adjusted=p)
