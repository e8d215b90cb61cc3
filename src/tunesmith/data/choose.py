"""What to label next: rows of a pool that a model is unsure of and that differ from each other and from what is known; no labels needed.

Greedy k-centre (Sener and Savarese 2018) with each distance weighted by the row's uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.data.topics import latent

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Choice(NamedTuple):
    """A row to label: its index in the pool, its uncertainty (0 to 1), its distance (1 − cosine) to all that was known or chosen."""

    row: int
    uncertainty: float
    distance: float


def choose(
    pool: Sequence[str],
    count: int,
    *,
    known: Sequence[str] = (),
    uncertainty: Sequence[float] | None = None,
    vectors: tuple[Floats, Floats] | None = None,
) -> list[Choice]:
    """Up to `count` rows of the pool in the order in which they should be labelled. Deterministic.

    `uncertainty`: for each row of the pool, from 0 (sure) to 1; None treats all alike. `vectors`: embeddings of pool and known rows
    (n × d each) to be used instead of shared vocabulary. Raises ConfigError for wrong lengths or values.
    """
    if count < 0 or (uncertainty is not None and len(uncertainty) != len(pool)):
        raise ConfigError(f"{count} rows of a pool of {len(pool)}", allowed="a count from 0, and one uncertainty a row")
    weight = np.ones(len(pool)) if uncertainty is None else np.asarray(uncertainty, dtype=np.float64)
    if len(weight) and not (np.isfinite(weight).all() and weight.min() >= 0 and weight.max() <= 1):
        raise ConfigError("an uncertainty is no number from 0 to 1", allowed="0 (sure) to 1")
    ours, theirs = _unit_vectors(pool, known, vectors)
    distance = np.full(len(pool), 2.0)
    for begin in range(0, len(theirs), 1_000):
        distance = np.minimum(distance, 1 - (ours @ theirs[begin : begin + 1_000].T).max(axis=1))
    chosen: list[Choice] = []
    left = np.ones(len(pool), dtype=bool)
    for _ in range(min(count, len(pool))):
        value = np.where(left, weight * np.maximum(distance, 1e-9), -1.0)
        best = int(value.argmax())
        chosen.append(Choice(best, float(weight[best]), float(distance[best])))
        left[best] = False
        distance = np.minimum(distance, 1 - ours @ ours[best])
    return chosen


def _unit_vectors(pool: Sequence[str], known: Sequence[str], vectors: tuple[Floats, Floats] | None) -> tuple[Floats, Floats]:
    if vectors is None:
        both = latent([*pool, *known]) if len(pool) + len(known) > 1 else np.zeros((len(pool) + len(known), 1))
        return both[: len(pool)], both[len(pool) :]
    if len(vectors[0]) != len(pool) or len(vectors[1]) != len(known):
        raise ConfigError(f"{len(vectors[0])} and {len(vectors[1])} vectors for {len(pool)} and {len(known)} rows", allowed="one a row")
    ours, theirs = (np.asarray(side, dtype=np.float64) for side in vectors)
    return ours / np.maximum(np.linalg.norm(ours, axis=1, keepdims=True), 1e-12), (
        theirs / np.maximum(np.linalg.norm(theirs, axis=1, keepdims=True), 1e-12) if len(theirs) else theirs
    )


def uncertainty_of(logprobs: Sequence[Sequence[float]]) -> list[float]:
    """1 − the geometric mean probability of each answer's tokens (nats in, 0 to 1 out): what a sampled answer says of its own sureness."""
    return [1 - float(np.exp(np.mean(one))) if len(one) else 1.0 for one in logprobs]
