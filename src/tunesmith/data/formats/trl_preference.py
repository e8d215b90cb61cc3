"""Preference pairs as TRL and most data sets have them: {"prompt"?, "chosen", "rejected"}, texts, messages or whole conversations."""

from __future__ import annotations

import re
from typing import Any

from tunesmith.core.rows import Row
from tunesmith.core.types import Message, Preference
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.record import (
    Fields,
    Format,
    asked,
    one_message,
    preference,
    with_system,
)
from tunesmith.data.formats.sharegpt import sharegpt_turn, sharegpt_turns
from tunesmith.data.formats.turns import Notes, shown
from tunesmith.data.formats.writing import tools_beside, written


def _trl_preference_row(row: Fields, notes: Notes) -> Row | None:
    """Two answers to one prompt. Where the prompt stands (also) inside both sides, the longest account of it holds."""
    sides, tools = [row.pop("chosen"), row.pop("rejected")], convert.tools(row, "$", notes)
    written = [_written_dialogue(side) for side in sides] if "prompt" not in row else [None, None]
    sides = [turns or side for turns, side in zip(written, sides, strict=True)]
    if isinstance(row.get("conversations"), list):
        turns = sharegpt_turns(row, notes)
        sides = [
            sharegpt_turn(side, f"$.{key}", [], notes) if isinstance(side, dict) and "from" in side else side
            for side, key in zip(sides, ("chosen", "rejected"), strict=True)
        ]
    elif all(isinstance(side, list) and len(side) > 1 for side in sides):
        turns = _shared_prompt(sides, row, notes)
        sides = [side[-1] for side in sides]
    elif any(row.get(key) is not None for key in ("prompt", "instruction", "question", "query")):
        turns = asked(row, notes)
    elif isinstance(row.get("messages"), list):
        turns = convert.messages(row.pop("messages"), "$.messages", notes)
    else:
        notes.fault("$", "no_prompt", "without 'prompt', chosen and rejected must be conversations that differ only in the last message")
        return None
    row.pop("prompt", None) if row.get("prompt") is None else None
    good, bad = (one_message(side, f"$.{key}", notes) for side, key in zip(sides, ("chosen", "rejected"), strict=True))
    return preference(turns, (good, bad), row, notes, tools=tools)


def _shared_prompt(sides: list[Any], row: Fields, notes: Notes) -> tuple[Message, ...]:
    """The turns that two conversations share before their last ones; a `prompt` beside them must say the same."""
    if sides[0][:-1] != sides[1][:-1]:
        notes.fault("$", "no_prompt", "chosen and rejected must be conversations that differ only in the last message")
        return ()
    turns = with_system(convert.messages(sides[0][:-1], "$.chosen", notes), row, notes)
    beside = asked(row, notes) if row.get("prompt") is not None else ()
    missing = [turn for turn in beside if turn not in turns and turn.text.strip() not in {inner.text.strip() for inner in turns}]
    if missing:
        notes.fault("$.prompt", "two_prompts", f"the prompt says {shown(missing[0].text)}, the answers' own turns do not: which holds?")
    return turns


_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def _written_dialogue(side: Any) -> list[Fields] | None:
    """The turns of a dialogue that is written as one text (Anthropic's hh-rlhf), or None."""
    if not isinstance(side, str) or not side.startswith("\n\nHuman:"):
        return None
    parts = _SPEAKER.split(side)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": roles[who], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2], strict=True)]
    return turns if turns[-1]["role"] == "assistant" else None


def _trl_preference(row: Row) -> Fields | None:
    if not isinstance(row, Preference):
        return None
    return {
        "prompt": written(row.messages),
        "chosen": written([row.preferred]),
        "rejected": written([row.non_preferred]),
        **tools_beside(row),
    }


FORMAT = Format(
    matches=lambda row: row.keys() >= {"chosen", "rejected"},
    read=_trl_preference_row,
    write=_trl_preference,
    example={"prompt": "q", "chosen": "a", "rejected": "b"},
)
