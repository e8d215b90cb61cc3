"""Next tokens from logits: greedy, or drawn so that the draw depends on the row's seed and the step alone; knows nothing about models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NUCLEUS = 512  # candidates looked at before a full sort; almost every nucleus is smaller


def uniform(seed: int, step: int) -> float:
    """The number in [0, 1) that decides step `step` of the stream `seed` (Philox, counter-based, so no state is carried)."""
    return float(np.random.Generator(np.random.Philox(key=seed % 2**64, counter=step)).random())


def draw(logits: Tensor, temperature: float, top_p: float, number: float) -> int:
    """One id from `logits` [vocabulary] by inverse transform.

    The candidates stand in descending probability; the nucleus is the smallest set whose mass reaches `top_p` (Holtzman et al. 2020,
    arXiv:1904.09751). `number` in [0, 1) picks by its place in the nucleus' cumulative mass.
    """
    probabilities = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p >= 1.0:
        cumulative = probabilities.cumsum(0)
        return int(torch.searchsorted(cumulative, number * cumulative[-1], right=True).clamp_max(len(cumulative) - 1))
    values, ids = torch.topk(probabilities, min(_NUCLEUS, len(probabilities)))
    if float(values.sum()) < top_p:
        values, ids = torch.sort(probabilities, descending=True)
    cumulative = values.cumsum(0)
    size = int(torch.searchsorted(cumulative, torch.tensor(top_p, dtype=cumulative.dtype))) + 1
    size = min(size, len(values))
    place = int(torch.searchsorted(cumulative[:size], number * cumulative[size - 1], right=True))
    return int(ids[min(place, size - 1)])


def choose(logits: Tensor, draws: Sequence[tuple[float, float, int, int]]) -> list[int]:
    """One id for each row of `logits` [rows, vocabulary]; `draws` has (temperature, top_p, seed, step) of each row."""
    ids: list[int] = logits.argmax(dim=-1).tolist()
    for row, (temperature, top_p, seed, step) in enumerate(draws):
        if temperature > 0:
            ids[row] = draw(logits[row], temperature, top_p, uniform(seed, step))
    return ids


def log_probabilities(logits: Tensor, chosen: int, top: int) -> dict[str, Any]:
    """The natural log-probability of `chosen` under `logits` [vocabulary] and the `top` likeliest ids, before temperature and top_p."""
    log_p = torch.log_softmax(logits.double(), dim=-1)
    values, ids = torch.topk(log_p, top) if top else (log_p[:0], log_p[:0].long())
    return {"id": chosen, "logprob": float(log_p[chosen]), "top": list(zip(ids.tolist(), values.tolist(), strict=True))}
