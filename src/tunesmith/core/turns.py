"""What serving sends before a turn of the assistant, and what the model must then write: the rule that training, evaluation and serving
share. Knows nothing about tokens.

A template writes a turn as the last one, and often otherwise once others follow (without its thoughts, with another end). What counts is
the turn as it is asked for: the prompt as it would be sent, the turn as the template writes it when it is the last, the token that ends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.errors import DataError
from tunesmith.core.template import ChatTemplate
from tunesmith.core.thinking import Marks, closed_tail, marks_in, open_tail, parted
from tunesmith.core.types import Message

_MARK = "⟨assistant’s words⟩"
_MARK_LETTERS = 4  # two marks may begin alike (`<|`) and be others
_NEXT = Message(role="user", content="⟨next⟩")


class Turn(NamedTuple):
    """One turn of the assistant: the text that serving sends, and the text that the model must write, its end token included."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """Both, end to end."""
        return self.prompt + self.answer


class Turns:
    """The turns of one template. `stops` are the texts of the tokens that end an answer when it is served; `end` is one of them, for
    templates that close a turn with none."""

    def __init__(self, template: ChatTemplate, stops: Sequence[str], end: str) -> None:
        self.template, self.stops, self.end = template, tuple(stop for stop in stops if stop), end

    def turn(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], i: int) -> Turn:
        """Turn `i` of the conversation, an assistant's.

        Raises DataError with the reason when its prompt cannot be the beginning of what the template writes, or when the template leaves
        out what the turn says."""
        whole = self.template.render(messages[: i + 1], tools)
        prompt = self._prompt(messages, tools, i, whole)
        answer = self._answer(prompt, whole, messages[: i + 1], tools)
        self._refuse_lost(answer, messages[i])
        return Turn(prompt, self._ended(answer, messages[: i + 1], tools, whole))

    def _prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], i: int, whole: str) -> str:
        """What serving sends; where the assistant speaks first, what stands before its words."""
        if i:
            return self.template.render(messages[:i], tools, generation=True)
        marked = self.template.render([msgspec.structs.replace(messages[0], content=_MARK)], tools)
        head, there, _ = marked.partition(_MARK)
        if not there or not whole.startswith(head):
            raise DataError("the chat template does not let the assistant speak first", remedy="begin the row with a user's turn")
        return head

    def _answer(self, prompt: str, whole: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
        """What follows the prompt: read off the template's own text, behind the marks of thoughts that the prompt already has."""
        *before, message = messages
        asked = before[-1].text.strip() if before else ""
        if inside := open_tail(prompt):
            return _from_inside(*inside, _behind(prompt, inside[0], whole, asked), message)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        closed = closed_tail(prompt)
        rest = _behind(prompt, closed, whole, asked)
        rest = self._without_header(before, tools, prompt, whole) if rest is None else rest
        if rest is None:
            raise _not_its_beginning(prompt, whole)
        if closed:
            thought = parted(rest, marks_in(closed) or Marks("", ""))
            if thought.reasoning:
                raise DataError(
                    "serving tells the model not to think (its prompt closes the thoughts), and the turn has thoughts",
                    remedy="leave the turn's reasoning out: ignore: [reasoning_content]",
                )
            return thought.rest
        return rest

    def _without_header(self, before: Sequence[Message], tools: Sequence[dict[str, Any]], prompt: str, whole: str) -> str | None:
        """What follows the conversation where the template asks with a header that it does not write into the row; None where it does."""
        asked = self.template.render(before, tools)
        if not prompt.startswith(asked) or not whole.startswith(asked):
            return None
        header, rest = prompt[len(asked) :], whole[len(asked) :]
        return None if _common_start(header, rest) >= _MARK_LETTERS else rest

    def _refuse_lost(self, answer: str, message: Message) -> None:
        """A turn whose words, thoughts or calls the template does not write would train another answer than the row's."""
        if message.tool_calls and self.template.call_form is None:
            raise DataError(
                "the chat template shows no calls of tools",
                allowed="a base whose template writes their names and arguments",
                remedy="another base, or write the call into the turn's content",
            )
        missing = next((call.function.name for call in message.tool_calls if call.function.name not in answer), None)
        if missing is not None:
            raise DataError(f"the chat template leaves out the call of '{missing}'", remedy="split the row: one call a turn")
        own = parted(message.text)
        if (message.reasoning_content or own.reasoning or "").strip() not in answer:
            raise DataError(
                "the chat template leaves out the turn's thoughts",
                allowed="a base whose template writes them",
                remedy="ignore: [reasoning_content], or take <think>…</think> out of the content",
            )
        words = own.rest.strip()
        if words and words not in answer and not message.tool_calls:
            raise DataError(
                f"the chat template leaves out or rewrites the turn's words ('{words[:40]}')", remedy="another base, or no such words"
            )

    def _ended(self, answer: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]], whole: str) -> str:
        """The answer up to the token that stops serving: the first behind the turn's own words, or the one that begins the next turn."""
        after = self._own_end(answer, messages[-1])
        early = next((stop for stop in self.stops if answer[:after].count(stop) > _own(messages[-1]).count(stop)), None)
        if early is not None:
            raise DataError(
                f"the answer would go on behind '{early}', where serving stops",
                where="chat template",
                remedy="a turn of one part: without thoughts, with one call",
            )
        ends = [at + len(stop) for stop in self.stops if (at := answer.find(stop, after)) >= 0]
        if ends:
            return answer[: min(ends)]
        return answer + self._next_stop(messages, tools, whole)

    def _own_end(self, answer: str, message: Message) -> int:
        """Where the last of what the turn itself says ends. Not within the marks behind it: an answer of one letter stands in them too."""
        own = answer.removesuffix(self._tail)
        marks = [(at, at + len(stop)) for stop in self.stops for at in _places(own, stop)]
        return max((_last_end(own, piece, marks) for piece in _pieces(message)), default=0)

    @cached_property
    def _tail(self) -> str:
        """What the template writes behind the words of a last turn; empty where that cannot be asked."""
        try:
            return self.template.render([_NEXT, Message(role="assistant", content=_MARK)]).rpartition(_MARK)[2]
        except DataError:
            return ""

    def _next_stop(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], whole: str) -> str:
        calls = messages[-1].tool_calls
        follower = Message(role="tool", content="⟨next⟩", tool_call_id=calls[0].id) if calls else _NEXT
        try:
            longer = self.template.render((*messages, follower), tools)
        except DataError:
            return self.end
        behind = longer[len(whole) :] if longer.startswith(whole) else ""
        return next((stop for stop in self.stops if behind.startswith(stop)), self.end)


