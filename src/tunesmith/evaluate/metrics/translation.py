"""BLEU from sacrebleu's counts and chrF with its values, from statistics that add up; knows no other translation metric.

A corpus value is a function of summed n-gram counts, so an interval resamples rows of counts and never counts an n-gram again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from tunesmith.core.load import need
from tunesmith.core.types import Answer, Example, Score
from tunesmith.evaluate.metrics.base import Floats, Measured, Metric, Pool, ratio, register, stacked
from tunesmith.evaluate.metrics.text import references

ORDERS = 4
CHARACTERS = 6
BETA = 2.0


@lru_cache(maxsize=8)
def _bleu(tokenize: str) -> Any:
    return need("sacrebleu.metrics", extra="eval").BLEU(tokenize=tokenize, effective_order=True)


def bleu_statistics(answer: str, rights: Sequence[str], tokenize: str = "13a") -> tuple[float, ...]:
    """Length said, length of the closest reference, matched and possible n-grams for n = 1 to 4: sacrebleu's counts (Papineni 2002)."""
    counted = _bleu(tokenize).sentence_score(answer, list(rights))
    return tuple(map(float, (counted.sys_len, counted.ref_len, *counted.counts, *counted.totals)))


def bleu_value(sums: Floats, effective: bool = False) -> Floats:
    """BLEU, 0 to 100, of summed statistics (…, 10); `effective` leaves out orders longer than the text (for single sentences).

    Orders without a match get sacrebleu's "exp" smoothing (Chen & Cherry 2014, method 3).
    """
    answered, reference, matched, possible = sums[..., 0], sums[..., 1], sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    there = possible > 0
    halvings = np.cumsum((matched == 0) & there, axis=-1)
    precision = np.where(matched > 0, ratio(matched, possible, 0.0), ratio(0.5**halvings, possible, 0.0))
    logs = np.where(there, np.log(np.where(there, precision, 1.0)), 0.0)
    orders = there.sum(axis=-1) if effective else np.full(answered.shape, ORDERS)
    brevity = np.where(answered < reference, np.exp(1 - ratio(reference, answered, np.inf)), 1.0)
    value = 100 * brevity * np.exp(ratio(logs.sum(axis=-1), orders.astype(np.float64), 0.0))
    scored = (matched.sum(axis=-1) > 0) & (effective | there.all(axis=-1))
    return np.where(scored, value, 0.0)


def _pool(width: int, value: Callable[[Floats], Floats], scores: Sequence[Score]) -> Pool:
    return Pool(stacked(scores, width), value)


@register("bleu")
def bleu(tokenize: str = "13a") -> Metric:
    """BLEU of the corpus as sacrebleu has it (Papineni 2002, Post 2018). Range 0 to 100, higher is better, pooled.

    Signature: `case:mixed|eff:no|tok:13a|smooth:exp`; `tokenize` is one of sacrebleu's. A row's value is its sentence BLEU (eff:yes).
    """

    def rate(example: Example, answer: Answer) -> Measured:
        counts = bleu_statistics(answer.text, references(example), tokenize)
        return Measured(float(bleu_value(np.array(counts), effective=True)), counts)

    return Metric(name="bleu", rate=rate, high=100.0, kind="pooled", pool=partial(_pool, 2 + 2 * ORDERS, bleu_value))


def chrf_statistics(answer: str, right: str) -> tuple[float, ...]:
    """Character n-grams said, wanted and shared for n = 1 to 6, white space left out: 18 counts (Popović 2015)."""
    answered, reference = "".join(answer.split()), "".join(right.split())
    counts: list[float] = []
    for n in range(1, CHARACTERS + 1):
        first, second = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (answered, reference))
        shared = sum(count if count <= second[gram] else second[gram] for gram, count in first.items() if gram in second)
        # sacrebleu leaves an order out of the answer's count where the reference has none of that length.
        counts += [float(max(0, len(answered) - n + 1) if second else 0), float(max(0, len(reference) - n + 1)), float(shared)]
    return tuple(counts)


def chrf_value(sums: Floats) -> Floats:
    """chrF2, 0 to 100, of summed statistics (…, 18): F with beta 2 of precision and recall, each averaged over the orders that occur."""
    answered, reference, shared = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    there = (answered > 0) & (reference > 0)
    orders = there.sum(axis=-1).astype(np.float64)
    precision = ratio(np.where(there, ratio(shared, answered, 0.0), 0.0).sum(axis=-1), orders, 0.0)
    recall = ratio(np.where(there, ratio(shared, reference, 0.0), 0.0).sum(axis=-1), orders, 0.0)
    return 100 * ratio((1 + BETA**2) * precision * recall, BETA**2 * precision + recall, 0.0)


@register("chrf")
def chrf() -> Metric:
    """chrF2 of the corpus as sacrebleu has it (Popović 2015), the best reference of each row. Range 0 to 100, higher is better, pooled.

    Signature: `case:mixed|eff:yes|nc:6|nw:0|space:no`.
    """

    def rate(example: Example, answer: Answer) -> Measured:
        each = [chrf_statistics(answer.text, right) for right in references(example)]
        values = [float(chrf_value(np.array(counts))) for counts in each]
        best = int(np.argmax(values))
        return Measured(values[best], each[best])

    return Metric(name="chrf", rate=rate, high=100.0, kind="pooled", pool=partial(_pool, 3 * CHARACTERS, chrf_value))
