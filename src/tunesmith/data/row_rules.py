"""Rules that need one row: broken text, length, language, empty answers, refusals, personal data; knows nothing about other rows.

A rule takes rows and yields changes; what it says of a row depends on that row alone, so rows can come in pieces of any size and order.
What a rule mends it says; what it drops it says why.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

from tunesmith.core.errors import ConfigError, nearest
from tunesmith.core.load import need, resolve
from tunesmith.core.row_kinds import answer_turns, is_wanted
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Fate, Labelled, Preference, Record
from tunesmith.data.pii import PersonalData, find_all, replace
from tunesmith.data.text import answer_of, map_texts, question_of, subject_of, texts_of


class RowChange(NamedTuple):
    """What a rule does to the row at index `at`: its fate with a reason, the mended row, and the kinds of personal data that it has
    ('kept': nothing but these is said)."""

    at: int
    fate: Fate
    reason: str
    row: Row | None = None
    kinds: tuple[str, ...] = ()


Rule = Callable[[Sequence[Row]], Iterator[RowChange]]


class Length(Record, frozen=True):
    """Limits in characters on the user turns together and on the answer; None is no limit. (Tokens are counted where they are cut.)"""

    min_question: int = 0
    max_question: int | None = None
    min_answer: int = 0
    max_answer: int | None = None


_PAGE = re.compile("[\x0b\x0c]")  # a vertical tab or a form feed ends a line
_SEPARATOR = re.compile("[\x1c-\x1f]")
# all other controls but tab and line feed, zero-width marks that stand alone in text, the byte order mark; joiners stay: scripts need them
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200b\u2060\ufeff]")


def repaired(text: str, *, keep: Container[str] = (), undo: bool = True) -> str:
    """Text with mojibake undone (ftfy; not without `undo`), in Unicode NFC, with line feeds as line ends (also for form feeds) and without
    invisible control characters. What is in `keep` is no mojibake."""
    if _is_plain(text):
        return text
    if not text.isascii():
        if undo and (better := _decoded(text)) != text and not _new_letters(text, better, keep):
            text = better
        text = unicodedata.normalize("NFC", text)
    text = _PAGE.sub("\n", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _INVISIBLE.sub("", _SEPARATOR.sub(" ", text))


def _decoded(text: str) -> str:
    ftfy = need("ftfy", extra="data")
    return str(ftfy.fix_encoding(text)) if ftfy.is_bad(text) else text


def _new_letters(text: str, better: str, keep: Container[str]) -> bool:
    """Whether undoing mojibake would bring a letter that the row or this very text writes rightly elsewhere: it speaks of mojibake."""
    return any(c in keep and better.count(c) > text.count(c) for c in set(better) if not c.isascii())


_ENCODINGS = re.compile(
    r"mojibake|\b(utf-?8|utf-?16|latin-?1|iso-?8859|cp-?1252|windows-?1252|ftfy)\b|char(acter )?(set|encoding)|unicode|\bencod(ed|ing)\b",
    re.I,
)  # a row that names one shows broken letters on purpose


def _is_plain(text: str) -> bool:
    """ASCII without control characters other than tab and line feed: nothing to repair, seen fast."""
    return text.isascii() and (text.isprintable() or text.translate(_NO_BREAKS).isprintable())


_NO_BREAKS = {ord("\t"): None, ord("\n"): None}


def repair_text(rows: Sequence[Row]) -> Iterator[RowChange]:
    """Rows whose text is broken, put right (`repaired`)."""
    for i, row in enumerate(rows):
        if all(map(_is_plain, texts_of(row))):
            continue
        texts = texts_of(row)
        right = {c for text in texts if not text.isascii() for c in text if not c.isascii()}
        undo = not any(map(_ENCODINGS.search, texts))
        better = map_texts(row, lambda text, right=right, undo=undo: repaired(text, keep=right, undo=undo))  # type: ignore[misc]
        if better != row:
            yield RowChange(i, "mended", "", row=better)


def length(limits: Length) -> Rule:
    """Rows outside the limits are dropped."""

    def rule(rows: Sequence[Row]) -> Iterator[RowChange]:
        for i, row in enumerate(rows):
            for what, n, low, high in (
                ("question", len(question_of(row)), limits.min_question, limits.max_question),
                ("answer", len(answer_of(row)), limits.min_answer, limits.max_answer),
            ):
                if n < low or (high is not None and n > high):
                    yield RowChange(
                        i, "dropped", f"the {what} has {n} characters; allowed: {low} to {'any number' if high is None else high}"
                    )
                    break

    return rule


def language(allowed: Sequence[str]) -> Rule:
    """Rows whose user turns (of documents the text) are in another language than the allowed ISO 639-1 codes are dropped (py3langid; texts
    of fewer than 30 letters are not judged). The rule raises ConfigError for a code that is not known."""

    def rule(rows: Sequence[Row]) -> Iterator[RowChange]:
        langid = need("py3langid", extra="data")
        known = sorted(code for code, _ in langid.rank("a"))
        if unknown := next((code for code in allowed if code not in known), None):
            raise ConfigError(
                f"no language '{unknown}'", where="clean.languages", allowed=", ".join(known), remedy=nearest(unknown[:2].lower(), known)
            )
        identify = langid.classify
        for i, row in enumerate(rows):
            text = subject_of(row)
            if sum(c.isalpha() for c in text[:200]) >= 30:
                code, _ = identify(text[:2000])
                if code not in allowed:
                    what = "text" if isinstance(row, Document) else "question"
                    yield RowChange(i, "dropped", f"the {what} is in '{code}'; allowed: {', '.join(allowed)}")

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
    """Whether the answer declines: an explicit `refusal`, or words of declining within its first 200 characters. A labelled answer that
    is not wanted teaches the opposite, and a document answers nobody."""
    if isinstance(row, Document) or not is_wanted(row):
        return False
    answer = next(iter(answer_turns(row)), None)
    return bool(answer is not None and answer.refusal) or bool(_REFUSAL.search(answer_of(row)[:200]))


def refusals(rows: Sequence[Row]) -> Iterator[RowChange]:
    """Rows that teach to decline."""
    for i, row in enumerate(rows):
        if is_refusal(row):
            yield RowChange(i, "dropped", f"the answer declines: {answer_of(row)[:60]!r}")


def personal_data(settings: PersonalData) -> Rule:
    """What `settings.action` says about rows with personal data; each change names the kinds that its row has."""

    def rule(rows: Sequence[Row]) -> Iterator[RowChange]:
        texts = [texts_of(row) for row in rows]
        spans = iter(find_all([text for several in texts for text in several], settings.kinds))
        for i, (row, several) in enumerate(zip(rows, texts, strict=True)):
            here = [next(spans) for _ in several]
            kinds = tuple(sorted({span.kind for text_spans in here for span in text_spans}))
            if not kinds:
                continue
            if settings.action == "report":
                yield RowChange(i, "kept", "", kinds=kinds)
                continue
            if settings.action == "drop":
                yield RowChange(i, "dropped", f"it holds {', '.join(kinds)}", kinds=kinds)
                continue
            salt = settings.salt if settings.action == "pseudonymise" else None
            better = iter([replace(text, text_spans, salt=salt) for text, text_spans in zip(several, here, strict=True)])
            mended = map_texts(row, lambda _, new=better: next(new), arguments=True)  # type: ignore[misc]
            yield RowChange(i, "mended", ", ".join(kinds), row=mended, kinds=kinds)

    return rule


def empty_answers(rows: Sequence[Row]) -> Iterator[RowChange]:
    """Rows whose (wanted) answer has no words, no tool call and no refusal, and documents without words."""
    for i, row in enumerate(rows):
        answers = answer_turns(row)[:1] if is_wanted(row) else ()
        brings = isinstance(row, Document) or any(not turn.tool_calls for turn in answers)
        if brings and not answer_of(row).strip():
            yield RowChange(i, "dropped", "the document is empty" if isinstance(row, Document) else "the answer is empty")


def user_rule(reference: str) -> Rule:
    """The rule that a user's function of one row makes. Raises ConfigError when there is none or it answers something else."""
    function: Any = resolve(reference, where="clean.rules")

    def rule(rows: Sequence[Row]) -> Iterator[RowChange]:
        for i, row in enumerate(rows):
            try:
                outcome = function(row)
            except Exception as error:  # whatever a user's code raises is told with its row
                raise ConfigError(f"the rule {reference} failed for {row.origin}: {type(error).__name__}: {error}") from error
            if isinstance(outcome, str):
                yield RowChange(i, "dropped", outcome)
            elif isinstance(outcome, Example | Preference | Labelled | Document):
                if outcome != row:
                    yield RowChange(i, "mended", "", row=outcome)
            elif outcome is not None:
                raise ConfigError(
                    f"the rule {reference} answered {type(outcome).__name__} for {row.origin}",
                    allowed="None (keep), a text (drop, with that reason) or a row (put right)",
                )

    return rule