def _behind(prompt: str, tail: str, whole: str, asked: str) -> str | None:
    """What the template writes behind the prompt without its tail; None when the prompt's end cannot be found in it.

    A template that leaves something out of the beginning (a system message, once a turn has been answered) is followed from where the
    prompt's end stands in it: with the end of what was `asked`, or at least behind it.
    """
    head = prompt[: len(prompt) - len(tail)]
    if whole.startswith(head):
        return whole[len(head) :]
    line = next((line for length in (24, 16, 10) if (line := head[-length:]) in whole), "")
    at, best = whole.find(line) if line else -1, (0, -1)
    while at >= 0:
        end = at + len(line)
        best = max(best, (_common_end(head, whole[:end]), end))
        at = whole.find(line, at + 1)
    sure = best[1] >= 0 and asked != "" and (asked[-6:] in head[len(head) - best[0] :] or asked not in whole[best[1] :])
    return whole[best[1] :] if sure else None


def _common_start(first: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other)))


def _common_end(first: str, other: str) -> int:
    length = 0
    for a, b in zip(reversed(first), reversed(other), strict=False):
        if a != b:
            break
        length += 1
    return length


def _from_inside(tail: str, marks: Marks, rest: str | None, message: Message) -> str:
    """The answer of a model whose prompt has begun its thoughts: the thoughts, their end, the words."""
    if rest is None:
        raise DataError("the served prompt begins the model's thoughts and is not the beginning of the row", remedy="another base")
    if marks.closed not in rest:
        rest = rest.lstrip().removeprefix(marks.opened)
    written = parted(rest, marks)
    own = message.reasoning_content if message.reasoning_content is not None else parted(message.text, marks).reasoning
    thoughts = (written.reasoning or own or "").strip()
    if marks.closed in rest:
        between = rest.partition(marks.closed)[2]
    else:  # a template that takes the thoughts out of the row
        between = ("\n\n" if tail.endswith("\n") else "") + rest.lstrip("\n")
    return (thoughts + ("\n" if tail.endswith("\n") else "") if thoughts else "") + marks.closed + between


def _pieces(message: Message) -> list[str]:
    pieces = [parted(message.text).rest.strip(), message.text.strip(), (message.reasoning_content or "").strip()]
    return [piece for piece in (*pieces, *(call.function.name for call in message.tool_calls)) if piece]


def _own(message: Message) -> str:
    """All that the turn itself says, for looking things up in."""
    return "\n".join([*_pieces(message)[1:], *(call.function.arguments for call in message.tool_calls)])


def _places(text: str, piece: str) -> Iterator[int]:
    """Where the piece begins in the text, from the last place to the first."""
    at = text.rfind(piece)
    while at >= 0:
        yield at
        at = text.rfind(piece, 0, at + len(piece) - 1)


def _last_end(text: str, piece: str, marks: Sequence[tuple[int, int]]) -> int:
    """Where the piece ends for the last time in the text, not as a part of a mark; 0 where it is not in it."""
    around = [(start, end) for start, end in marks if end - start > len(piece)]
    outside = (at for at in _places(text, piece) if not any(start <= at and at + len(piece) <= end for start, end in around))
    return next((at + len(piece) for at in outside), 0)


def _not_its_beginning(prompt: str, whole: str) -> DataError:
    same = _common_start(prompt, whole)
    sent, written = (text[max(0, same - 20) : same + 40] for text in (prompt, whole))
    return DataError(
        f"serving would send '…{sent}', and the row has '…{written}' in that place",
        where="chat template",
        allowed="a template whose prompt is the beginning of the answered conversation",
        remedy="another base, or a template without that difference",
    )
