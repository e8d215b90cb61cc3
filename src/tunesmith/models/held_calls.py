"""A call of a tool in which an answer was cut: the words before it, and the call as far as it came. Knows nothing about models, and
nothing about how calls are written but how they begin.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence

from tunesmith.core.types import Function, ToolCall
from tunesmith.models.detokenize import overlap

_SHORTEST = 2  # characters of a mark that was cut which are taken for one: a "<" alone may be what was meant
_NAME = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')
_ARGUMENTS = re.compile(r'\s*,\s*"(?:arguments|parameters)"\s*:\s*')


def cut_call(text: str, marks: Sequence[str], ends: Sequence[str] = ("</tool_call>",)) -> tuple[str, tuple[ToolCall, ...]] | None:
    """Of an answer that was cut within a call: the text before it, and the call as far as it came where its name did (its arguments are no
    whole JSON then). None where no call was cut."""
    begun = max(text.rfind(mark) for mark in marks)
    if begun < 0 or any(text.find(end, begun) >= 0 for end in ends):
        size = max((overlap(text, mark) for mark in marks), default=0)
        return (text[: len(text) - size].rstrip(), ()) if size >= _SHORTEST else None
    mark = max((mark for mark in marks if text.startswith(mark, begun)), key=len)
    inside = text[begun + len(mark) :]
    for end in ends:
        inside = inside[: len(inside) - overlap(inside, end)]
    return text[:begun].rstrip(), _begun(inside)


def _begun(inside: str) -> tuple[ToolCall, ...]:
    head = _NAME.match(inside)
    if head is None:
        return ()
    begin = _ARGUMENTS.match(inside, head.end())
    words = inside[begin.end() :] if begin is not None else ""
    with contextlib.suppress(json.JSONDecodeError):
        words = words[: json.JSONDecoder().raw_decode(words)[1]]  # whole already: what follows closes the call
    return (ToolCall(id="call_0", function=Function(name=str(json.loads(head[1])), arguments=words)),)
