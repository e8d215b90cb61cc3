"""What people say of rows: accept, edit, reject, comment; how far they agree; knows nothing about screens.

Verdicts are kept in a file that only grows (`core/record_log.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tunesmith.core import record_log
from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.rows import Row
from tunesmith.core.stats import Interval, cohen_kappa, fleiss_kappa, krippendorff_alpha
from tunesmith.core.types import Document, Labelled, Message, Preference, Record
from tunesmith.data.row_rules import RowChange, Rule


class Verdict(Record, frozen=True):
    """What one annotator says of one row. `answer` is the better answer of an edit; `row` the row's id; `created` seconds since 1970."""

    row: str
    annotator: str
    action: Literal["accept", "edit", "reject"]
    answer: str | None = None
    comment: str = ""
    created: float = 0.0


def append(path: str | Path, verdict: Verdict) -> Verdict:
    """Keep a verdict; it is on disk when this returns. Raises UsageError for an edit without an answer or an answer without an edit."""
    if (verdict.action == "edit") != (verdict.answer is not None):
        raise UsageError(f"action '{verdict.action}' with answer {verdict.answer!r}", allowed="an answer with 'edit', and only with it")
    verdict = msgspec.structs.replace(verdict, created=verdict.created or time.time())
    record_log.append(Path(path), verdict)
    return verdict


def verdicts(path: str | Path) -> list[Verdict]:
    """The last verdict of each annotator on each row, in the order in which they were first given; none when the file is not there.

    Raises StoreError naming a line that is damaged."""
    last: dict[tuple[str, str], Verdict] = {}
    for verdict in record_log.records(Path(path), Verdict):
        last[verdict.row, verdict.annotator] = verdict
    return list(last.values())


def waiting(rows: Sequence[Row], verdicts: Sequence[Verdict], annotator: str, first: Sequence[str] = ()) -> Iterator[Row]:
    """Rows that the annotator has not judged, those whose ids are in `first` before the others (suspects, what to label next)."""
    done = {verdict.row for verdict in verdicts if verdict.annotator == annotator}
    places = {identity: i for i, identity in enumerate(first)}
    order = sorted(range(len(rows)), key=lambda i: (places.get(rows[i].id, len(places)), i))
    yield from (rows[i] for i in order if rows[i].id not in done)


def reviewed(verdicts: Sequence[Verdict]) -> Rule:
    """The verdicts as a rule for `clean.apply`: the majority decides (a tie rejects nothing), the latest edit of a majority is taken."""

    def rule(rows: Sequence[Row]) -> Iterator[RowChange]:
        by_row: dict[str, list[Verdict]] = {}
        for verdict in verdicts:
            by_row.setdefault(verdict.row, []).append(verdict)
        for i, row in enumerate(rows):
            here = by_row.get(row.id, [])
            rejects = [verdict for verdict in here if verdict.action == "reject"]
            edits = [verdict for verdict in here if verdict.action == "edit"]
            if 2 * len(rejects) > len(here):
                yield RowChange(i, "dropped", f"rejected by {', '.join(verdict.annotator for verdict in rejects)}{_comments(rejects)}")
            elif 2 * len(edits) > len(here):
                latest = max(edits, key=lambda verdict: verdict.created)
                yield RowChange(
                    i, "mended", f"edited by {latest.annotator}{_comments([latest])}", row=with_answer(row, latest.answer or "")
                )

    return rule


def _comments(verdicts: Sequence[Verdict]) -> str:
    comments = [verdict.comment for verdict in verdicts if verdict.comment]
    return f": {'; '.join(comments)}" if comments else ""


def with_answer(row: Row, answer: str) -> Row:
    """The row with another answer: its reference when it has one, its last assistant turn, the preferred side of a pair,
    a labelled answer (which is wanted from then on), or the text of a document."""
    if isinstance(row, Preference):
        return msgspec.structs.replace(row, preferred=msgspec.structs.replace(row.preferred, content=answer, refusal=None))
    if isinstance(row, Labelled):  # what a person wrote is wanted, whatever the answer before it was
        return msgspec.structs.replace(row, answer=msgspec.structs.replace(row.answer, content=answer, refusal=None), desirable=True)
    if isinstance(row, Document):
        return msgspec.structs.replace(row, text=answer)
    turns = row.messages
    if turns and turns[-1].role == "assistant":
        turns = (*turns[:-1], msgspec.structs.replace(turns[-1], content=answer, refusal=None))
    elif row.reference is None:
        turns = (*turns, Message(role="assistant", content=answer))
    return msgspec.structs.replace(row, messages=turns, reference=None if row.reference is None else answer)


def agreement(verdicts: Sequence[Verdict]) -> dict[str, Interval]:
    """How far annotators agree on the action, with 95 % intervals: Krippendorff's alpha over all rows judged twice or more; Cohen's kappa
    when there are two annotators, Fleiss' kappa when all rows that were judged twice or more have the same number of judges.

    Raises DataError when no row was judged by two.
    """
    names = sorted({verdict.annotator for verdict in verdicts})
    table: dict[str, dict[str, str]] = {}
    for verdict in verdicts:
        table.setdefault(verdict.row, {})[verdict.annotator] = verdict.action
    several = [row for row in table.values() if len(row) > 1]
    if not several:
        raise DataError(
            f"no row was judged by two annotators ({len(verdicts)} verdicts by {len(names)})", remedy="let two people judge the same rows"
        )
    coefficients = {"krippendorff_alpha": krippendorff_alpha([[row.get(name) for name in names] for row in several])}
    if len(names) == 2:
        coefficients["cohen_kappa"] = cohen_kappa([row[names[0]] for row in several], [row[names[1]] for row in several])
    elif len({len(row) for row in several}) == 1:
        coefficients["fleiss_kappa"] = fleiss_kappa([list(row.values()) for row in several])
    return coefficients
