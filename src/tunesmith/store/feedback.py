"""What people said of answers, and what came of them: written once however often it is sent, never changed. Knows nothing about HTTP, nor
what the words are used for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tunesmith.core.types import Feedback, Message
from tunesmith.store.paging import Missing, Refused, Row
from tunesmith.store.store import Store
from tunesmith.store.tables import feedback, interactions

_AT_ONCE = 500  # ids in one question to the database
_SAID = ("interaction", "kind", "value", "name", "by", "comment", "project")  # what makes two words the same


class FeedbackLog:
    """The `feedback` table of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, word: Feedback) -> tuple[Feedback, bool]:
        """(what is kept under its id, whether it is new). Raises Refused where another word has that id, StoreError."""
        with self._store.exclusive() as connection:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            statement = insert(feedback).values(**_columns(word)).on_conflict_do_nothing(index_elements=["id"])
            is_new = bool(connection.execute(statement).rowcount)
            row = connection.execute(sa.select(feedback).where(feedback.c.id == _key(word.id, word.project))).mappings().one()
        there = _feedback(row)
        differ = [name for name in _SAID if getattr(there, name) != getattr(_shown(word), name)]
        if differ:
            raise Refused(
                f"feedback '{word.id[:100]}' is there with another {' and '.join(differ)}", param="id", code="id_taken",
                remedy="feedback does not change: send a later word under a new id; the last one counts",
            )  # fmt: skip
        return there, is_new

    def find(self, number: str, project: str) -> Feedback:
        """The word with that id. Raises Missing."""
        with self._store.reading() as connection:
            where = (feedback.c.id == _key(number, project), feedback.c.project == project)
            row = connection.execute(sa.select(feedback).where(*where)).mappings().first()
        if row is None:
            raise Missing("feedback", number)
        return _feedback(row)

    def listed(
        self,
        *,
        project: str | None = None,
        interaction: str | None = None,
        kinds: Collection[str] = (),
        since: float | None = None,
        limit: int | None = None,
    ) -> list[Feedback]:
        """The words that fit all that is given, those received last first; at most `limit`."""
        where: list[Any] = [feedback.c.project == project] if project is not None else []
        where += [feedback.c.interaction == interaction] if interaction is not None else []
        where += [feedback.c.kind.in_(list(kinds))] if kinds else []
        where += [feedback.c.received >= since] if since is not None else []
        query = sa.select(feedback).where(*where).order_by(feedback.c.seq.desc()).limit(limit)
        with self._store.reading() as connection:
            return [_feedback(row) for row in connection.execute(query).mappings()]

    def about(self, ids: Sequence[str]) -> dict[str, list[Feedback]]:
        """The words about these requests, oldest first: request → words."""
        words: dict[str, list[Feedback]] = {}
        with self._store.reading() as connection:
            for some in _pieces(ids):
                query = sa.select(feedback).where(feedback.c.interaction.in_(some)).order_by(feedback.c.seq)
                for row in connection.execute(query).mappings():
                    words.setdefault(row["interaction"], []).append(_feedback(row))
        return words

    def requests(self, ids: Sequence[str], project: str) -> set[str]:
        """Those of the ids that the log of requests has, of one project."""
        known: set[str] = set()
        with self._store.reading() as connection:
            for some in _pieces(ids):
                query = sa.select(interactions.c.id).where(interactions.c.id.in_(some), _of(project))
                known.update(connection.execute(query).scalars())
        return known

    def with_answers(
        self, answers: Sequence[str], cut: Sequence[str] = (), *, project: str = "default"
    ) -> dict[str, list[tuple[str, str, float]]]:
        """Requests of a project that were answered with exactly these words, or with words that begin as one of `cut`: words → (id, last
        question, when)."""
        fits: dict[str, list[tuple[str, str, float]]] = {}
        columns = (interactions.c.id, interactions.c.answer, interactions.c.messages, interactions.c.created)
        with self._store.reading() as connection:
            for some in _pieces(answers):
                for row in connection.execute(sa.select(*columns).where(interactions.c.answer.in_(some), _of(project))):
                    fits.setdefault(row.answer, []).append((row.id, last_question(_messages(row.messages)), row.created))
            for words in dict.fromkeys(cut):
                begins = interactions.c.answer.startswith(words, autoescape=True)
                for row in connection.execute(sa.select(*columns).where(begins, _of(project))):
                    fits.setdefault(words, []).append((row.id, last_question(_messages(row.messages)), row.created))
        return fits


def last_question(messages: Sequence[Message]) -> str:
    """The last words of a user."""
    return next((turn.text for turn in reversed(messages) if turn.role == "user"), "")


def _of(project: str) -> sa.ColumnElement[bool]:
    """The requests of a project; those of a store from before there were projects are the default one's."""
    return interactions.c.project.in_(["default", ""] if project == "default" else [project])


def _pieces(values: Sequence[str]) -> Iterator[list[str]]:
    distinct = list(dict.fromkeys(values))
    for start in range(0, len(distinct), _AT_ONCE):
        yield distinct[start : start + _AT_ONCE]


def _key(number: str, project: str) -> str:
    """The id in the table: clients of two projects may give the same one."""
    return number if project == "default" else f"{project}/{number}"


def _shown(word: Feedback) -> Feedback:
    """PostgreSQL has no text with a null character."""
    texts = {name: value.replace("\0", "\ufffd") for name in word.__struct_fields__ if isinstance(value := getattr(word, name), str)}
    return msgspec.structs.replace(word, **texts)


def _columns(word: Feedback) -> dict[str, Any]:
    shown = _shown(word)
    tree = {name: getattr(shown, name) for name in shown.__struct_fields__ if name not in ("value", "messages", "answer")}
    value = shown.value
    tree |= {"number": value if isinstance(value, float) else None, "text": None, "correction": None}
    if isinstance(value, str):
        tree["correction" if word.kind == "correction" else "text"] = value
    tree["id"] = _key(shown.id, shown.project)
    about = msgspec.json.encode(shown.messages).decode().replace("\\u0000", "\ufffd") if shown.messages else None
    return tree | {"messages": about, "answer": shown.answer if shown.messages else None}


def _messages(text: str | None) -> tuple[Message, ...]:
    return msgspec.json.decode(text, type=tuple[Message, ...]) if text else ()


def _feedback(row: Row | Mapping[str, Any]) -> Feedback:
    value = next((row[name] for name in ("number", "correction", "text") if row[name] is not None), "")
    tree = {name: row[name] for name in Feedback.__struct_fields__ if name not in ("value", "messages", "answer")}
    tree["id"] = tree["id"].removeprefix(_key("", tree["project"]))
    return Feedback(**tree, value=value, messages=_messages(row["messages"]), answer=row["answer"] or "")
