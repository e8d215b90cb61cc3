"""Rows that ask the same in other words, by the cosine of their embeddings; knows nothing about encoders.

Another question than near-duplicates: about half of what this finds shares no text, and it is less exact. Off until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.rows import Row
from tunesmith.core.types import Record
from tunesmith.data.quality import Change, Rule
from tunesmith.data.text import comparison_text

Floats = np.ndarray[Any, np.dtype[np.float64]]
Encoder = Callable[[Sequence[str]], Floats]
BLOCK = 1_024


class SemanticDuplicates(Record, frozen=True):
    """Rows whose question and answer have embeddings with a cosine ≥ `threshold` to those of an earlier row that stays.

    `action`: 'drop' them, or 'keep' (the encoder is not asked then). `encoder`: a name of the catalogue.
    """

    action: Literal["drop", "keep"] = "keep"
    threshold: float = 0.95
    encoder: str = "minilm-l6-v2"


def semantic_duplicates(settings: SemanticDuplicates, encoder: Encoder | None) -> Rule:
    """The rule; `encoder` gives vectors (n × d). Raises ConfigError without one, or for a threshold outside (0, 1]."""
    if not 0 < settings.threshold <= 1:
        raise ConfigError(f"a cosine of {settings.threshold}", where="clean.semantic_duplicates", allowed="above 0 and up to 1")
    if encoder is None:
        raise ConfigError(
            "no encoder was brought for semantic duplicates", where="clean.semantic_duplicates", remedy="tunesmith data clean brings one"
        )

    def rule(rows: Sequence[Row]) -> Iterator[Change]:
        index, value = earlier(encoder([comparison_text(row) for row in rows]), settings.threshold)
        for i in np.flatnonzero(index >= 0).tolist():
            yield Change(i, "duplicate_of", f"cosine {value[i]:.3f}, threshold {settings.threshold}", other=int(index[i]))

    return rule


def earlier(vectors: Floats, threshold: float) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Floats]:
    """For each vector the nearest earlier one that stays, when its cosine is ≥ threshold (-1: it stays itself), and the cosine.

    n² products in blocks of BLOCK rows: 100,000 rows of 384 dimensions take minutes, not hours; memory is one block.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    n = len(unit)
    index, value, stays = np.full(n, -1, dtype=np.int64), np.zeros(n), np.ones(n, dtype=bool)
    for begin in range(0, n, BLOCK):
        block = unit[begin : begin + BLOCK]
        near = block @ unit[: begin + len(block)].T
        for i in range(len(block)):
            here = begin + i
            row = np.where(stays[:here], near[i, :here], -1.0)
            best = int(row.argmax()) if here else 0
            if here and row[best] >= threshold:
                index[here], value[here], stays[here] = best, row[best], False
    return index, value
