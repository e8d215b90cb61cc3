"""Rules about one row: broken text, length, language, refusals, personal data; knows nothing about other rows (contradictions excepted).

Each factory gives a rule as `clean.Rule` has them: all rows in, changes out. What a rule mends it says; what it drops it says why.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from tunesmith.core.errors import ConfigError, nearest
from tunesmith.core.load import need
from tunesmith.core.rows import Row
from tunesmith.core.types import Example, Fate, Function, Message, Preference, Record, TextPart
from tunesmith.data.pii import PersonalData, find_all, replace
from tunesmith.data.text import answer_of, normalised, prompt_key, question_of


class Change(NamedTuple):
    """What a rule does to the row at index `at`: its fate with a reason, the mended row, or the index of the row that it repeats."""

    at: int
    fate: Fate
    reason: str
    row: Row | None = None
    other: int | None = None


Rule = Callable[[Sequence[Row]], Iterator[Change]]


class Length(Record, frozen=True):
    """Limits in characters on the user turns together and on the answer; None is no limit. (Tokens are counted where they are cut.)"""

    min_question: int = 0
    max_question: int | None = None
    min_answer: int = 0
    max_answer: int | None = None


def map_texts(row: Row, change: Callable[[str], str], *, arguments: bool = False) -> Row:
    """The row with `change` applied to every text of its turns and to its reference; with `arguments` to tool calls' arguments too."""

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
        refusal = None if message.refusal is None else change(message.refusal)
        return msgspec.structs.replace(message, content=content, tool_calls=calls, refusal=refusal)

    turns = tuple(turn(message) for message in row.messages)
    if isinstance(row, Preference):
        return msgspec.structs.replace(row, messages=turns, preferred=turn(row.preferred), non_preferred=turn(row.non_preferred))
    return msgspec.structs.replace(row, messages=turns, reference=None if row.reference is None else change(row.reference))


# all controls but tab and line feed, zero-width marks that stand alone in text, the byte order mark; joiners stay: scripts need them
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff]")


def repaired(text: str) -> str:
    """Text with mojibake undone (ftfy), in Unicode NFC, with line feeds as line ends and without invisible control characters."""
    if _is_plain(text):
        return text
    if not text.isascii():
        ftfy = need("ftfy", extra="data")
        if ftfy.is_bad(text):
            text = str(ftfy.fix_encoding(text))
        text = unicodedata.normalize("NFC", text)
    return _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _is_plain(text: str) -> bool:
    """ASCII without control characters other than tab and line feed: nothing to repair, seen fast."""
    return text.isascii() and (text.isprintable() or text.translate(_NO_BREAKS).isprintable())


_NO_BREAKS = {ord("\t"): None, ord("\n"): None}


def repair_text(rows: Sequence[Row]) -> Iterator[Change]:
    """Rows whose text is broken, put right (`repaired`)."""
    for i, row in enumerate(rows):
        if all(map(_is_plain, texts_of(row))):
            continue
        better = map_texts(row, repaired)
        if better != row:
            yield Change(i, "mended", "", row=better)


def length(limits: Length) -> Rule:
    """Rows outside the limits are dropped."""

    def rule(rows: Sequence[Row]) -> Iterator[Change]:
        for i, row in enumerate(rows):
            for what, n, low, high in (
                ("question", len(question_of(row)), limits.min_question, limits.max_question),
                ("answer", len(answer_of(row)), limits.min_answer, limits.max_answer),
            ):
                if n < low or (high is not None and n > high):
                    yield Change(i, "dropped", f"the {what} has {n} characters; allowed: {low} to {'any number' if high is None else high}")
                    break

    return rule


def language(allowed: Sequence[str]) -> Rule:
    """Rows whose user turns are in another language than the allowed ISO 639-1 codes are dropped (py3langid; texts of fewer than 30
    letters are not judged). The rule raises ConfigError for a code that is not known."""

    def rule(rows: Sequence[Row]) -> Iterator[Change]:
        langid = need("py3langid", extra="data")
        known = sorted(code for code, _ in langid.rank("a"))
        if unknown := next((code for code in allowed if code not in known), None):
            raise ConfigError(
                f"no language '{unknown}'", where="clean.languages", allowed=", ".join(known), remedy=nearest(unknown[:2].lower(), known)
            )
        identify = langid.classify
        for i, row in enumerate(rows):
            text = question_of(row)
            if sum(c.isalpha() for c in text[:200]) >= 30:
                code, _ = identify(text[:2000])
                if code not in allowed:
                    yield Change(i, "dropped", f"the question is in '{code}'; allowed: {', '.join(allowed)}")

    return rule


