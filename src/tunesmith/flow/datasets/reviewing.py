"""Reviewing one row at a time by several people: what waits for one of them, and a verdict that overwrites none that its author has not
seen. Knows no screen."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.rows import Row
from tunesmith.core.types import digest
from tunesmith.data import review
from tunesmith.data.text import answer_of
from tunesmith.flow.datasets.people import agreement, kept_suspects, verdicts_file
from tunesmith.flow.datasets.versions import Datasets, shown
from tunesmith.flow.rows import Rows

_writing = Lock()


class JudgedMeanwhile(UsageError):
    """Somebody has judged the row under the same name since it was shown."""


@dataclass(frozen=True)
class Desk:
    """What a reviewer sees: the row with its answer and why it is suspect (None: nothing waits), how far the work is, and `seen`, which
    comes back with the verdict. `mine` is what was said of the row under this name, `others` how many other people judged it."""

    row: dict[str, Any] | None
    seen: str
    waiting: int
    total: int
    done: int
    mine: review.Verdict | None
    others: int
    agreement: dict[str, Any] | None
    verdicts: int  # about rows of these data, by anybody


def desk(datasets: Datasets, data: Rows, annotator: str, *, after: str = "", wanted: str = "") -> Desk:
    """The next row that waits for the annotator: suspects first, then in order; after the row `after`, or the one that is `wanted`.

    Raises NotFound for a wanted row that is not there."""
    verdicts, reasons = review.verdicts(verdicts_file(datasets)), kept_suspects(datasets)
    waiting = list(review.waiting(data.rows, verdicts, annotator, list(reasons)))
    row = data.find(wanted) if wanted else _next(waiting, after)
    about = [verdict for verdict in verdicts if row is not None and verdict.row == row.id]
    ids = {each.id for each in data.rows}
    try:
        agreed: dict[str, Any] | None = agreement(datasets)
    except DataError:  # nobody has judged what another has
        agreed = None
    return Desk(
        row=None if row is None else {**shown(row), "answer": answer_of(row), "why": reasons.get(row.id, "")},
        seen=_seen(about, annotator),
        waiting=len(waiting),
        total=len(data.rows),
        done=len(data.rows) - len(waiting),
        mine=next((verdict for verdict in about if verdict.annotator == annotator), None),
        others=sum(verdict.annotator != annotator for verdict in about),
        agreement=agreed,
        verdicts=sum(verdict.row in ids for verdict in verdicts),
    )


def judge(datasets: Datasets, verdict: review.Verdict, seen: str) -> review.Verdict:
    """Keep a verdict; it is on disk when this returns. Raises JudgedMeanwhile where the row has a verdict under this name that its author
    was not shown (two people under one name, or two windows), and UsageError as `review.append`."""
    with _writing:
        about = [each for each in review.verdicts(verdicts_file(datasets)) if each.row == verdict.row]
        if _seen(about, verdict.annotator) != seen:
            mine = next((each for each in about if each.annotator == verdict.annotator), None)
            said = "nothing" if mine is None else f"{mine.action}{f': {mine.answer}' if mine.answer is not None else ''}"
            raise JudgedMeanwhile(
                f"'{verdict.annotator}' has judged this row meanwhile: {said}",
                remedy="nothing was overwritten; look at both, and send yours again if it is to stand",
            )
        return review.append(verdicts_file(datasets), verdict)


def _seen(about: list[review.Verdict], annotator: str) -> str:
    """What names the verdict that an annotator has given on a row; the same for none."""
    return digest([[each.action, each.answer, each.comment, each.created] for each in about if each.annotator == annotator])[:16]


def _next(waiting: list[Row], after: str) -> Row | None:
    """The first that waits, or the one after a row that was left for later."""
    places = {row.id: i for i, row in enumerate(waiting)}
    at = places.get(after, -1) + 1
    return waiting[at] if at < len(waiting) else waiting[0] if waiting else None
