"""What a model said, read back: its thoughts, its words and its calls of tools, by how its own template writes them. Knows no family.

The template is asked to write known turns; what stands around name, arguments, thoughts and words is how the model writes them too. A
reader that does not get its own template's calls back reads none, rather than half of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tunesmith.core.call_syntax import CALLED, Call, Syntax, json_calls, learned
from tunesmith.core.errors import DataError
from tunesmith.core.thinking import COMMON, Marks, Thought, marks_in, open_tail, parted
from tunesmith.core.turns import Turns
from tunesmith.core.types import Function, Message, ToolCall

_ASK = Message(role="user", content="⟨u⟩")
_NAMES = ("find_town", "count_birds")


def probe_tool(name: str) -> dict[str, Any]:
    """A tool that templates are asked with."""
    properties = {"town": {"type": "string"}, "days": {"type": "integer"}}
    return {
        "type": "function",
        "function": {"name": name, "description": "Where", "parameters": {"type": "object", "properties": properties, "required": []}},
    }


PROBE_TOOLS = tuple(probe_tool(name) for name in _NAMES)


class Said(NamedTuple):
    """An answer in its parts. `open` says that more of what is being written may still belong to thoughts or a call."""

    reasoning: str
    words: str
    calls: tuple[Call, ...] = ()
    open: bool = False


class Reader:
    """Reads the answers of models with one template. `special` are the texts of special tokens, which are no words."""

    def __init__(self, turns: Turns, special: Sequence[str]) -> None:
        self._turns, self._special = turns, sorted(special, key=len, reverse=True)
        self._inside = open_tail(self._prompt()) is not None
        self.marks, self.prefix, self.between, self.suffix = self._asked_for_thoughts()
        self.syntax = self._asked_for_calls()

    # --- how the template writes ---------------------------------------------------------------------------------------------------------

    def _answer(self, message: Message, tools: Sequence[dict[str, Any]] = ()) -> str | None:
        """What a model would have to write to say the message; None where the template refuses it."""
        try:
            return self._turns.turn((_ASK, message), tools, 1).answer
        except DataError:
            return None

    def _asked_for_thoughts(self) -> tuple[Marks, str, str, str]:
        """The marks of thoughts; what else stands before plain words, between thoughts and words, and behind words."""
        answer = self._answer(Message(role="assistant", content="⟨a⟩")) or "⟨a⟩"
        before, _, behind = answer.partition("⟨a⟩")
        suffix = self._without_end(behind).strip()
        thought = self._answer(Message(role="assistant", content="⟨a⟩", reasoning_content="⟨r⟩"))
        if thought is None or "⟨r⟩" not in thought:
            marks = marks_in(before) or marks_in(self._prompt()[-80:]) or COMMON
            return marks, parted(before, marks).rest.strip(), "", suffix
        opened, _, rest = thought.partition("⟨r⟩")
        between = rest.partition("⟨a⟩")[0].strip()
        inside = open_tail(self._prompt())
        marks = inside[1] if inside else marks_in(opened) or Marks(opened.strip(), "")
        prefix = parted(before, marks).rest.strip()
        if marks.closed and marks.closed in between:
            return marks, prefix, between.partition(marks.closed)[2].strip(), suffix
        closed = between.removesuffix(prefix) if prefix else between
        return Marks(opened.strip(), closed or between), prefix, prefix, suffix

    def _prompt(self) -> str:
        try:
            return self._turns.template.render([_ASK], generation=True)
        except DataError:
            return ""

    def _asked_for_calls(self) -> Syntax | None:
        """How the template writes calls; None when it writes none, or none that can be read back."""
        if self._turns.template.call_form is None:
            return None
        return learned(self._written)

    def _written(self, calls: Sequence[Call]) -> str | None:
        """What a model would write to call these, without thoughts and without the token that ends the answer."""
        made = tuple(
            ToolCall(id=f"call_{i}", function=Function(name=c.name, arguments=json.dumps(c.arguments))) for i, c in enumerate(calls)
        )
        answer = self._answer(Message(role="assistant", tool_calls=made), PROBE_TOOLS)
        if answer is None:
            return None
        return self._without_thoughts(self._without_end(answer), inside=True).rest

    def _without_end(self, text: str) -> str:
        for stop in self._turns.stops:
            text = text.removesuffix(stop)
        return text

    # --- reading -------------------------------------------------------------------------------------------------------------------------

    def read(self, text: str, tools: Sequence[dict[str, Any]] | None = (), *, inside: bool = False) -> Said:
        """The parts of an answer, special tokens included in `text`. Calls are looked for when there are `tools` (None: of any tools);
        `inside` says that the prompt has begun the thoughts."""
        text = self._without_end(text)
        if inside and self.marks.closed not in text:
            return Said(self._bare(text.lstrip().removeprefix(self.marks.opened)), "", open=True)
        reasoning, rest, whole = self._without_thoughts(text, inside)
        if not whole:
            return Said(self._bare(reasoning or ""), "", open=True)
        calls, words = self._calls(rest, tools or ()) if tools is None or tools else ((), rest)
        words = self._bare(words.removesuffix(self.suffix) if self.suffix else words, trim=bool(calls) or reasoning is not None)
        return Said(self._bare(reasoning or ""), words, calls)

    def partial(self, text: str, tools: Sequence[dict[str, Any]], *, inside: bool) -> Said:
        """What is certain of an answer that is still being written: without what may become a mark or a call."""
        begins = {CALLED, CALLED if self.syntax is None else self.syntax.begins} if tools else set()
        marks = [*self.marks, *COMMON, self.prefix, self.between, self.suffix, *self._special, *begins]
        shown = text[: len(text) - max((_overlap(text, mark) for mark in marks if mark), default=0)]
        if inside and self.marks.closed not in shown:
            return self.read(shown, (), inside=True)
        reasoning, rest, whole = self._without_thoughts(shown, inside)
        if not whole:
            return Said(self._bare(reasoning or ""), "", open=True)
        if "" in begins and rest.lstrip()[:1] in ("", "{", "["):
            rest = ""
        places = [at for mark in begins if mark and (at := rest.find(mark)) >= 0]
        words = self._bare(rest[: min(places, default=len(rest))], trim=reasoning is not None)
        return Said(self._bare(reasoning or ""), (words.rstrip() if tools else words) if words.strip() else "")

    @property
    def call_marks(self) -> tuple[str, ...]:
        """What begins a call in an answer."""
        return tuple(dict.fromkeys(mark for mark in (CALLED, self.syntax.begins if self.syntax else "") if mark))

    @property
    def begins_inside(self) -> bool:
        """Whether prompts begin the model's thoughts."""
        return self._inside

    def _without_thoughts(self, text: str, inside: bool) -> Thought:
        """The text's thoughts, and the rest without what stands before words. Models write <think> whatever their template has."""
        reasoning: str | None = None
        for marks in (self.marks, COMMON):
            text = self._without_prefix(text)
            if reasoning or (marks is COMMON and not text.lstrip().startswith(COMMON.opened)):
                break
            thought = parted(text, marks, inside=inside and marks is self.marks)
            if not thought.whole:
                return thought
            reasoning, text = (reasoning if thought.reasoning is None else thought.reasoning), thought.rest
        return Thought(reasoning, self._without_prefix(text))

    def _without_prefix(self, text: str) -> str:
        bare = text.lstrip()
        mark = next((mark for mark in (self.between, self.prefix) if mark and bare.startswith(mark)), None)
        return text if mark is None else bare.removeprefix(mark).removeprefix("\n")

    def _calls(self, text: str, tools: Sequence[dict[str, Any]]) -> tuple[tuple[Call, ...], str]:
        names = {str(tool["function"]["name"]): tool["function"].get("parameters") or {} for tool in tools if "function" in tool}
        readers: list[Callable[[str, dict[str, Any]], tuple[list[Call], str]]] = []
        if self.syntax is not None:
            readers.append(self.syntax.read)
        readers.append(json_calls)
        for reader in readers:
            calls, words = reader(text, names)
            if calls:
                return tuple(calls), words
        return (), text

    def _bare(self, text: str, *, trim: bool = True) -> str:
        """Words without special tokens."""
        for token in self._special:
            text = text.replace(token, "")
        return text.strip() if trim else text


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
