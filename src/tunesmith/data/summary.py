"""Counts of a data set as a plain dict, for reports; knows nothing about how they are shown."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
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
    questions, answers, turns = array("q"), array("q"), array("q")
    kinds, labels, repeated = Counter[type](), Counter[str](), array("Q")
    systems: set[int] = set()
    with_tools = 0
    for row in rows:  # one pass: they may lie in a file
        answer, spoken, label = answer_of(row), turns_of(row), label_of(row)
        kinds[type(row)] += 1
        questions.append(len(question_of(row)))
        answers.append(len(answer))
        turns.append(len(spoken))
        systems |= {_key(turn.text) for turn in spoken if turn.role in ("system", "developer")}
        with_tools += bool(tools_of(row))
        labels.update([label] if label is not None else [])
        repeated.append(_key(answer))
    numbers: dict[str, Any] = {
        "rows": len(rows),
        "kinds": {NAMES[kind]: n for kind, n in kinds.items()},
        "question_chars": _spread(questions),
        "answer_chars": _spread(answers),
        "turns": _spread(turns),
        "system_prompts": len(systems),
        "with_tools": with_tools,
        "labels": dict(labels.most_common(50)),
        "answers": _most_common(rows, repeated),
    }
    if ledger is not None:
        numbers["ledger"] = {"inputs": len(ledger), "fates": ledger.counts(), "rules": ledger.rules()}
    if clusters is not None:
        numbers["clusters"] = _clusters(clusters)
    if splits is not None:
        numbers["splits"] = {name: len(getattr(splits, name)) for name in ("train", "validation", "test")}
        numbers["leakage"] = {name: {**msgspec.to_builtins(value), "share": value.share} for name, value in splits.leakage.items()}
        numbers["notes"] = list(splits.notes)
    return numbers


def _key(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _most_common(rows: Sequence[Row], answers: array[int]) -> list[list[Any]]:
    """The five answers that come most often, where they come more than once; the first ones first."""
    _, first, times = np.unique(np.array(answers, dtype=np.uint64), return_index=True, return_counts=True)
    best = [i for i in np.lexsort((first, -times))[:5].tolist() if times[i] > 1]
    return [[answer_of(rows[int(first[i])]), int(times[i])] for i in best]


def _spread(values: array[int]) -> dict[str, float]:
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
