"""How each known format is read: a JSON object → Example or Preference; knows nothing about files or how a format is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Message, Preference, digest, example_id
from tunesmith.data import convert
from tunesmith.data.convert import Notes, shown
from tunesmith.data.objects import load_object

Fields = dict[str, Any]
SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
    "system": "system",
    "function_call": "function_call",
}


class Format(NamedTuple):
    """A format: is this row (a JSON object) one, and what is it as a record's fields (None: faults were noted)."""

    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Fields, Notes], Row | None]


def example(turns: Sequence[Message], rest: Fields, notes: Notes, **fields: Any) -> Example | None:
    """An Example of turns and whatever keys are left: reference, group and label to their fields, the others to meta."""
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


def _end_with_answer(turns: tuple[Message, ...], notes: Notes) -> tuple[Message, ...]:
    """The turns up to the last answer: later ones teach nothing. A row without any answer is a fault."""
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0 and not notes.faults:
        roles = ", ".join(turn.role for turn in turns)
        notes.fault("$.messages", "no_assistant", f"there is no assistant turn to learn from (roles: {roles})")
    if 0 <= last < len(turns) - 1:
        notes.mend("trailing_turns")
    return turns[: last + 1]


def _chat_row(row: Fields, notes: Notes) -> Row | None:
    turns = convert.messages(row.pop("messages"), "$.messages", notes)
    tools = convert.tools(row, "$", notes)
    parallel = row.pop("parallel_tool_calls", None)
    if parallel is not None and not isinstance(parallel, bool):
        notes.fault("$.parallel_tool_calls", "wrong_type", f"expected true or false, got {shown(parallel)}")
    return example(_end_with_answer(turns, notes), row, notes, tools=tools, parallel_tool_calls=parallel)


def _rft_row(row: Fields, notes: Notes) -> Row | None:
    turns = convert.messages(row.pop("messages"), "$.messages", notes)
    return example(turns, row, notes, tools=convert.tools(row, "$", notes))


def _own_row(row: Fields, notes: Notes) -> Row | None:
    try:
        found: Row = msgspec.convert(row, Preference) if "preferred" in row else msgspec.convert(row, Example)
    except msgspec.ValidationError as error:
        notes.fault("$", "wrong_record", str(error))
        return None
    convert.messages(row["messages"], "$.messages", notes)  # what a type cannot say: nothing empty, tools answered
    right = preference_id(found) if isinstance(found, Preference) else example_id(found.messages, found.tools, found.reference)
    if found.id != right:
        notes.mend("id")
    meta = found.meta
    if found.origin.startswith(("interaction:", "synthetic:")):
        meta = {"provenance": found.origin, **meta}  # the place in the file becomes the origin
    return msgspec.structs.replace(found, id=right, meta=meta)


def _one_message(raw: Any, path: str, notes: Notes) -> Message | None:
    """The one assistant message of a preference's side: a string, a message or a list of one."""
    if isinstance(raw, str):
        return Message(role="assistant", content=raw)
    if isinstance(raw, list) and len(raw) != 1:
        notes.fault(path, "not_one_message", f"expected exactly one assistant message, got {len(raw)}")
        return None
    found = convert.message(raw[0] if isinstance(raw, list) else raw, path, notes)
    if found is not None and found.role != "assistant":
        notes.fault(f"{path}.role", "wrong_role", f"expected an assistant message, got '{found.role}'")
    return found


def preference_id(row: Preference) -> str:
    """The content hash of a pair: 24 hex characters over messages, both answers and tools."""
    return digest(row.messages, row.preferred, row.non_preferred, row.tools, size=12)


def _preference(
    turns: tuple[Message, ...], sides: tuple[Message | None, Message | None], rest: Fields, notes: Notes, **fields: Any
) -> Preference | None:
    good, bad = sides
    if good is not None and good == bad:
        notes.fault("$", "same_answers", "the preferred and the non-preferred answer are the same: nothing to learn")
    if good is None or bad is None or notes.faults:
        return None
    group = rest.pop("group", None)
    meta = rest.pop("meta", None) or {}
    row = Preference(
        id="",
        messages=turns,
        preferred=good,
        non_preferred=bad,
        group=None if group is None else str(group),
        meta={**meta, **rest},
        **fields,
    )
    return msgspec.structs.replace(row, id=preference_id(row))


