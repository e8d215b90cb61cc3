"""Counts of a data set as a plain dict, for reports; knows nothing about how they are shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from tunesmith.core.row_kinds import NAMES, label_of, tools_of, turns_of
from tunesmith.core.rows import Row
from tunesmith.data.dedup import Ints
from tunesmith.data.ledger import Ledger
from tunesmith.data.split import Splits
from tunesmith.data.text import answer_of, question_of


def summary(
    rows: Sequence[Row], *, ledger: Ledger | None = None, clusters: Ints | None = None, splits: Splits | None = None
) -> dict[str, Any]:
    """Rows and their kinds, lengths in characters, turns, roles, labels; with a ledger the fates and rules, with clusters their sizes, with
    splits the size and leakage of each part. Values are plain numbers, texts and lists."""
    found: dict[str, Any] = {
        "rows": len(rows),
        "kinds": {NAMES[kind]: n for kind, n in Counter(type(row) for row in rows).items()},
        "question_chars": _spread([len(question_of(row)) for row in rows]),
        "answer_chars": _spread([len(answer_of(row)) for row in rows]),
        "turns": _spread([len(turns_of(row)) for row in rows]),
        "system_prompts": len({turn.text for row in rows for turn in turns_of(row) if turn.role in ("system", "developer")}),
        "with_tools": sum(bool(tools_of(row)) for row in rows),
        "labels": dict(Counter(label for row in rows if (label := label_of(row)) is not None).most_common(50)),
        "answers": [[text, n] for text, n in Counter(answer_of(row) for row in rows).most_common(5) if n > 1],
    }
    if ledger is not None:
        found["ledger"] = {"inputs": len(ledger), "fates": ledger.counts(), "rules": ledger.rules()}
    if clusters is not None:
        found["clusters"] = _clusters(clusters)
    if splits is not None:
        found["splits"] = {name: len(getattr(splits, name)) for name in ("train", "validation", "test")}
        found["leakage"] = {name: {**msgspec.to_builtins(value), "share": value.share} for name, value in splits.leakage.items()}
        found["notes"] = list(splits.notes)
    return found


def _spread(values: list[int]) -> dict[str, float]:
    if not values:
        return {}
    cuts = np.percentile(values, [0, 5, 50, 95, 100])
    return {**dict(zip(("min", "p5", "median", "p95", "max"), cuts.tolist(), strict=True)), "mean": float(np.mean(values))}


def _clusters(clusters: Ints) -> dict[str, Any]:
    sizes = np.bincount(np.unique(clusters, return_inverse=True)[1]) if len(clusters) else np.zeros(0, dtype=np.int64)
    several = sizes[sizes > 1]
    return {
        "clusters": len(sizes),
        "rows_in_clusters": int(several.sum()),
        "clusters_of_several": len(several),
        "largest": int(sizes.max(initial=0)),
        "sizes": {str(size): int(n) for size, n in sorted(Counter(several.tolist()).items())},
    }
