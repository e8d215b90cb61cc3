"""Everything that the tables have of one person, gathered and taken out, and the space that it had overwritten; knows nothing about files.

Deleted rows stay readable in free pages and in the write-ahead log until the database is written anew: `compact` does that.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from tunesmith.core.person import Person
from tunesmith.store.batches import OPEN
from tunesmith.store.files import Files
from tunesmith.store.store import Store
from tunesmith.store.tables import (
    batch_lines,
    batches,
    chats,
    feedback,
    files,
    interactions,
    metadata,
    responses,
)

_AT_ONCE = 500
_SPOKEN = ("user", "assistant", "tool")  # a system prompt is the operator's


def person_of(store: Store, user: str) -> Person:
    """What the log and the feedback have of a user, with the requests of their conversations that name nobody. What others have too is no
    mark of anybody: a text such as "Where is my parcel?", the name of a conversation that all clients use. Raises StoreError."""
    ids, texts = set[str](), set[str]()
    columns = [interactions.c[name] for name in ("id", "messages", "answer", "tool_calls")]
    said = [feedback.c[name] for name in ("text", "correction", "comment", "answer")]
    with store.reading() as connection:
        talks = _own_talks(connection, user)
        nameless = [interactions.c.conversation.in_(part) & interactions.c.user_key.is_(None) for part in _parts(sorted(talks))]
        for where in (interactions.c.user_key == user, *nameless):
            for row in connection.execute(sa.select(*columns).where(where), execution_options={"yield_per": 1000}):
                ids.add(row.id)
                turns = [turn for turn in msgspec.json.decode(row.messages) if turn["role"] in _SPOKEN]
                texts.update(filter(None, (row.answer, *_texts(turns), *_texts(msgspec.json.decode(row.tool_calls)))))
        for row in connection.execute(sa.select(*said).where(feedback.c.by == user)):
            texts.update(filter(None, row))
        texts -= _said_to_others(connection, texts, ids)
    return Person(user, frozenset(ids | talks), frozenset(texts))


def _own_talks(connection: sa.Connection, user: str) -> set[str]:
    """The conversations of a user in which nobody else is named."""
    talk, key = interactions.c.conversation, interactions.c.user_key
    talks = set(connection.execute(sa.select(talk).where(key == user, talk.is_not(None)).distinct()).scalars())
    for part in _parts(sorted(talks)):
        talks -= set(connection.execute(sa.select(talk).where(talk.in_(part), key != user).distinct()).scalars())
    return talks


def _said_to_others(connection: sa.Connection, texts: set[str], ids: set[str]) -> set[str]:
    """Those of the texts that stand in other requests than these, too; every row of the log is looked at."""
    shared = set[str]()
    every = sa.select(interactions.c.id, interactions.c.messages, interactions.c.answer)
    for row in connection.execute(every if texts else every.limit(0), execution_options={"yield_per": 1000}):
        if row.id not in ids:
            shared.update(texts.intersection((row.answer, *_texts(msgspec.json.decode(row.messages)))))
    return shared


def open_batches(store: Store) -> list[str]:
    """The batches that are under way."""
    with store.reading() as connection:
        return list(connection.execute(sa.select(batches.c.id).where(batches.c.status.in_(OPEN))).scalars())


def erase(store: Store, person: Person) -> dict[str, int]:
    """Delete the rows that are about a person; returns how many by table. Raises StoreError: then nothing was deleted."""
    ids = sorted(person.ids)
    deleted: dict[str, int] = {}
    with store.exclusive() as connection:
        for table in (chats, responses, batch_lines):
            deleted[table.name] = _delete(connection, table, _about(connection, table, person))
        for table in (table for table in metadata.sorted_tables if "interaction" in table.c):
            where = [table.c.interaction.in_(part) for part in _parts(ids)]
            deleted[table.name] = sum(connection.execute(sa.delete(table).where(each)).rowcount for each in where)
        deleted[feedback.name] += connection.execute(sa.delete(feedback).where(feedback.c.by == person.user)).rowcount
        theirs = (interactions.c.user_key == person.user, *(interactions.c.id.in_(part) for part in _parts(ids)))
        deleted[interactions.name] = sum(connection.execute(sa.delete(interactions).where(each)).rowcount for each in theirs)
    return {name: count for name, count in deleted.items() if count}


def rewrite_files(store: Store, person: Person) -> Iterator[str]:
    """Take the lines about a person out of the files of clients, of batches' requests and answers; the ids of those that lost some. One of
    which nothing is left is deleted."""
    with store.reading() as connection:
        every = list(connection.execute(sa.select(files.c.id, files.c.project, files.c.filename).order_by(files.c.seq)))
    for number, project, filename in every:
        with tempfile.TemporaryFile() as kept:
            lost = 0
            with Files(store).open(number) as stream:
                for line in io.BufferedReader(stream):  # type: ignore[type-var]
                    about = person.in_line(line)
                    lost += about
                    if not about:
                        kept.write(line)
            if not lost and not person.about(filename):
                continue
            if kept.tell() == 0:
                Files(store).delete(number, project)
            else:
                kept.seek(0)
                size, sha256 = store.blobs.put(f"files/{number}", kept)
                with store.writing() as connection:
                    connection.execute(sa.update(files).where(files.c.id == number).values(bytes=size, sha256=sha256))
        yield number


def compact(store: Store) -> None:
    """Write the database anew without what was deleted, its write-ahead log too. Raises StoreError where another process holds it."""
    with store.by_itself() as connection:
        if connection.dialect.name == "sqlite":
            for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                connection.exec_driver_sql(statement).close()
        else:
            for table in (
                interactions,
                chats,
                responses,
                batch_lines,
                *(table for table in metadata.sorted_tables if "interaction" in table.c),
            ):
                connection.exec_driver_sql(f"VACUUM FULL {table.name}")


def mentions(store: Store, person: Person) -> list[str]:
    """The tables that mention a person still, in any column of words."""
    with store.reading() as connection:
        return [table.name for table in metadata.sorted_tables if _mentioned(connection, table, person)]


def _mentioned(connection: sa.Connection, table: sa.Table, person: Person) -> bool:
    """The database looks for the letters, we for whole words."""
    columns = [column for column in table.columns if isinstance(column.type, sa.String | sa.Text | sa.JSON)]
    words = [sa.cast(column, sa.Text) for column in columns]
    where = [word.contains(person.user, autoescape=True) for word in words]
    where += [column.in_(part) for part in _parts(sorted(person.ids)) for column in words]
    for each in _parts(where, 200):
        rows = connection.execute(sa.select(*columns).where(sa.or_(*each)), execution_options={"yield_per": 1000}).mappings()
        if any(person.about({str(name): _decoded(value) for name, value in row.items()}) for row in rows):
            return True
    return False


def _about(connection: sa.Connection, table: sa.Table, person: Person) -> list[Any]:
    """The keys of the rows of a table that are about a person: the database looks for the letters, we for the fields."""
    key = [column for column in table.columns if column.primary_key]
    words = [sa.cast(column, sa.Text) for column in table.columns if isinstance(column.type, sa.Text | sa.JSON)]
    where = [word.contains(person.user, autoescape=True) for word in words]
    where += [table.c.id.in_(part) for part in _parts(sorted(person.ids)) if "id" in table.c]
    where += [word.contains(number, autoescape=True) for word in words for number in person.ids if "id" not in table.c]
    keys = []
    for each in _parts(where, 200):  # SQLite takes a thousand conditions at most
        for row in connection.execute(sa.select(table).where(sa.or_(*each))).mappings():
            tree = {name: _decoded(value) for name, value in row.items()}
            if person.about(tree):
                keys.append(tuple(row[column.name] for column in key))
    return list(dict.fromkeys(keys))


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            return value
    return value


def _delete(connection: sa.Connection, table: sa.Table, keys: list[Any]) -> int:
    columns = [column for column in table.columns if column.primary_key]
    for key in keys:
        connection.execute(sa.delete(table).where(*(column == value for column, value in zip(columns, key, strict=True))))
    return len(keys)


def _parts(values: Sequence[Any], most: int = _AT_ONCE) -> Iterator[Sequence[Any]]:
    return (values[at : at + most] for at in range(0, len(values), most))


def _texts(value: Any) -> Iterator[str]:
    """Every string of a tree that somebody wrote."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("role", "type", "id", "tool_call_id", "name"):
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
