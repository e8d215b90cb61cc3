"""What an evaluation hands to the choice of new rows: the failed questions of a report, as a file. Knows nothing about how either works."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.core.rows import read_jsonl, write_jsonl
from tunesmith.core.types import Record


class Failed(Record, frozen=True):
    """A row that the model failed: its group, the share of new rows that should go to that group, what was asked."""

    id: str
    group: str
    collect: float
    question: str


def write_failures(file: Path, groups: Iterable[Mapping[str, Any]]) -> None:
    """One line a failed row, from the groups of `flow.evaluation.report.failing`."""
    write_jsonl(
        file,
        [
            Failed(id=row, group=group["name"], collect=group["collect"], question=question)
            for group in groups
            for row, question in zip(group["ids"], group["questions"], strict=True)
        ],
    )


def read_failures(file: Path) -> list[tuple[str, float]]:
    """Each failed question and what it weighs: its group's share, split evenly. Raises DataError for a file that no report wrote."""
    failures = list(read_jsonl(file, Failed))
    inside = Counter(failure.group for failure in failures)
    return [(failure.question, failure.collect / inside[failure.group]) for failure in failures]
