"""F1 over lists of named entities written as text; knows nothing about spans, offsets or tag schemes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from tunesmith.core.types import Answer, Example
from tunesmith.evaluate.metrics.base import Measured, f1_pool, measured

Entity = tuple[str, str]

# A name may itself hold " - " or a comma, so a pair ends only where a type in one word is followed by a separator or the list's end.
_TYPE = re.compile(r"\s{1,3}[-–—]\s{1,3}(?P<type>[^\W\d]\w*)[\"'*.]{0,4}\s{0,3}(?:[,;\n]|$)")
_NOTHING = re.compile(r"\bno\s{1,3}(?:named\s{1,3})?entities\b", re.IGNORECASE)


def entities(text: str, cut: bool = False) -> Counter[Entity] | None:
    """The final answer of `text` as a multiset of (name, TYPE) pairs, or None when it states none.

    The last of these counts, whatever was thought aloud before: a list `[NAME - TYPE, …]`, an empty list, the words "No entities
    found". A text that was `cut` off by the token limit inside its list is read as far as its pairs are whole.
    """
    nothing = max((m.start() for m in _NOTHING.finditer(text)), default=-1)
    for m in reversed(list(re.finditer(r"\[", text))):
        if m.start() < nothing:
            break
        inside, closed = _inside(text[m.end() :])
        named = _pairs(inside if closed or not cut else inside[: inside.rfind(",") + 1])
        if named or (closed and not inside.strip()):
            return Counter(named)
    return Counter() if nothing >= 0 else None


def _inside(text: str) -> tuple[str, bool]:
    """What stands before the bracket that closes the list, and whether there is one: a name may hold pairs of brackets itself."""
    depth = 1
    for m in re.finditer(r"[\[\]]", text):
        depth += 1 if m[0] == "[" else -1
        if depth == 0:
            return text[: m.start()], True
    inside, closed, _ = text.partition("]")  # a bracket that nothing closes belongs to a name
    return inside, bool(closed)


def _pairs(inside: str) -> list[Entity]:
    pairs, start = [], 0
    for m in _TYPE.finditer(inside):
        name = _name(inside[start : m.start()].rpartition("\n")[2])
        if name:
            pairs.append((name, m["type"].upper()))
        start = m.end()
    return pairs


def _name(raw: str) -> str:
    return " ".join(unicodedata.normalize("NFC", raw).strip("\"'*` ").split())


@measured("entity_f1", kind="pooled", pool=f1_pool)
def entity_f1(example: Example, answer: Answer) -> Measured:
    """Micro F1 over the multiset of (name, TYPE) pairs, pooled over rows. Range 0 to 1, higher is better, pooled.

    A pair that is said twice counts twice. Names are compared as written (case, articles, brackets inside a name), types in capitals;
    order, and what was thought aloud before the last list, do not count. Counts are (true positives, false positives, false negatives).
    The row's value is its own F1, 1 when there are no entities and the answer says so. An answer without any final answer finds nothing:
    value 0, every entity a false negative.
    """
    wanted = entities(example.answer) or Counter()
    named = entities(answer.text, cut=answer.finish_reason == "length")
    if named is None:
        return Measured(0.0, (0.0, 0.0, float(wanted.total())), "no final answer in the text")
    right = (wanted & named).total()
    extra, lost = named.total() - right, wanted.total() - right
    value = 2 * right / (2 * right + extra + lost) if right + extra + lost else 1.0
    return Measured(value, (float(right), float(extra), float(lost)))
