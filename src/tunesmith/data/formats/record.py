"""What every format is made of: the record, and how parts that many formats share are read. Knows no format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.row_kinds import content_id, identified
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Labelled, Message, Preference, example_id
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.turns import Notes, shown

Fields = dict[str, Any]

# Keys that say something a model should read or give: what no format takes of them goes to meta, and is said.
_SPEAKING = (
    *("system", "system_prompt", "history", "instruction", "input", "prompt", "question", "query", "context", "messages", "conversations"),
    *("response", "completion", "output", "answer", "chosen", "rejected", "tools", "functions"),
)

_SYSTEM = ("system", "system_prompt", "system_message")


class Format(NamedTuple):
    """A format: is this row (a JSON object) one; what is it as a record (None: faults were noted); how such a record is written (None: this
    format cannot hold it; no writer: it is only read); and a row of it that comes back as it is."""

    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Fields, Notes], Row | None]
    write: Callable[[Row], Fields | None] | None
    example: Fields


def with_system(turns: tuple[Message, ...], row: Fields, notes: Notes) -> tuple[Message, ...]:
    """The turns with the system prompt that stands beside them in the row, which is taken out. Two that differ are a fault."""
    for key in _SYSTEM:
        text = row.get(key)
        if not isinstance(text, str):
            row.pop(key, None) if text is None else None
            continue
        del row[key]
        if turns and turns[0].role in ("system", "developer"):
            if text.strip() and turns[0].text != text:
                notes.fault(f"$.{key}", "two_systems", f"the row says {shown(text)}, its first turn {shown(turns[0].text)}: which holds?")
        elif text.strip():
            turns = (Message(role="system", content=text), *turns)
    return turns


def history(row: Fields, notes: Notes) -> tuple[Message, ...]:
    """The turns before the question, taken out of the row: pairs of question and answer, or messages."""
    raw = row.pop("history", None)
    if not raw:
        return ()
    turns: list[Any] = []
    for i, pair in enumerate(raw if isinstance(raw, list) else [raw]):
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        elif isinstance(pair, dict) and "role" in pair:
            turns.append(pair)
        else:
            notes.fault(f"$.history[{i}]", "wrong_type", f"expected [question, answer] or a message, got {shown(pair)}")
    return () if notes.faults else convert.messages(turns, "$.history", notes)


def asked(row: Fields, notes: Notes) -> tuple[Message, ...]:
    """What a row with a `prompt` (or instruction, question) asks, taken out of it: history, the question and its input; a prompt may be a
    list of messages. The system prompt beside it comes first."""
    key = next((key for key in ("prompt", "instruction", "question", "query") if row.get(key) is not None), "prompt")
    raw, path = row.pop(key, None), f"$.{key}"
    before = history(row, notes)
    if isinstance(raw, list):
        return with_system((*before, *convert.messages(raw, path, notes)), row, notes)
    text = as_text(raw, path, notes)
    more = row.get("input")
    if text is not None and isinstance(more, str):
        del row["input"]
        text = f"{text}\n\n{more}" if more and more != text else text
    if text is None:
        return ()
    return with_system((*before, *convert.messages([{"role": "user", "content": text}], path, notes)), row, notes)


def as_text(value: Any, path: str, notes: Notes) -> str | None:
    """A text; a number as it is written. Anything else is a fault."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        notes.mend("number_to_text")
        return str(value)
    if isinstance(value, str):
        return value
    hint = f" (write it as text, such as {str(value).lower()!r})" if isinstance(value, bool) else ""
    notes.fault(path, "null_content" if value is None else "wrong_type", f"expected text, got {shown(value)}{hint}")
    return None


def said_aside(turns: Sequence[Message], rest: Fields, notes: Notes) -> None:
    """Say which keys that speak go to meta, unless they repeat what the turns say or are empty."""
    texts = {turn.text for turn in turns}
    for key in _SPEAKING:
        value = rest.get(key)
        if value in (None, "", [], {}):
            continue
        repeated = value in texts if isinstance(value, str) else isinstance(value, list) and _texts(value) <= texts
        if not repeated:
            notes.mend(f"to_meta:{key}")


def _texts(turns: list[Any]) -> set[Any]:
    """The texts of raw turns (None for what is none)."""
    texts = [turn.get("content", turn.get("value")) if isinstance(turn, dict) else None for turn in turns]
    return {text if isinstance(text, str) else None for text in texts}


