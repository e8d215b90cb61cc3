"""How each known format is read: a JSON object → a row of one of the four kinds; knows nothing about files or how a format is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.row_kinds import content_id, identified
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Labelled, Message, Preference, example_id
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
        found: Row = msgspec.convert(row, own_kind(row))
    except msgspec.ValidationError as error:
        notes.fault("$", "wrong_record", str(error))
        return None
    if "messages" in row:
        convert.messages(row["messages"], "$.messages", notes)  # what a type cannot say: nothing empty, tools answered
    right = content_id(found)
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


def _preference(
    turns: tuple[Message, ...], sides: tuple[Message | None, Message | None], rest: Fields, notes: Notes, **fields: Any
) -> Preference | None:
    good, bad = sides
    if good is not None and good == bad:
        notes.fault("$", "same_answers", "the preferred and the non-preferred answer are the same: nothing to learn")
    if good is None or bad is None or notes.faults:
        return None
    row = Preference(id="", messages=turns, preferred=good, non_preferred=bad, **_group_and_meta(rest), **fields)
    return msgspec.structs.replace(row, id=content_id(row))


def _group_and_meta(rest: Fields) -> Fields:
    """Whatever keys are left, as the fields of a row: its group, and the others in meta."""
    group, meta = rest.pop("group", None), rest.pop("meta", None) or {}
    meta = {**meta, **rest} if isinstance(meta, dict) else {"meta": meta, **rest}
    return {"group": None if group is None else str(group), "meta": meta}


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


def _text_row(row: Fields, notes: Notes) -> Row | None:
    """Running text, of any length: training splits it."""
    text = row.pop("text")
    if not isinstance(text, str):
        notes.fault("$.text", "null_content" if text is None else "wrong_type", f"expected text, got {shown(text)}")
        return None
    if not text.strip():
        notes.fault("$.text", "no_text", "there is no text in it")
    return identified(Document(id="", text=text, **_group_and_meta(row)))


def as_label(value: Any) -> bool | None:
    """Whether an answer is wanted: true or false, also as the texts and numbers that tables have; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _labelled(turns: tuple[Message, ...], row: Fields, notes: Notes) -> Row | None:
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
    answer = turns[-1] if turns[-1].weight is None else msgspec.structs.replace(turns[-1], weight=None)
    return identified(Labelled(id="", messages=turns[:-1], answer=answer, desirable=wanted, tools=tools, **_group_and_meta(row)))


def _trl_kto_row(row: Fields, notes: Notes) -> Row | None:
    turns, completion = _prompt(row.pop("prompt"), "$.prompt", notes), row.pop("completion")
    answer = _one_message(completion, "$.completion", notes)
    return _labelled((*turns, answer), row, notes) if answer is not None else None


def _labelled_chat_row(row: Fields, notes: Notes) -> Row | None:
    return _labelled(convert.messages(row.pop("messages"), "$.messages", notes), row, notes)


def _is_trl_kto(row: Mapping[str, Any]) -> bool:
    return row.keys() >= {"prompt", "completion", "label"} and as_label(row["label"]) is not None


def _is_labelled_chat(row: Mapping[str, Any]) -> bool:
    """A conversation that is judged as a whole."""
    turns, value = row.get("messages"), row.get("label", row.get("desirable"))
    answered = isinstance(turns, list) and bool(turns) and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant"
    return answered and as_label(value) is not None and not _is_own(row)


def judges(row: Mapping[str, Any]) -> bool:
    """Whether the row's label says that its answer is wanted or not, rather than naming a class: true or false, which tables write out. A
    class that is called true or false is the answer itself."""
    value = row.get("label", row.get("desirable"))
    said = row.get("completion")
    told = isinstance(value, str) and value.strip().lower() in ("true", "false")
    return isinstance(value, bool) or (told and not (isinstance(said, str) and said.strip().lower() == str(value).strip().lower()))


# the keys that documents on the web carry beside their text; any other key may say that the text is a question
_ABOUT_TEXT = {
    *("text", "id", "group", "meta", "metadata", "url", "source", "title", "author", "timestamp", "date", "created", "added", "path"),
    *("language", "lang", "language_score", "license", "domain", "dump", "file_path", "token_count", "subset"),
}


def is_document(row: Mapping[str, Any]) -> bool:
    """Whether a row with a `text` has nothing beside it that could be an answer."""
    return row.keys() <= _ABOUT_TEXT


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


def own_kind(row: Mapping[str, Any]) -> type[Row]:
    """The kind of Tunesmith's own row, by the key that only this kind has."""
    if "preferred" in row:
        return Preference
    if "desirable" in row:
        return Labelled
    return Document if "text" in row else Example


def _is_own(row: Mapping[str, Any]) -> bool:
    kind = own_kind(row)
    needed = {"id", "origin", "text" if kind is Document else "messages"}
    return needed <= row.keys() <= set(kind.__struct_fields__)


FORMATS: dict[str, Format] = {
    "tunesmith": Format(_is_own, _own_row),
    "chat": Format(_is_chat, _chat_row),
    "rft": Format(_is_rft, _rft_row),
    "dpo": Format(lambda row: isinstance(row.get("input"), dict) and row.keys() >= {"preferred_output", "non_preferred_output"}, _dpo_row),
    "evals": Format(lambda row: row.keys() >= {"input", "ideal"}, _evals_row),
    "trl_preference": Format(lambda row: row.keys() >= {"chosen", "rejected"}, _trl_preference_row),
    "trl_kto": Format(_is_trl_kto, _trl_kto_row),
    "labelled_chat": Format(_is_labelled_chat, _labelled_chat_row),
    "trl": Format(lambda row: row.keys() >= {"prompt", "completion"}, _trl_row),
    "alpaca": Format(lambda row: row.keys() >= {"instruction", "output"}, _alpaca_row),
    "sharegpt": Format(lambda row: "conversations" in row or "conversation" in row, _sharegpt_row),
    "text": Format(lambda row: "text" in row and not _is_own(row), _text_row),
    "columns": Format(lambda row: row.keys() >= {"prompt", "response"}, _columns_row),
}
