"""TRL, and OpenAI's older completions: {"prompt", "completion"}."""

from __future__ import annotations

from tunesmith.core.row_kinds import answer_turns, prompt_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Example
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.record import (
    Fields,
    Format,
    as_text,
    asked,
    end_with_answer,
    example,
)
from tunesmith.data.formats.turns import Notes
from tunesmith.data.formats.writing import tools_beside, written


def _trl_row(row: Fields, notes: Notes) -> Row | None:
    turns, completion = asked(row, notes), row.pop("completion")
    if not isinstance(completion, list):
        text = as_text(completion, "$.completion", notes)
        completion = [] if text is None else [{"role": "assistant", "content": text}]
    tools = convert.tools(row, "$", notes)
    if notes.faults:
        return None
    answer = convert.messages(completion, "$.completion", notes)
    return example(end_with_answer((*turns, *answer), notes), row, notes, tools=tools)


def _trl(row: Row) -> Fields | None:
    if not isinstance(row, Example) or not row.messages or row.messages[-1].role != "assistant":
        return None
    return {"prompt": written(prompt_of(row)), "completion": written(answer_turns(row)), **tools_beside(row)}


FORMAT = Format(
    matches=lambda row: row.keys() >= {"prompt", "completion"},
    read=_trl_row,
    write=_trl,
    example={"prompt": "q", "completion": "a"},
)
