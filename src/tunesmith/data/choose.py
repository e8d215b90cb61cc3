"""What to label next: rows of a pool that a model is unsure of, that are like what went wrong, and that differ from each other and from
what is known; no labels needed.

Greedy k-centre (Sener and Savarese 2018) with each distance weighted by the row's uncertainty and by how much rows like it are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tunesmith.core.counted import counted
from tunesmith.core.errors import ConfigError
from tunesmith.data.topics import latent

Floats = np.ndarray[Any, np.dtype[np.float64]]


class RowToLabel(NamedTuple):
    """A row to label: its index in the pool, its uncertainty and how much it is wanted (0 to 1), its distance (1 − cosine) to all that was
    known or chosen."""

    row: int
    uncertainty: float
    wanted: float
    distance: float


def choose(
    pool: Sequence[str],
    count: int,
    *,
    known: Sequence[str] = (),
    uncertainty: Sequence[float] | None = None,
    wanted: Sequence[float] | None = None,
    vectors: tuple[Floats, Floats] | None = None,
) -> list[RowToLabel]:
    """Up to `count` rows of the pool in the order in which they should be labelled. Deterministic.

    `uncertainty`: for each row of the pool, from 0 (sure) to 1; None treats all alike. `wanted`: the same for how much rows like it are
    wanted (`like_failures`). `vectors`: embeddings of pool and known rows (n × d each) to be used instead of shared vocabulary. Raises
    ConfigError for wrong lengths or values.
    """
    if count < 0:
        raise ConfigError(f"{counted(count, 'row')} of a pool", allowed="a count from 0")
    unsure, asked_for = _weights("uncertainty", uncertainty, len(pool)), _weights("wanted", wanted, len(pool))
    weight = unsure * asked_for
    ours, theirs = _unit_vectors(pool, known, vectors)
    distance = np.full(len(pool), 2.0)
    for begin in range(0, len(theirs), 1_000):
        distance = np.minimum(distance, 1 - (ours @ theirs[begin : begin + 1_000].T).max(axis=1))
    chosen: list[RowToLabel] = []
    left = np.ones(len(pool), dtype=bool)
    for _ in range(min(count, len(pool))):
        value = np.where(left, weight * np.maximum(distance, 1e-9), -1.0)
        best = int(value.argmax())
        chosen.append(RowToLabel(best, float(unsure[best]), float(asked_for[best]), float(distance[best])))
        left[best] = False
        distance = np.minimum(distance, 1 - ours @ ours[best])
    return chosen


def like_failures(pool: Sequence[str], failures: Sequence[tuple[str, float]]) -> list[float]:
    """How much each row of the pool is wanted, 0 to 1: its likeness (cosine over shared vocabulary) to the failed question that it is most
    like, times that failure's weight as a share of the greatest. Raises ConfigError when there are no failures or none has weight."""
    greatest = max((weight for _, weight in failures), default=0.0)
    if greatest <= 0:
        raise ConfigError(f"{len(failures)} failures with a greatest weight of {greatest:g}", allowed="at least one, with a weight above 0")
    both = latent([*pool, *(text for text, _ in failures)])
    alike = np.clip(both[: len(pool)] @ both[len(pool) :].T, 0, 1) * (np.array([weight for _, weight in failures]) / greatest)
    return [float(value) for value in alike.max(axis=1)]


def _weights(name: str, given: Sequence[float] | None, rows: int) -> Floats:
    if given is None:
        return np.ones(rows)
    if len(given) != rows:
        raise ConfigError(f"{len(given)} values of {name} for {counted(rows, 'row')}", allowed="one a row")
    weights = np.asarray(given, dtype=np.float64)
    if rows and not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1):
        raise ConfigError(f"a value of {name} is no number from 0 to 1", allowed="0 to 1")
    return weights


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
    return [1 - float(np.exp(np.mean(tokens))) if len(tokens) else 1.0 for tokens in logprobs]
