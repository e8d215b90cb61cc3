"""Rows that say the same in other words, by the cosine of their embeddings: duplicates, and leaks between the parts of a split; knows
nothing about encoders.

Another question than near-duplicates: about half of what this finds shares no text, and it is less exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tunesmith.core.errors import ConfigError, GateRefused
from tunesmith.core.rows import Row
from tunesmith.core.stats import wilson
from tunesmith.core.types import Record
from tunesmith.data.text import comparison_text

Floats = np.ndarray[Any, np.dtype[np.float64]]
Encoder = Callable[[Sequence[str]], Floats]
BLOCK = 1_024
# The encoder sees so many training rows for each held-out row, if their rough cosine is at most SLACK below the threshold. On two real
# sets that finds all 32 pairs with a cosine ≥ 0.95 that comparing all with all finds.
CANDIDATES, SLACK = 2, 0.1


class SemanticDuplicates(Record, frozen=True):
    """Rows whose question and answer have embeddings with a cosine ≥ `threshold` to those of an earlier row that stays.

    `action`: 'drop' them, or 'keep' (the encoder is not asked then). `encoder`: a name of the catalogue.
    """

    action: Literal["drop", "keep"] = "keep"
    threshold: float = 0.95
    encoder: str = "minilm-l6-v2"


def earlier(vectors: Floats, threshold: float) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Floats]:
    """For each vector the nearest earlier one that stays, when its cosine is ≥ threshold (-1: it stays itself), and the cosine.

    n² products in blocks of BLOCK rows: 100,000 rows of 384 dimensions take minutes, not hours; memory is one block.
    """
    unit = _unit(vectors)
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


class SemanticLeakage(Record, frozen=True):
    """Held-out rows that say the same as a training row in other words: a cosine ≥ `threshold` between their questions and answers.

    `action`: 'auto' measures when the encoder is on this machine, 'require' fetches it where it is not, 'off' does not measure. More than
    the share `max_share` is refused (by the lower end of its interval); it is not 0, since rows of one task are alike in meaning without
    being copies. `most`: so many rows of each held-out part are looked at, drawn by their ids.
    """

    action: Literal["auto", "require", "off"] = "auto"
    threshold: float = 0.95
    max_share: float = 0.1
    encoder: str = "minilm-l6-v2"
    most: int = 100


class Overlap(Record, frozen=True):
    """Of `looked_at` held-out rows `found` say the same as a training row. `why` tells why nothing was measured. `examples`: up to ten
    (held-out origin, training origin, cosine), the most similar first."""

    looked_at: int
    found: int
    threshold: float
    why: str = ""
    examples: tuple[tuple[str, str, float], ...] = ()

    @property
    def share(self) -> float:
        """Leaked share of the rows that were looked at, from 0 to 1."""
        return self.found / self.looked_at if self.looked_at else 0.0


def overlaps(
    train: Sequence[Row], held_out: Mapping[str, Sequence[Row]], settings: SemanticLeakage, rough: Encoder, encoder: Encoder
) -> dict[str, Overlap]:
    """The overlap of each held-out part with the training rows.

    `rough` is cheap and sees every row; `encoder` sees only the pairs that may be near by it. Rows with other numbers do not say the same,
    whatever an encoder makes of them: "12 · 7?" and "12 · 8?", order 4711 and order 4712. Memory is one block of vectors.
    Raises ConfigError for a threshold outside (0, 1].
    """
    if not 0 < settings.threshold <= 1:
        raise ConfigError(f"a cosine of {settings.threshold}", where="split.semantic", allowed="above 0 and up to 1")
    asked = {name: sorted(rows, key=lambda row: row.id)[: settings.most] for name, rows in held_out.items()}
    flat = [row for rows in asked.values() for row in rows]
    near = _candidates([comparison_text(row) for row in flat], train, rough, settings.threshold - SLACK)
    pairs = [(i, j) for i, j in near if _numbers(flat[i]) == _numbers(train[j])]
    best: dict[int, tuple[float, int]] = {}
    for value, (i, j) in zip(_cosines(pairs, flat, train, encoder), pairs, strict=True):
        best[i] = max(best.get(i, (-1.0, 0)), (value, j))
    measured, start = {}, 0
    for name, rows in asked.items():
        here = [(*best[i], i) for i in range(start, start + len(rows)) if i in best]
        leaked = sorted((pair for pair in here if pair[0] >= settings.threshold), reverse=True)
        examples = tuple((flat[i].origin, train[j].origin, round(value, 3)) for value, j, i in leaked[:10])
        measured[name] = Overlap(looked_at=len(rows), found=len(leaked), threshold=settings.threshold, examples=examples)
        start += len(rows)
    return measured


def gate_overlap(measured: Overlap, settings: SemanticLeakage, name: str) -> None:
    """Refuse (GateRefused) when more than `max_share` of the held-out rows say the same as a training row, beyond what chance may do in so
    few rows: the lower end of the share's 95 % interval (Wilson) is compared."""
    if measured.looked_at and wilson(measured.found, measured.looked_at).low > settings.max_share:
        pairs = "; ".join(f"{new} ≈ {old} ({value})" for new, old, value in measured.examples[:3])
        raise GateRefused(
            f"{measured.found} of {measured.looked_at} {name} rows say the same as a training row in other words ({measured.share:.1%}, "
            f"cosine ≥ {measured.threshold}): {pairs}",
            allowed=f"at most {settings.max_share:.1%} (split.semantic.max_share)",
            remedy="clean with semantic_duplicates.action drop, or raise the limit when such rows are not copies",
        )


def _numbers(row: Row) -> list[str]:
    return sorted(re.findall(r"\d+", comparison_text(row)))


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _candidates(texts: Sequence[str], train: Sequence[Row], rough: Encoder, least: float) -> list[tuple[int, int]]:
    """(text, training row) pairs: the CANDIDATES training rows nearest to each text by `rough`, where their cosine is ≥ `least`."""
    if not texts or not train:
        return []
    ours = _unit(rough(texts))
    best: list[list[tuple[float, int]]] = [[] for _ in texts]
    for begin in range(0, len(train), 16 * BLOCK):
        block = train[begin : begin + 16 * BLOCK]
        near = ours @ _unit(rough([comparison_text(row) for row in block])).T
        for i, row in enumerate(near):
            top = np.argpartition(-row, min(CANDIDATES, len(row)) - 1)[:CANDIDATES]
            here = [(float(row[j]), begin + int(j)) for j in top if row[j] >= least]
            best[i] = sorted([*best[i], *here], reverse=True)[:CANDIDATES]
    return [(i, j) for i, several in enumerate(best) for _, j in several]


def _cosines(pairs: Sequence[tuple[int, int]], asked: Sequence[Row], train: Sequence[Row], encoder: Encoder) -> list[float]:
    """The cosine of each pair; every row is encoded once."""
    if not pairs:
        return []
    left, right = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
    vectors = _unit(encoder([comparison_text(row) for row in (*(asked[i] for i in left), *(train[j] for j in right))]))
    ours, theirs = dict(zip(left, vectors, strict=False)), dict(zip(right, vectors[len(left) :], strict=True))
    return [float(ours[i] @ theirs[j]) for i, j in pairs]
