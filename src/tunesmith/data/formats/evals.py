"""OpenAI's evals: {"input": messages or text, "ideal": text or list of texts}."""

from __future__ import annotations

from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Message
from tunesmith.data.formats.record import (
    Fields,
    Format,
    asked,
    example,
)
from tunesmith.data.formats.turns import Notes, shown
from tunesmith.data.formats.writing import plain, written


def _evals_row(row: Fields, notes: Notes) -> Row | None:
    turns = asked({"prompt": row.pop("input")}, notes)
    ideal = row.pop("ideal")
    answers = ideal if isinstance(ideal, list) else [ideal]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        notes.fault("$.ideal", "wrong_type", f"ideal must be text or a list of texts, got {shown(ideal)}")
        return None
    if len(answers) > 1:
        row["ideal"] = answers  # every accepted answer, for the metric; the first one is trained on
    return example((*turns, Message(role="assistant", content=answers[0])), row, notes)


def _evals(row: Row) -> Fields | None:
    if not isinstance(row, Example) or row.tools or not row.messages or not plain(row.messages[-1], "assistant"):
        return None
    ideal = row.meta.get("ideal")
    several = isinstance(ideal, list) and len(ideal) > 1 and ideal[0] == row.messages[-1].content
    return {"input": written(row.messages[:-1]), "ideal": ideal if several else row.messages[-1].content}


FORMAT = Format(
    matches=lambda row: row.keys() >= {"input", "ideal"},
    read=_evals_row,
    write=_evals,
    example={"input": [{"role": "user", "content": "q"}], "ideal": "a"},
)