def _dpo_row(row: Fields, notes: Notes) -> Row | None:
    asked = dict(row.pop("input"))
    turns = convert.messages(asked.pop("messages", None), "$.input.messages", notes)
    tools = convert.tools(asked, "$.input", notes)
    asked.pop("parallel_tool_calls", None)
    sides = [_one_message(row.pop(key), f"$.{key}", notes) for key in ("preferred_output", "non_preferred_output")]
    return _preference(turns, (sides[0], sides[1]), {**asked, **row}, notes, tools=tools)


def _prompt(raw: Any, path: str, notes: Notes) -> tuple[Message, ...]:
    if isinstance(raw, str):
        return convert.messages([{"role": "user", "content": raw}], path, notes)
    return convert.messages(raw, path, notes)


def _evals_row(row: Fields, notes: Notes) -> Row | None:
    turns = _prompt(row.pop("input"), "$.input", notes)
    ideal = row.pop("ideal")
    answers = ideal if isinstance(ideal, list) else [ideal]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        notes.fault("$.ideal", "wrong_type", f"ideal must be text or a list of texts, got {shown(ideal)}")
        return None
    if len(answers) > 1:
        row["ideal"] = answers  # every accepted answer, for the metric; the first one is trained on
    return example((*turns, Message(role="assistant", content=answers[0])), row, notes)


def _trl_row(row: Fields, notes: Notes) -> Row | None:
    turns = _prompt(row.pop("prompt"), "$.prompt", notes)
    completion = row.pop("completion")
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    answer = convert.messages(completion, "$.completion", notes)
    tools = convert.tools(row, "$", notes)
    return example(_end_with_answer((*turns, *answer), notes), row, notes, tools=tools)


def _trl_preference_row(row: Fields, notes: Notes) -> Row | None:
    chosen, rejected, tools = row.pop("chosen"), row.pop("rejected"), convert.tools(row, "$", notes)
    if "prompt" in row and row["prompt"] is not None:
        turns = _prompt(row.pop("prompt"), "$.prompt", notes)
        asked = len(turns)
        # some sets repeat the prompt inside both sides
        sides = [side[asked:] if isinstance(side, list) and len(side) == asked + 1 else side for side in (chosen, rejected)]
    else:
        row.pop("prompt", None)
        if not (isinstance(chosen, list) and isinstance(rejected, list) and chosen[:-1] == rejected[:-1] and len(chosen) > 1):
            notes.fault(
                "$", "no_prompt", "without 'prompt', chosen and rejected must be conversations that differ only in the last message"
            )
            return None
        turns, sides = convert.messages(chosen[:-1], "$.chosen", notes), [chosen[-1], rejected[-1]]
    good, bad = (_one_message(side, f"$.{key}", notes) for side, key in zip(sides, ("chosen", "rejected"), strict=True))
    return _preference(turns, (good, bad), row, notes, tools=tools)


def _ask_and_answer(system: Any, question: Any, answer: Any, paths: tuple[str, str], notes: Notes) -> tuple[Message, ...]:
    raw = [{"role": "system", "content": system}] if system else []
    raw += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for value, path in ((question, paths[0]), (answer, paths[1])):
        if not isinstance(value, str):
            notes.fault(path, "null_content" if value is None else "wrong_type", f"expected text, got {shown(value)}")
    return () if notes.faults else convert.messages(raw, "$", notes)


def _alpaca_row(row: Fields, notes: Notes) -> Row | None:
    question, more = row.pop("instruction"), row.pop("input", None)
    if isinstance(question, str) and isinstance(more, str) and more:
        question = f"{question}\n\n{more}"
    turns = _ask_and_answer(row.pop("system", None), question, row.pop("output"), ("$.instruction", "$.output"), notes)
    return example(turns, row, notes)


def _columns_row(row: Fields, notes: Notes) -> Row | None:
    turns = _ask_and_answer(row.pop("system", None), row.pop("prompt"), row.pop("response"), ("$.prompt", "$.response"), notes)
    return example(turns, row, notes)


def _is_text(row: Mapping[str, Any]) -> bool:
    return "text" in row and row.keys() <= {"text", "id", "group", "meta"}


def _text_row(row: Fields, notes: Notes) -> Row | None:
    """Text to be continued: one assistant turn and no question."""
    return example(convert.messages([{"role": "assistant", "content": row.pop("text")}], "$.text", notes), row, notes)