_REFUSAL = re.compile(
    r"(?:i(?:['’]m| am) (?:sorry|unable|not able|afraid)[^.]{0,40}(?:can(?:no|['’])t|cannot|unable|not able)"
    r"|(?:i(?:['’]m| am) (?:unable|not able) to|i (?:can(?:['’]t|not)|won['’]t|will not) "
    r"(?:help|assist|provide|fulfil|comply|answer|do that|create|generate))"
    r"|(?:as|i(?:['’]m| am)) an? (?:ai|artificial)\b[^.]{0,60}(?:can(?:['’]t|not)|not able|unable|don['’]t)"
    r"|(?:es tut mir leid|tut mir leid)[^.]{0,40}(?:kann|nicht)|lo siento[^.]{0,30}no puedo|(?:je suis )?désolée?[^.]{0,40}ne peux pas)",
    re.IGNORECASE,
)


def is_refusal(row: Row) -> bool:
    """Whether the answer declines: an explicit `refusal`, or words of declining within its first 200 characters."""
    last = row.preferred if isinstance(row, Preference) else (row.messages[-1] if row.messages else None)
    return bool(last is not None and last.refusal) or bool(_REFUSAL.search(answer_of(row)[:200]))


def refusals(rows: Sequence[Row]) -> Iterator[Change]:
    """Rows that teach to decline."""
    for i, row in enumerate(rows):
        if is_refusal(row):
            yield Change(i, "dropped", f"the answer declines: {answer_of(row)[:60]!r}")


def contradictions(rows: Sequence[Row]) -> dict[bytes, list[int]]:
    """Rows that ask the same and answer differently (both after normalisation): the prompt's key → indices."""
    asked: dict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        asked[prompt_key(row)].append(i)
    return {key: places for key, places in asked.items() if len({normalised(answer_of(rows[i])) for i in places}) > 1}


def contradictory(action: Literal["drop", "majority"]) -> Rule:
    """Of rows that contradict each other all are dropped, or those whose answer is not given by more than half of them."""

    def rule(rows: Sequence[Row]) -> Iterator[Change]:
        for places in contradictions(rows).values():
            answers = Counter(normalised(answer_of(rows[i])) for i in places)
            best, times = answers.most_common(1)[0]
            for i in places:
                if action == "drop" or times * 2 <= len(places) or normalised(answer_of(rows[i])) != best:
                    yield Change(i, "dropped", f"{len(places)} rows ask the same and give {len(answers)} answers")

    return rule


def texts_of(row: Row) -> list[str]:
    """Every text of a row in which personal data can be, in the order of `map_texts`: turns, tool calls' arguments, reference."""
    turns = (*row.messages, row.preferred, row.non_preferred) if isinstance(row, Preference) else row.messages
    found: list[str] = []
    for turn in turns:
        if isinstance(turn.content, str):
            found.append(turn.content)
        elif turn.content is not None:
            found += [part.text for part in turn.content]
        found += [call.function.arguments for call in turn.tool_calls]
        if turn.refusal is not None:
            found.append(turn.refusal)
    if isinstance(row, Example) and row.reference is not None:
        found.append(row.reference)
    return found


def personal_data(settings: PersonalData, found: dict[str, int]) -> Rule:
    """What `settings.action` says about rows with personal data; how many rows have each kind is added to `found`."""

    def rule(rows: Sequence[Row]) -> Iterator[Change]:
        texts = [texts_of(row) for row in rows]
        spans = iter(find_all([text for several in texts for text in several], settings.kinds))
        for i, (row, several) in enumerate(zip(rows, texts, strict=True)):
            here = [next(spans) for _ in several]
            kinds = sorted({span.kind for one in here for span in one})
            for kind in kinds:
                found[kind] = found.get(kind, 0) + 1
            if not kinds or settings.action == "report":
                continue
            if settings.action == "drop":
                yield Change(i, "dropped", f"it holds {', '.join(kinds)}")
                continue
            salt = settings.salt if settings.action == "pseudonymise" else None
            better = iter([replace(text, one, salt=salt) for text, one in zip(several, here, strict=True)])
            yield Change(i, "mended", ", ".join(kinds), row=map_texts(row, lambda _, new=better: next(new), arguments=True))  # type: ignore[misc]

    return rule
