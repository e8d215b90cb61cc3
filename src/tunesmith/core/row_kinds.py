"""What every kind of row has, asked the same way: the turns, what is asked, the answers, the tools, the content id. Knows nothing about
files, formats or what is trained.

    Example      a conversation; its last assistant turn is the answer
    Preference   a prompt, the preferred answer, the other one
    Labelled     a prompt, one answer, whether it is wanted
    Document     running text: no turns, asks nothing

A new kind of row is a new branch here; `assert_never` makes the type checker name each place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, assert_never

import msgspec

from tunesmith.core.errors import DataError
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Labelled, Message, Preference, digest, example_id

Kind = TypeVar("Kind", Example, Preference, Labelled, Document)

# What rows of a kind are called in messages.
NAMES: dict[type, str] = {
    Example: "examples",
    Preference: "preference pairs",
    Labelled: "labelled answers",
    Document: "documents",
}


def prompt_of(row: Row) -> tuple[Message, ...]:
    """The turns that a model is asked; a document asks nothing."""
    if isinstance(row, Example):
        return row.prompt
    if isinstance(row, Preference | Labelled):
        return row.messages
    if isinstance(row, Document):
        return ()
    assert_never(row)


def answer_turns(row: Row) -> tuple[Message, ...]:
    """The answers that a row brings, the best one first: one of an example (none where it only asks) and of a labelled row, two of a pair,
    none of a document."""
    if isinstance(row, Example):
        return row.messages[len(row.prompt) :]
    if isinstance(row, Preference):
        return row.preferred, row.non_preferred
    if isinstance(row, Labelled):
        return (row.answer,)
    if isinstance(row, Document):
        return ()
    assert_never(row)


def turns_of(row: Row) -> tuple[Message, ...]:
    """Every turn of a row: what is asked, then its answers."""
    return (*prompt_of(row), *answer_turns(row))


def tools_of(row: Row) -> tuple[dict[str, Any], ...]:
    """The tools that the row's model may call."""
    return () if isinstance(row, Document) else row.tools


def is_wanted(row: Row) -> bool:
    """Whether a model should give the row's (first) answer: only labelled rows can say no."""
    return row.desirable if isinstance(row, Labelled) else True


def label_of(row: Row) -> str | None:
    """What rows are told apart by: an example's label; whether a labelled answer is desirable."""
    if isinstance(row, Labelled):
        return "desirable" if row.desirable else "undesirable"
    return row.label if isinstance(row, Example) else None


def changed(row: Row, turn: Callable[[Message], Message], text: Callable[[str], str]) -> Row:
    """The row with `turn` applied to each of its turns in their order, and `text` to the text that is no turn: an example's reference, a
    document's text. Its id is not made anew (`identified`)."""
    if isinstance(row, Document):
        return msgspec.structs.replace(row, text=text(row.text))
    messages = tuple(turn(message) for message in row.messages)
    if isinstance(row, Preference):
        return msgspec.structs.replace(row, messages=messages, preferred=turn(row.preferred), non_preferred=turn(row.non_preferred))
    if isinstance(row, Labelled):
        return msgspec.structs.replace(row, messages=messages, answer=turn(row.answer))
    if isinstance(row, Example):
        return msgspec.structs.replace(row, messages=messages, reference=None if row.reference is None else text(row.reference))
    assert_never(row)


def content_id(row: Row) -> str:
    """The content hash that a row is known by: 24 hex characters over all that is asked and answered, with the tools."""
    if isinstance(row, Example):
        return example_id(row.messages, row.tools, row.reference)
    if isinstance(row, Preference):
        return digest(row.messages, row.preferred, row.non_preferred, row.tools, size=12)
    if isinstance(row, Labelled):
        return digest("labelled", row.messages, row.answer, row.desirable, row.tools, size=12)
    if isinstance(row, Document):
        return digest("document", row.text, size=12)
    assert_never(row)


def identified(row: Row) -> Row:
    """The row under the id of its content."""
    return msgspec.structs.replace(row, id=content_id(row))


def kind_of(rows: Iterable[Row], where: str = "") -> type[Row]:
    """The one kind that rows are of (Example for no rows). Raises DataError when they are of several."""
    kinds = {type(row) for row in rows}
    if len(kinds) > 1:
        both = " and ".join(sorted(NAMES[kind] for kind in kinds))
        raise DataError(f"these rows are {both}", where=where, allowed="one kind of rows", remedy="read them one kind at a time")
    return next(iter(kinds), Example)


def as_examples(rows: Iterable[Row]) -> list[Example]:
    """Rows of any kind as things that a model is asked and can be compared with: a pair with its preferred answer, of labelled rows those
    that are wanted, a document as one turn without a question."""
    examples = []
    for row in rows:
        if isinstance(row, Example):
            examples.append(row)
        elif isinstance(row, Document):
            turn = Message(role="assistant", content=row.text)
            examples.append(Example(id=row.id, messages=(turn,), group=row.group, meta=row.meta, origin=row.origin))
        elif is_wanted(row):
            turns = (*row.messages, answer_turns(row)[0])
            examples.append(Example(id=row.id, messages=turns, tools=row.tools, group=row.group, meta=row.meta, origin=row.origin))
    return examples


def only(rows: Iterable[Row], kind: type[Kind], where: str = "") -> list[Kind]:
    """The rows as rows of that kind. Raises DataError naming the kind they are."""
    listed = list(rows)
    if other := next((row for row in listed if not isinstance(row, kind)), None):
        raise DataError(
            f"these rows are {NAMES[type(other)]}, not {NAMES[kind]}; the first: {other.origin or other.id}",
            where=where,
            allowed=NAMES[kind],
            remedy="tunesmith init proposes the training method that takes them",
        )
    return [row for row in listed if isinstance(row, kind)]