def _sharegpt_row(row: Fields, notes: Notes) -> Row | None:
    said = row.pop("conversations") if "conversations" in row else row.pop("conversation")
    raw: list[Any] = [{"role": "system", "content": system}] if (system := row.pop("system", None)) else []
    for i, turn in enumerate(said if isinstance(said, list) else []):
        raw.append(_sharegpt_turn(turn, f"$.conversations[{i}]", raw, notes))
    if not isinstance(said, list):
        notes.fault("$.conversations", "not_a_list", f"expected a list of turns, got {shown(said)}")
    tools = convert.tools(row, "$", notes)
    turns = () if notes.faults else convert.messages(raw, "$.conversations", notes)
    return example(_end_with_answer(turns, notes), row, notes, tools=tools)


def _sharegpt_turn(turn: Any, path: str, before: list[Any], notes: Notes) -> Fields:
    if not isinstance(turn, dict):
        notes.fault(path, "not_an_object", f"expected {{'from', 'value'}}, got {shown(turn)}")
        return {}
    said, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    role = SHAREGPT_ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        notes.fault(f"{path}.from", "wrong_role", f"from is {shown(said)}; allowed: {', '.join(SHAREGPT_ROLES)}")
        return {}
    rest = {"weight": turn["weight"]} if "weight" in turn else {}
    if role == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": [_written_call(value, f"call_{len(before)}", path, notes)], **rest}
    if role == "tool":
        calls = [call["id"] for item in before for call in item.get("tool_calls", ())]
        return {"role": "tool", "content": value, "tool_call_id": turn.get("tool_call_id", calls[-1] if calls else None)}
    return {"role": role, "content": value, **rest}


def _written_call(value: Any, identity: str, path: str, notes: Notes) -> Fields:
    found, fault = load_object(value.encode()) if isinstance(value, str) else (value, None)
    if fault is not None or not isinstance(found, dict):
        notes.fault(f"{path}.value", "wrong_tool_call", f"expected a call as JSON {{'name', 'arguments'}}, got {shown(value)}")
        return {"id": identity}
    return {
        "id": identity,
        "type": "function",
        "function": {"name": found.get("name"), "arguments": found.get("arguments", found.get("parameters"))},
    }


def _is_rft(row: Mapping[str, Any]) -> bool:
    turns = row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns) or _is_own(row) or _is_logged(row):
        return False
    asks = bool(turns) and turns[-1].get("role") == "user"
    return asks and bool(row.keys() - {"messages", "tools", "parallel_tool_calls", "functions", "id", "group", "meta"})


# the keys of a reinforcement row that graders compare an answer with
REFERENCES = frozenset({"reference", "reference_answer", "answer", "expected", "expected_answer", "ideal", "solution", "target"})


def _is_logged(row: Mapping[str, Any]) -> bool:
    return row.keys() >= {"alias", "variant", "answer"}


def _is_chat(row: Mapping[str, Any]) -> bool:
    """A conversation. One that goes on after its last answer and has more keys may be a chat or a reinforcement row: it is both."""
    if "messages" not in row or _is_logged(row) or _is_own(row):
        return False
    return not _is_rft(row) or any(turn.get("role") == "assistant" for turn in row["messages"])


def _is_own(row: Mapping[str, Any]) -> bool:
    fields = Preference.__struct_fields__ if "preferred" in row else Example.__struct_fields__
    return {"id", "messages", "origin"} <= row.keys() <= set(fields)


FORMATS: dict[str, Format] = {
    "tunesmith": Format(_is_own, _own_row),
    "chat": Format(_is_chat, _chat_row),
    "rft": Format(_is_rft, _rft_row),
    "dpo": Format(lambda row: isinstance(row.get("input"), dict) and row.keys() >= {"preferred_output", "non_preferred_output"}, _dpo_row),
    "evals": Format(lambda row: row.keys() >= {"input", "ideal"}, _evals_row),
    "trl_preference": Format(lambda row: row.keys() >= {"chosen", "rejected"}, _trl_preference_row),
    "trl": Format(lambda row: row.keys() >= {"prompt", "completion"}, _trl_row),
    "alpaca": Format(lambda row: row.keys() >= {"instruction", "output"}, _alpaca_row),
    "sharegpt": Format(lambda row: "conversations" in row or "conversation" in row, _sharegpt_row),
    "text": Format(_is_text, _text_row),
    "columns": Format(lambda row: row.keys() >= {"prompt", "response"}, _columns_row),
}
