"""Rows from tools that people annotate in, and from Tunesmith's own log: Kiln, Label Studio, interactions; knows nothing about files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.rows import Row
from tunesmith.core.types import Message
from tunesmith.data import convert
from tunesmith.data.convert import Notes, shown
from tunesmith.data.shapes import Fields, Format, example

# What the tools themselves have no place for stands under this key when Tunesmith writes their format.
OWN = "tunesmith"
_QUESTION_KEYS = ("prompt", "question", "text", "input", "instruction", "dialogue")


def _is_interaction(row: Mapping[str, Any]) -> bool:
    return row.keys() >= {"id", "alias", "variant", "messages", "answer"}


def _interaction(row: Fields, notes: Notes) -> Row | None:
    """What was asked and answered; a failed or empty answer teaches nothing."""
    if row.get("error") or row.get("status", 200) != 200:
        notes.fault("$.status", "failed_interaction", f"the request failed ({row.get('status')}: {row.get('error') or 'no message'})")
    turns = convert.messages(row["messages"], "$.messages", notes)
    answer: Fields = {"role": "assistant", "content": row["answer"] or None, "tool_calls": row.get("tool_calls") or None}
    last = convert.message(answer, "$.answer", Notes() if notes.faults else notes)
    if last is None:
        return None
    meta = {"provenance": f"interaction:{row['id']}", "alias": row["alias"], "variant": row["variant"]}
    return example((*turns, last), {"meta": meta, "group": row.get("conversation")}, notes)


def _is_kiln(row: Mapping[str, Any]) -> bool:
    return row.get("model_type") == "task_run" and isinstance(row.get("output"), dict) and "input" in row


def _kiln(row: Fields, notes: Notes) -> Row | None:
    """A task run; a repaired output goes before the model's own, and the rating is kept."""
    output = row["output"]
    better = (row.get("repaired_output") or row.get("fixed_output") or output) if isinstance(output, dict) else {}
    said = better.get("output") if isinstance(better, dict) else None
    if not isinstance(said, str) or not isinstance(row["input"], str):
        notes.fault("$.output.output", "wrong_type", f"expected input and output texts, got {shown(row['input'])} and {shown(said)}")
        return None
    rating = output.get("rating") or {}
    meta = {"id": row.get("id"), "rating": rating.get("value") if isinstance(rating, dict) else None, "tags": row.get("tags") or None}
    turns = (Message(role="user", content=row["input"]), Message(role="assistant", content=said))
    return example(turns, _rest(row, {"meta": {key: value for key, value in meta.items() if value is not None}}, notes), notes)


def _rest(row: Fields, otherwise: Fields, notes: Notes) -> Fields:
    """What Tunesmith wrote beside the tool's own keys, else what the tool's keys say."""
    own = row.get(OWN)
    if own is not None and not isinstance(own, dict):
        notes.fault(f"$.{OWN}", "wrong_type", f"expected an object, got {shown(own)}")
    return dict(own) if isinstance(own, dict) else otherwise


def _is_label_studio(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def _label_studio(row: Fields, notes: Notes) -> Row | None:
    """The task's text and the first annotation that was not cancelled: its text areas joined, else its choices (also the label)."""
    data = row["data"]
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    key = next((name for name in _QUESTION_KEYS if name in texts), next(iter(texts), None) if len(texts) == 1 else None)
    if key is None:
        notes.fault("$.data", "no_question", f"which of {shown(sorted(data))} is the text? rename it to one of {', '.join(_QUESTION_KEYS)}")
        return None
    done = [one for one in row["annotations"] if isinstance(one, dict) and not one.get("was_cancelled") and one.get("result")]
    if not done:
        notes.fault("$.annotations", "not_annotated", "no annotation was finished")
        return None
    written, chosen = _results(done[0]["result"])
    if not written and not chosen:
        notes.fault("$.annotations[0].result", "no_answer", "it has neither a text area nor a choice")
        return None
    meta = {name: value for name, value in data.items() if name != key}
    if "id" in row:
        meta["id"] = row["id"]
    if len(done) > 1:
        meta["annotations"] = [" ".join(_results(one["result"])[0] or _results(one["result"])[1]) for one in done]
    turns = (Message(role="user", content=texts[key]), Message(role="assistant", content="\n".join(written or chosen)))
    label = {"label": ", ".join(chosen)} if chosen else {}
    return example(turns, _rest(row, {"meta": meta, **label}, notes), notes)


def _results(results: Any) -> tuple[list[str], list[str]]:
    """The texts that were written and the choices that were made, in their order; what is neither is passed over."""
    written: list[str] = []
    chosen: list[str] = []
    for one in results if isinstance(results, list) else ():
        value = one.get("value") if isinstance(one, dict) else None
        if isinstance(value, dict):
            text = value.get("text") if one.get("type") == "textarea" else None
            written += [text] if isinstance(text, str) else _texts(text)
            chosen += _texts(value.get("choices"))
    return written, chosen


def _texts(found: Any) -> list[str]:
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


FORMATS: dict[str, Format] = {
    "interaction": Format(_is_interaction, _interaction),
    "kiln": Format(_is_kiln, _kiln),
    "label_studio": Format(_is_label_studio, _label_studio),
}
