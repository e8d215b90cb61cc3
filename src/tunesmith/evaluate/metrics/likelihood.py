"""How well a model foresees a text: bits a byte and perplexity; knows nothing about how the likelihood was measured.

Both are pooled: the whole set's nats over the whole set's bytes or tokens, so that long documents count as much as they are long.
The first token of a document is given, not foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tunesmith.core.types import Answer, Example, Score
from tunesmith.evaluate.metrics.base import Floats, Measured, Pool, measured, ratio, ratio_pool, stacked


def _nats(answer: Answer) -> tuple[float, float] | None:
    """(nats, tokens) of an answer that is a likelihood; None for any other."""
    if len(answer.logprobs) != 1 or answer.logprobs[0].keys() != {"nats", "tokens"}:
        return None
    return float(answer.logprobs[0]["nats"]), float(answer.logprobs[0]["tokens"])


def _perplexity_pool(scores: Sequence[Score]) -> Pool:
    def value(sums: Floats) -> Floats:
        return np.asarray(np.exp(ratio(sums[..., 0], sums[..., 1])))

    return Pool(stacked(scores, 2), value)


@measured("bits_per_byte", high=np.inf, better="lower", kind="pooled", pool=ratio_pool, unit="bits", rates="likelihood")
def bits_per_byte(example: Example, answer: Answer) -> Measured | None:
    """Bits that the text costs the model, per byte of UTF-8: comparable between models with other tokenizers. Range 0 and up, lower is
    better, pooled. Missing where the model answered instead."""
    cost = _nats(answer)
    size = len(example.answer.encode())
    if cost is None or not size:
        return None
    bits = cost[0] / math.log(2)
    return Measured(bits / size, (bits, float(size)))


@measured("perplexity", low=1.0, high=np.inf, better="lower", kind="pooled", pool=_perplexity_pool, rates="likelihood")
def perplexity(example: Example, answer: Answer) -> Measured | None:
    """e to the mean nats a token: among how many tokens the model is undecided. Comparable only with one tokenizer. Range 1 and up, lower
    is better, pooled. Missing where the model answered instead."""
    cost = _nats(answer)
    if cost is None or not cost[1]:
        return None
    return Measured(math.exp(cost[0] / cost[1]), cost)
