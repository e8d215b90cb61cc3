"""A row's texts: all of them, to be searched or changed, and what is compared of them, normalised; knows nothing about how.

The **comparison text** of a row is its user turns and its final answer, joined by line feeds. System and developer turns are left out when
there is a user turn: most data repeats one instruction in every row, and it would make unrelated rows look alike.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable

import msgspec

from tunesmith.core.row_kinds import answer_turns, changed, prompt_of, tools_of, turns_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Function, Labelled, Message, TextPart, canonical


def folded(text: str) -> str:
    """Text in Unicode NFKC, case folded."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def normalised(text: str) -> str:
    """Text without differences that do not matter: Unicode NFKC, case folded, runs of white space as one space, none at the ends."""
    return " ".join(folded(text).split())


def answer_of(row: Row) -> str:
    """The answer of a row: the reference or final assistant turn; of a preference pair the preferred one; of a document its text."""
    if isinstance(row, Document):
        return row.text
    return row.answer if isinstance(row, Example) else answer_turns(row)[0].text


def question_of(row: Row) -> str:
    """The user turns of a row, or all turns before the answer when there is no user turn."""
    turns = row.messages if isinstance(row, Example) else prompt_of(row)
    asked = [turn.text for turn in turns if turn.role == "user"] or [turn.text for turn in prompt_of(row)]
    return "\n".join(asked)


def subject_of(row: Row) -> str:
    """What a row is about: its question; of a row that asks nothing (a document) its text."""
    return question_of(row) or answer_of(row)


def comparison_text(row: Row) -> str:
    """User turns and final answer (see above): what near-duplicates and leakage are measured on."""
    return f"{question_of(row)}\n{answer_of(row)}"


def _turn(turn: Message) -> str:
    calls = canonical(turn.tool_calls).decode() if turn.tool_calls else ""
    return f"{turn.role}:{normalised(turn.text)}{calls}"


def prompt_key(row: Row) -> bytes:
    """Digest of all that is asked (system turns and tools included, the answer left out), texts normalised."""
    return _key([_turn(turn) for turn in prompt_of(row)], row)


def claim_key(row: Row) -> bytes | None:
    """What a row makes a claim about, to be compared with what it claims (`claim_of`): its prompt; of a labelled row prompt and answer; a
    document claims nothing."""
    if isinstance(row, Document):
        return None
    return _key([_turn(turn) for turn in turns_of(row)], row) if isinstance(row, Labelled) else prompt_key(row)


def claim_of(row: Row) -> str:
    """What a row says of its `claim_key`: the answer, or whether a labelled answer is wanted."""
    return str(row.desirable) if isinstance(row, Labelled) else normalised(answer_of(row))


def _key(parts: list[str], row: Row) -> bytes:
    if tools := tools_of(row):
        parts.append(canonical(tools).decode())
    # normalised text has no control characters that split() takes for white space, so this cannot be confused
    return hashlib.blake2b("\x1e".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def map_texts(row: Row, change: Callable[[str], str], *, arguments: bool = False) -> Row:
    """The row with `change` applied to every text of its turns, its reference or its document; with `arguments` to tool calls'
    arguments too."""

    def turn(message: Message) -> Message:
        content: str | tuple[TextPart, ...] | None = message.content
        if isinstance(content, str):
            content = change(content)
        elif content is not None:
            content = tuple(TextPart(text=change(part.text)) for part in content)
        calls = message.tool_calls
        if arguments and calls:
            calls = tuple(
                msgspec.structs.replace(call, function=Function(name=call.function.name, arguments=change(call.function.arguments)))
                for call in calls
            )
        aside = {key: None if (text := getattr(message, key)) is None else change(text) for key in ("refusal", "reasoning_content")}
        return msgspec.structs.replace(message, content=content, tool_calls=calls, **aside)

    return changed(row, turn, change)


def texts_of(row: Row) -> list[str]:
    """Every text of a row in which personal data can be, in the order of `map_texts`: turns, tool calls' arguments, reference, a
    document's text."""
    texts: list[str] = []
    for turn in turns_of(row):
        if isinstance(turn.content, str):
            texts.append(turn.content)
        elif turn.content is not None:
            texts += [part.text for part in turn.content]
        texts += [call.function.arguments for call in turn.tool_calls]
        texts += [text for text in (turn.refusal, turn.reasoning_content) if text is not None]
    if isinstance(row, Example) and row.reference is not None:
        texts.append(row.reference)
    if isinstance(row, Document):
        texts.append(row.text)
    return texts
