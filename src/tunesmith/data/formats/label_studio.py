"""Label Studio's export: {"data": {…}, "annotations": [{"result": […]}]}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.core.rows import Row
from tunesmith.core.types import Message
from tunesmith.data.formats.record import (
    Fields,
    Format,
    example,
)
from tunesmith.data.formats.turns import Notes, shown
from tunesmith.data.formats.writing import beside, own_or, question_answer

_QUESTION_KEYS = ("prompt", "question", "text", "input", "instruction", "dialogue")


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
    done = [
        annotation
        for annotation in row["annotations"]
        if isinstance(annotation, dict) and not annotation.get("was_cancelled") and annotation.get("result")
    ]
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
        meta["annotations"] = [" ".join(_results(annotation["result"])[0] or _results(annotation["result"])[1]) for annotation in done]
    turns = (Message(role="user", content=texts[key]), Message(role="assistant", content="\n".join(written or chosen)))
    label = {"label": ", ".join(chosen)} if chosen else {}
    return example(turns, own_or(row, {"meta": meta, **label}, notes), notes)


def _results(results: Any) -> tuple[list[str], list[str]]:
    """The texts that were written and the choices that were made, in their order; what is neither is passed over."""
    written: list[str] = []
    chosen: list[str] = []
    for result in results if isinstance(results, list) else ():
        value = result.get("value") if isinstance(result, dict) else None
        if isinstance(value, dict):
            text = value.get("text") if result.get("type") == "textarea" else None
            written += [text] if isinstance(text, str) else _texts(text)
            chosen += _texts(value.get("choices"))
    return written, chosen


def _texts(items: Any) -> list[str]:
    return [item for item in items if isinstance(item, str)] if isinstance(items, list) else []


def _written_label_studio(row: Row) -> Fields | None:
    parts = question_answer(row)
    if parts is None or parts[0]:
        return None
    result = {"from_name": "answer", "to_name": "text", "type": "textarea", "value": {"text": [parts[2]]}}
    return {"data": {"text": parts[1]}, "annotations": [{"result": [result]}], **beside(row)}


FORMAT = Format(
    matches=_is_label_studio,
    read=_label_studio,
    write=_written_label_studio,
    example={
        "data": {"text": "q"},
        "annotations": [
            {"was_cancelled": True, "result": []},
            {"result": [{"type": "textarea", "value": {"text": ["a"]}}, {"type": "choices", "value": {"choices": ["good"]}}]},
        ],
    },
)
