"""Words about answers, out of files and into them: which request of the log each is about. Knows nothing about what is made of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, NotFound, UsageError
from tunesmith.core.feedback import KINDS, FeedbackBody, body_of
from tunesmith.core.rows import read_whole
from tunesmith.core.types import Feedback, Record
from tunesmith.data.csv_table import read_table
from tunesmith.monitor.feedback_formats import read_export
from tunesmith.store.feedback import FeedbackLog, last_question
from tunesmith.store.interactions import Interactions
from tunesmith.store.paging import Missing, new_id
from tunesmith.store.store import Store

_CUT, _CUT_AT = "...", 500  # how Dify's export ends an answer that it cuts, and where


class Imported(Record, frozen=True):
    """What a file held: words that are new, that were there, that are about requests of the log (`by_id`, `by_words`) or bring their own
    conversation, rows without a word, and the requests that nobody here knows."""

    format: str
    new: int
    there: int
    by_id: int
    by_words: int
    own: int
    empty: int
    unknown: tuple[str, ...] = ()

    def text(self) -> str:
        """For people."""
        about = f"{self.by_id} by its id, {self.by_words} by its words, {self.own} with a conversation of its own"
        lines = [f"{self.format}: {counted(self.new, 'new word')}, {self.there} that were there; about a request of the log: {about}"]
        lines += [f"{counted(self.empty, 'row')} without a word of a person"] if self.empty else []
        if self.unknown:
            shown = ", ".join(self.unknown[:5]) + (" …" if len(self.unknown) > 5 else "")
            lines.append(f"LEFT OUT: {counted(len(self.unknown), 'word')} about requests that the log does not have: {shown}")
        return "\n".join(lines)


def import_feedback(store: Store, file: Path, *, project: str = "default") -> Imported:
    """Keep the words of an export; the same file again changes nothing. Raises DataError for what cannot be read."""
    export = read_export(tree_of(file), time.time(), project=project, where=str(file))
    log = FeedbackLog(store)
    placed = _placed(log, export.words, project)
    kept = [(how, log.put(word)[1]) for word, how in placed if how != "unknown"]
    ways = [how for how, _ in kept]
    new = sum(is_new for _, is_new in kept)
    return Imported(
        format=export.format, new=new, there=len(kept) - new, by_id=ways.count("id"), by_words=ways.count("words"), own=ways.count("own"),
        empty=export.empty, unknown=tuple(word.interaction for word, how in placed if how == "unknown"),
    )  # fmt: skip


def say(store: Store, word: Feedback) -> Feedback:
    """Keep one word about a request of the log; what is there under its id. Raises Missing for a request that the log does not have, and as
    `FeedbackLog.put`."""
    log = FeedbackLog(store)
    if not log.requests([word.interaction], word.project):
        raise Missing("answered request", word.interaction, param="interaction", code="interaction_not_found")
    return log.put(word)[0]


def said_of(
    store: Store,
    number: str,
    *,
    kind: str,
    value: str,
    comment: str = "",
    by: str = "",
    source: str = "command",
    project: str | None = None,
) -> Feedback:
    """Keep what somebody says of a request: `kind` and its value as words (thumbs `up`, a score `0.8`); `project` None sees all. Raises
    UsageError for what is no such value, NotFound for a request that is not there."""
    asked = Interactions(store).find(number)
    if asked is None or (project is not None and asked.project != project):
        raise NotFound(f"no request '{number[:200]}' in the log", remedy="tunesmith monitor status tells what was asked")
    body = _body(asked.id, kind, value, comment, by)
    whose = asked.project or "default"
    return say(store, body.feedback(time.time(), source=source, project=whose, own_id=new_id("fb-")))


def _body(interaction: str, kind: str, value: str, comment: str, by: str) -> FeedbackBody:
    if kind not in KINDS:
        raise UsageError(f"no feedback '{kind[:40]}'", allowed=", ".join(KINDS))
    if kind == "thumbs" and value not in ("up", "down"):
        raise UsageError(f"thumbs {value[:40]!r}", allowed="up, down")
    given: float | str = value
    if kind in ("score", "outcome"):
        try:
            given = float(value)
        except ValueError as error:
            if kind == "score":
                raise UsageError(f"a score of {value[:40]!r}", allowed="a number") from error
    about: dict[str, Any] = {kind: given}
    return FeedbackBody(interaction=interaction, comment=comment, by=by, **about)


def export_feedback(store: Store, file: Path) -> int:
    """Write all words, oldest first, as bodies of /v1/feedback, one a line; returns how many."""
    words = FeedbackLog(store).listed()[::-1]
    write_atomic(file, "".join(msgspec.json.encode(_line(word)).decode() + "\n" for word in words))
    return len(words)


def _line(word: Feedback) -> dict[str, Any]:
    """A word as a body, with the conversation that it brought."""
    about = {"messages": word.messages, "answer": word.answer, "alias": word.alias} if word.messages else {}
    return {**msgspec.to_builtins(body_of(word)), **about}


def _placed(log: FeedbackLog, words: Sequence[Feedback], project: str) -> list[tuple[Feedback, str]]:
    """Each word with the request that it is about, and how that is known: `id`, `words`, `own` or `unknown`."""
    known = log.requests([word.interaction for word in words], project)
    others = [word for word in words if word.interaction not in known]
    cut = [_whole(word.answer) for word in others if _whole(word.answer) != word.answer]
    by_answer = log.with_answers([word.answer for word in others if word.answer], cut, project=project)
    placed = []
    for word in words:
        if word.interaction in known:
            placed.append((msgspec.structs.replace(word, messages=(), answer="", alias=""), "id"))
            continue
        asked = last_question(word.messages)
        same = [*by_answer.get(word.answer, ()), *by_answer.get(_whole(word.answer), ())]
        fits = [(id, when) for id, question, when in same if asked and asked in question]  # an application may write around a question
        if fits:
            nearest = min(fits, key=lambda fit: (fit[1] > word.created, abs(fit[1] - word.created)))[0]
            placed.append((msgspec.structs.replace(word, interaction=nearest, messages=(), answer="", alias=""), "words"))
        else:
            own = bool(word.messages and word.answer)  # where the tool names no request, each conversation is one
            placed.append((msgspec.structs.replace(word, interaction=word.interaction or word.id), "own") if own else (word, "unknown"))
    return placed


def _whole(answer: str) -> str:
    """An answer without the mark of having been cut."""
    return answer[:_CUT_AT] if len(answer) == _CUT_AT + len(_CUT) and answer.endswith(_CUT) else answer


def tree_of(file: Path) -> Any:
    """A file's JSON value, its lines of JSON as a list, or the rows of its table. Raises DataError with the line."""
    if not file.is_file():
        raise DataError(f"no file '{file}'", remedy="name an export: .json, .jsonl or .csv")
    if file.name.lower().endswith((".csv", ".tsv")):
        rows = list(read_table(file))
        broken = next(((line, row) for line, row in rows if not isinstance(row, dict)), None)
        if broken is not None:
            raise DataError(broken[1].message, where=f"{file}:{broken[0]}")
        return [row for _, row in rows]
    text = read_whole(file).decode("utf-8-sig", errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        pass
    rows_of: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows_of.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"neither JSON nor lines of JSON: {error}", where=f"{file}:{number}") from error
    return rows_of