def example(turns: Sequence[Message], rest: Fields, notes: Notes, **fields: Any) -> Example | None:
    """An Example of turns and whatever keys are left: reference, group and label to their fields, the others to meta. A system prompt
    beside the turns goes before them."""
    turns = with_system(tuple(turns), rest, notes)
    said_aside(turns, {} if turns and turns[-1].role == "user" else rest, notes)
    for key in ("reference", "group", "label"):
        if key in rest and key not in fields:
            value = rest[key]
            if isinstance(value, int | float) and not isinstance(value, bool):
                notes.mend("number_to_text")
                value = str(value)
            if isinstance(value, str):
                fields[key] = value
                del rest[key]
            elif value is None:
                del rest[key]
    meta = rest.pop("meta", None) or {}
    meta = {**meta, **rest} if isinstance(meta, dict) else {"meta": meta, **rest}
    if notes.faults:
        return None
    identity = example_id(tuple(turns), fields.get("tools", ()), fields.get("reference"))
    return Example(id=identity, messages=tuple(turns), meta=meta, **fields)


def end_with_answer(turns: tuple[Message, ...], notes: Notes) -> tuple[Message, ...]:
    """The turns up to the last answer: later ones teach nothing. A row without any answer is a fault."""
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0 and not notes.faults:
        roles = ", ".join(turn.role for turn in turns)
        notes.fault("$.messages", "no_assistant", f"there is no assistant turn to learn from (roles: {roles})")
    if 0 <= last < len(turns) - 1:
        notes.mend("trailing_turns")
    return turns[: last + 1]


def one_message(raw: Any, path: str, notes: Notes) -> Message | None:
    """The one assistant message of a preference's side: a string, a message or a list of one."""
    if not isinstance(raw, list | dict):
        text = as_text(raw, path, notes)
        return None if text is None else Message(role="assistant", content=text)
    if isinstance(raw, list) and len(raw) != 1:
        notes.fault(path, "not_one_message", f"expected exactly one assistant message, got {len(raw)}")
        return None
    message = convert.message(raw[0] if isinstance(raw, list) else raw, path, notes)
    if message is not None and message.role != "assistant":
        notes.fault(f"{path}.role", "wrong_role", f"expected an assistant message, got '{message.role}'")
    return message


def preference(
    turns: tuple[Message, ...], sides: tuple[Message | None, Message | None], rest: Fields, notes: Notes, **fields: Any
) -> Preference | None:
    """A pair of two answers that differ, and whatever keys are left in meta."""
    good, bad = sides
    if good is not None and good == bad:
        notes.fault("$", "same_answers", "the preferred and the non-preferred answer are the same: nothing to learn")
    turns = with_system(turns, rest, notes)
    if good is None or bad is None or notes.faults:
        return None
    said_aside((*turns, good, bad), rest, notes)
    row = Preference(id="", messages=turns, preferred=good, non_preferred=bad, **group_and_meta(rest), **fields)
    return msgspec.structs.replace(row, id=content_id(row))


def group_and_meta(rest: Fields) -> Fields:
    """Whatever keys are left, as the fields of a row: its group, and the others in meta."""
    group, meta = rest.pop("group", None), rest.pop("meta", None) or {}
    meta = {**meta, **rest} if isinstance(meta, dict) else {"meta": meta, **rest}
    return {"group": None if group is None else str(group), "meta": meta}


def as_label(value: Any) -> bool | None:
    """Whether an answer is wanted: true or false, also as the texts and numbers that tables have; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def labelled(turns: tuple[Message, ...], row: Fields, notes: Notes) -> Row | None:
    """A conversation whose last turn is the answer that `label` (or `desirable`) judges."""
    key = "label" if "label" in row else "desirable"
    value = row.pop(key, None)
    wanted, tools = as_label(value), convert.tools(row, "$", notes)
    if wanted is None:
        notes.fault(f"$.{key}", "wrong_label", f"expected true (the answer is wanted) or false, got {shown(value)}")
    if turns and turns[-1].role != "assistant":
        notes.fault("$", "no_assistant", f"the last turn must be the assistant's answer that the label judges, not '{turns[-1].role}'")
    elif len(turns) == 1:
        notes.fault("$", "no_prompt", "there is only the answer; the turns before it must say what was asked")
    if notes.faults or wanted is None or not turns:
        return None
    turns = with_system(turns, row, notes)
    if notes.faults:
        return None
    said_aside(turns, row, notes)
    answer = turns[-1] if turns[-1].weight is None else msgspec.structs.replace(turns[-1], weight=None)
    return identified(Labelled(id="", messages=turns[:-1], answer=answer, desirable=wanted, tools=tools, **group_and_meta(row)))
