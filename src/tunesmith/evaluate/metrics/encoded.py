"""Metrics that need a model handed in: similarity of embeddings, perplexity, bits per byte (or likelihoods in place of answers);
knows neither encoder nor scorer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tunesmith.core.types import Answer, Example, Score
from tunesmith.evaluate.metrics.base import Floats, Measured, Metric, Pool, ratio, register, stacked

Encoder = Callable[[Sequence[str]], NDArray[np.floating]]
Scorer = Callable[[Sequence[Example]], Sequence[tuple[float, int]]]


@register("embedding_similarity")
def embedding_similarity(encoder: Encoder) -> Metric:
    """Cosine of the embeddings of answer and reference, (n, d) from `encoder`. Range −1 to 1, higher is better, mean."""

    def many(examples: Sequence[Example], answers: Sequence[Answer]) -> list[float | Measured | None]:
        if not examples:
            return []
        answered = np.asarray(encoder([answer.text for answer in answers]), dtype=np.float64)
        wanted = np.asarray(encoder([example.answer for example in examples]), dtype=np.float64)
        lengths = np.linalg.norm(answered, axis=1) * np.linalg.norm(wanted, axis=1)
        return [float(x) for x in np.clip(ratio((answered * wanted).sum(axis=1), lengths, 0.0), -1, 1)]

    return Metric(name="embedding_similarity", rate=lambda e, a: many([e], [a])[0], low=-1.0, many=many)


def _told(_: Sequence[Example], answers: Sequence[Answer]) -> list[tuple[float, int] | None]:
    """(nats, tokens) of answers that are likelihoods (`evaluate.likelihood`); None for one that is words."""
    costs = [answer.logprobs[0] if len(answer.logprobs) == 1 else {} for answer in answers]
    return [(float(cost["nats"]), int(cost["tokens"])) if cost.keys() == {"nats", "tokens"} else None for cost in costs]


def _likelihood(
    name: str, unit: str, scorer: Scorer | None, size: Callable[[Example, int], int], value: Callable[[Floats], Floats]
) -> Metric:
    def many(examples: Sequence[Example], answers: Sequence[Answer]) -> list[float | Measured | None]:
        rated: list[float | Measured | None] = []
        costs = _told(examples, answers) if scorer is None else scorer(examples)
        for example, cost in zip(examples, costs, strict=True):
            n = size(example, cost[1]) if cost is not None else 0
            rated.append(Measured(float(value(np.array([cost[0], n]))), (cost[0], float(n))) if cost is not None and n else None)
        return rated

    def pool(scores: Sequence[Score]) -> Pool:
        return Pool(stacked(scores, 2), value)

    return Metric(
        name=name,
        rate=lambda e, a: many([e], [a])[0],
        high=np.inf,
        better="lower",
        kind="pooled",
        pool=pool,
        unit=unit,
        many=many,
        rates="likelihood" if scorer is None else "answers",
    )


@register("perplexity")
def perplexity(scorer: Scorer | None = None) -> Metric:
    """exp of the nats a token of the references, which the evaluation asks of a local model; `scorer` gives (nats, tokens) of each instead.

    Range 1 and up, lower is better, pooled over tokens. Comparable only between models with one tokenizer; else `bits_per_byte`.
    """
    return _likelihood("perplexity", "", scorer, lambda _, tokens: tokens, lambda sums: np.exp(ratio(sums[..., 0], sums[..., 1])))


@register("bits_per_byte")
def bits_per_byte(scorer: Scorer | None = None) -> Metric:
    """Bits (nats over ln 2) a UTF-8 byte of the references; `scorer` as for `perplexity`. Range 0 and up, lower is better, pooled."""
    return _likelihood(
        "bits_per_byte",
        "bits/byte",
        scorer,
        lambda example, _: len(example.answer.encode()),
        lambda sums: ratio(sums[..., 0], sums[..., 1]) / math.log(2),
    )
