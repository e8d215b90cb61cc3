"""One row of any known format → a row of one of the four kinds, and which format rows are in; knows nothing about files.

    tunesmith       Tunesmith's own records          {"id", "messages", …, "origin"}
    chat            OpenAI supervised                {"messages": […], "tools"?, "parallel_tool_calls"?}
    rft             OpenAI reinforcement             {"messages": […, user], any other keys}
    dpo             OpenAI preference                {"input": {"messages"}, "preferred_output": [1], "non_preferred_output": [1]}
    evals           OpenAI evals                     {"input": messages or text, "ideal": text or list of texts}
    trl_preference  TRL                              {"prompt"?, "chosen", "rejected"}
    trl_kto         TRL, labelled answers            {"prompt", "completion", "label": true or false}
    labelled_chat   labelled conversations           {"messages": […, assistant], "label" or "desirable": true or false}
    trl             TRL, OpenAI's older completions  {"prompt", "completion"}
    alpaca          Alpaca                           {"instruction", "input"?, "output", "system"?}
    sharegpt        ShareGPT                         {"conversations": [{"from", "value"}], "system"?, "tools"?}
    columns         two columns                      {"prompt", "response", "system"?}
    text            documents                        {"text"}, and text files
    interaction     Tunesmith's request log          {"id", "alias", "variant", "messages", "answer", …}
    kiln            Kiln task runs                   {"model_type": "task_run", "input", "output": {"output"}, …}
    label_studio    Label Studio export              {"data": {…}, "annotations": [{"result": […]}]}

Keys that a format does not know are kept in `meta`; `group`, `label` and `reference` go to their fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.errors import ConfigError, DataError, nearest
from tunesmith.core.json_text import too_deep
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Message, example_id
from tunesmith.data.formats import (
    alpaca,
    chat,
    columns,
    dpo,
    evals,
    interaction,
    kiln,
    label_studio,
    labelled_chat,
    own,
    rft,
    sharegpt,
    text,
    trl,
    trl_kto,
    trl_preference,
)
from tunesmith.data.formats import turns as convert
from tunesmith.data.formats.objects import TOO_DEEP, load_object
from tunesmith.data.formats.record import Fields, Format
from tunesmith.data.formats.turns import Notes, shown

FORMATS: dict[str, Format] = {
    "tunesmith": own.FORMAT,
    "chat": chat.FORMAT,
    "rft": rft.FORMAT,
    "dpo": dpo.FORMAT,
    "evals": evals.FORMAT,
    "trl_preference": trl_preference.FORMAT,
    "trl_kto": trl_kto.FORMAT,
    "labelled_chat": labelled_chat.FORMAT,
    "trl": trl.FORMAT,
    "alpaca": alpaca.FORMAT,
    "sharegpt": sharegpt.FORMAT,
    "text": text.FORMAT,
    "columns": columns.FORMAT,
    "interaction": interaction.FORMAT,
    "kiln": kiln.FORMAT,
    "label_studio": label_studio.FORMAT,
}


class Parsed(NamedTuple):
    """What became of one row: the record or None, its faults (code, message with key path) and what was mended."""

    row: Row | None
    faults: tuple[tuple[str, str], ...] = ()
    mends: tuple[str, ...] = ()


class _Chat(msgspec.Struct, forbid_unknown_fields=True):
    messages: tuple[Message, ...]


class _Evals(msgspec.Struct, forbid_unknown_fields=True):
    input: tuple[Message, ...]
    ideal: str


_chat = msgspec.json.Decoder(_Chat)
_evals = msgspec.json.Decoder(_Evals)


def parse_line(
    data: bytes, name: str, *, mapping: Mapping[str, str] | None = None, origin: str = "", ignored: Collection[str] = ()
) -> Parsed:
    """One JSON line as format `name`. The plain majority is decoded typed; whatever that does not accept is explained slowly."""
    if not mapping:
        row = _fast(data, name, origin)
        if row is not None:
            return Parsed(row)
    fields, fault = load_object(data)
    if fault is not None:
        return Parsed(None, (fault,))
    return parse_row(fields, name, mapping=mapping, origin=origin, ignored=ignored)


def _fast(data: bytes, name: str, origin: str) -> Example | None:
    """The row, when it is an ordinary one: only role and content, all text, the last turn the assistant's.

    A key that comes twice would be hidden by the decoder; so the colons after quotes must be as many as the keys.
    """
    try:
        if name == "chat":
            turns, keys = _chat.decode(data).messages, 1
        elif name == "evals":
            row = _evals.decode(data)
            turns, keys = (*row.input, Message(role="assistant", content=row.ideal)), 0
        else:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not turns or turns[-1].role != "assistant" or data.count(b'":') != 2 * len(turns) + keys or len(data) > convert.MAX_MESSAGE_CHARS:
        return None
    if any(type(turn.content) is not str or turn.role == "tool" for turn in turns):
        return None
    return Example(id=example_id(turns), messages=turns, origin=origin)


def parse_row(
    row: Mapping[str, Any], name: str, *, mapping: Mapping[str, str] | None = None, origin: str = "", ignored: Collection[str] = ()
) -> Parsed:
    """One JSON object as format `name`; `mapping` gives the format's keys their column ({"prompt": "question"}); `ignored`: keys of turns
    that may be left out.

    Raises ConfigError for an unknown format or an unknown target in the mapping.
    """
    if too_deep(row):
        return Parsed(None, (TOO_DEEP,))
    notes = Notes(ignored)
    fields = rename(row, mapping, notes)
    if not notes.faults and not check_format(name).matches(fields):
        notes.fault("$", "wrong_format", f"this is no '{name}' row: its keys are {_keys(fields)}{_looks_like(fields)}")
    typed = None if notes.faults else FORMATS[name].read(fields, notes)
    if notes.faults or typed is None:
        return Parsed(None, tuple((code, f"{message} (at {path})") for path, code, message in notes.faults))
    return Parsed(msgspec.structs.replace(typed, origin=origin or typed.origin), (), tuple(notes.mends))


def check_format(name: str) -> Format:
    """The format of that name. Raises ConfigError with the names there are."""
    if name not in FORMATS:
        raise ConfigError(f"unknown format '{name}'", allowed=", ".join(["auto", *FORMATS]), remedy=nearest(name, FORMATS))
    return FORMATS[name]


TARGETS = (
    *("prompt", "response", "system", "completion", "chosen", "rejected", "messages", "input", "ideal", "instruction", "output"),
    *("conversations", "tools", "reference", "group", "label", "desirable", "text"),
)


def rename(row: Mapping[str, Any], mapping: Mapping[str, str] | None, notes: Notes) -> Fields:
    """A copy of the row with mapped columns under the keys the formats know."""
    fields = dict(row)
    for target, column in (mapping or {}).items():
        if target not in TARGETS:
            raise ConfigError(f"nothing is called '{target}' in a map", allowed=", ".join(TARGETS), remedy=nearest(target, TARGETS))
        if column in row:
            fields[target] = row[column]
            if column != target and column not in (mapping or {}):
                fields.pop(column, None)
        else:
            notes.fault("$", "missing_column", f"there is no column '{column}' for '{target}'; the columns are {_keys(row)}")
    return fields


def detect(rows: Sequence[Mapping[str, Any]], *, where: str = "") -> str:
    """The format that most of the rows are in (rows that fit none do not vote).

    Raises DataError when no row fits a format, or when rows fit several: the keys found and the formats known are named.
    """
    votes = Counter(_fitting(row) for row in rows)
    votes.pop(frozenset(), None)
    if not votes:
        keys = _keys(rows[0]) if rows else "none"
        raise DataError(
            f"the format is not recognised: the keys are {keys}",
            where=where,
            allowed=", ".join(FORMATS),
            remedy="say which columns are question and answer, such as map: {prompt: question, response: answer}",
        )
    best, _ = votes.most_common(1)[0]
    if len(best) > 1:
        raise DataError(
            f"the rows fit several formats: {', '.join(sorted(best))}; the keys are {_keys(rows[0])}",
            where=where,
            remedy="name one with format:",
        )
    return next(iter(best))


def _fitting(row: Mapping[str, Any]) -> frozenset[str]:
    """The formats that the row fits. A conversation that goes on after its last answer is a reinforcement row if it has a reference."""
    fitting = frozenset(name for name, known in FORMATS.items() if known.matches(row))
    for judged, plain in (("trl_kto", "trl"), ("labelled_chat", "chat")):
        if judged in fitting:
            fitting -= {plain if trl_kto.judges(row) else judged}
    if "text" in fitting and not (len(fitting) == 1 and text.is_document(row)):
        fitting -= {"text"}
    if fitting == {"chat", "rft"}:
        return fitting - ({"chat"} if row.keys() & rft.REFERENCES else {"rft"})
    return fitting


def _keys(row: Mapping[str, Any]) -> str:
    return shown(sorted(map(str, row)), 200)


def _looks_like(row: Mapping[str, Any]) -> str:
    names = sorted(_fitting(row))
    return f"; it looks like '{names[0]}'" if names else ""
