"""The marks that models put around their thoughts; knows nothing about templates or tokens.

Each family has its own pair; what stands between is what the model thought before it answered.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Names of tags: <think>…</think>, [THINK]…[/THINK], <seed:think>…</seed:think>, and with bars <|START_THINKING|>…<|END_THINKING|>.
_OPEN = re.compile(
    r"<(?P<tag>[\w:]*(?:think|thought|reasoning)[\w:]*)>|\[(?P<bracket>THINK)\]|<\|START_(?P<bar>THINKING)\|>"
    r"|(?P<channel><\|channel>thought)|(?P<inner><\|inner_prefix\|>)|(?P<opened><\|open\|>think<\|sep\|>)"
)
_CLOSE = {"channel": "<channel|>", "inner": "<|inner_suffix|>", "opened": "<|close|>think<|sep|>"}


class Marks(NamedTuple):
    """What a model writes before and after its thoughts."""

    opened: str
    closed: str


COMMON = Marks("<think>", "</think>")


class Thought(NamedTuple):
    """A text in two: the thoughts before the answer (None: no marks), and the rest. `whole` is False while the thoughts go on."""

    reasoning: str | None
    rest: str
    whole: bool = True


def marks_in(text: str) -> Marks | None:
    """The pair whose opening mark stands last in `text`; None when there is none."""
    marks = list(_OPEN.finditer(text))
    return Marks(marks[-1].group(), _closing(marks[-1])) if marks else None


def _closing(opened: re.Match[str]) -> str:
    if tag := opened["tag"]:
        return f"</{tag}>"
    if opened["bracket"]:
        return "[/THINK]"
    if bar := opened["bar"]:
        return f"<|END_{bar}|>"
    return next(close for name, close in _CLOSE.items() if opened[name])


def open_tail(prompt: str) -> tuple[str, Marks] | None:
    """The opening mark with which a prompt ends, with its white space, so that the model begins inside its thoughts."""
    marks = marks_in(prompt[-80:])
    if marks is None:
        return None
    tail = prompt[prompt.rfind(marks.opened) :]
    return (tail, marks) if tail.strip() == marks.opened else None


def closed_tail(prompt: str) -> str:
    """Thoughts that a prompt itself begins and ends (serving without thinking), with which it ends; empty when there are none."""
    if (marks := marks_in(prompt[-80:])) is None:
        return ""
    tail = prompt[prompt.rfind(marks.opened) :]
    inside, closed, behind = tail.removeprefix(marks.opened).partition(marks.closed)
    return tail if closed and not inside.strip() and not behind.strip() else ""


def parted(text: str, marks: Marks = COMMON, *, inside: bool = True) -> Thought:
    """The thoughts with which a text begins, and what follows them. One that opens them and never closes them is all thought.

    `inside`: the text may have begun its thoughts before, so that it closes them without having opened them.
    """
    if not marks.closed:
        return Thought(None, text)
    bare = text.lstrip()
    if bare.startswith(marks.opened):
        thoughts, closed, rest = bare.removeprefix(marks.opened).partition(marks.closed)
        return Thought(thoughts.strip(), rest.lstrip() if closed else "", bool(closed))
    thoughts, closed, rest = text.partition(marks.closed)
    begun = inside or bare.startswith(marks.closed)
    return Thought(thoughts.strip(), rest.lstrip()) if begun and closed and marks.opened not in thoughts else Thought(None, text)
