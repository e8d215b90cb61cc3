"""What the answers of an alias look like, learned from those that were given, and whether an answer looks so; knows nothing about who
answered.

A request does not say in the log which form was asked for, so the form is what nearly all answers have had until now: a JSON object with
some keys, one of few labels, or any text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.core.rollout import AnswerForm

LEAST = 30  # answers from which a form is learned
_NEARLY_ALL = 0.95
_MOST_LABELS, _LONGEST_LABEL = 12, 40


def learned_form(answers: Sequence[str]) -> AnswerForm | None:
    """The form that nearly all of the answers have; None where they are too few to say."""
    if len(answers) < LEAST:
        return None
    objects = [tree for answer in answers if (tree := _object(answer)) is not None]
    if len(objects) >= _NEARLY_ALL * len(answers):
        keys = Counter(key for tree in objects for key in tree)
        return AnswerForm(kind="json", keys=tuple(sorted(key for key, n in keys.items() if n >= _NEARLY_ALL * len(objects))))
    labels = Counter(answer.strip() for answer in answers if len(answer.strip()) <= _LONGEST_LABEL)
    common = [label for label, n in labels.items() if label and n > 1]
    if common and len(common) <= _MOST_LABELS and sum(labels[label] for label in common) >= _NEARLY_ALL * len(answers):
        return AnswerForm(kind="labels", labels=tuple(sorted(common)))
    return AnswerForm()


def malformed(form: AnswerForm | None, answer: str, tool_calls: str, finish_reason: str) -> bool:
    """Whether an answer has another form: it was cut off, is empty, calls a tool with arguments that are no JSON, or, where its words are
    its whole, is not of the form that was learned."""
    if finish_reason == "length":
        return True
    if tool_calls not in ("", "[]"):
        return not _called(tool_calls)
    if not answer.strip():
        return True
    if form is None or form.kind == "text":
        return False
    if form.kind == "labels":
        return answer.strip() not in form.labels
    tree = _object(answer)
    return tree is None or not set(form.keys) <= tree.keys()


def form_words(form: AnswerForm | None) -> str:
    """The form for people."""
    if form is None:
        return "not learned yet"
    if form.kind == "json":
        return f"JSON objects with {', '.join(form.keys) or 'any keys'}"
    return f"one of {', '.join(form.labels)}" if form.kind == "labels" else "text"


def _object(answer: str) -> dict[str, Any] | None:
    text = answer.strip()
    if not text.startswith("{"):
        return None
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _called(tool_calls: str) -> bool:
    """Whether the arguments of every call are a JSON object."""
    try:
        return all(_object(call["function"]["arguments"]) is not None for call in json.loads(tool_calls))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
