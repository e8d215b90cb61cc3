"""What other tools export of people's words about answers, read as `Feedback`; knows nothing about files, nor about which requests the log
has.

    open-webui    feedback export: a rating with the chat that it is about
    dify          feedback export, or messages with their `feedback`
    langfuse      scores, or traces with their `scores`
    langsmith     feedback, with runs or without
    promptfoo     results, of which the ratings that a person gave
    tunesmith     what `feedback export` writes, and bodies of /v1/feedback

Each reads one row; a row may hold several words, or none (a rating that was taken back).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.feedback import FeedbackBody, seconds_since_1970
from tunesmith.core.types import Feedback, Message, digest

Row = Mapping[str, Any]
_ROLES = ("system", "developer", "user", "assistant", "tool")
# What tools call a word that says only good or bad.
_THUMBS = {
    "thumbs",
    "thumb",
    "thumbs_up",
    "thumbs_down",
    "user_feedback",
    "user_score",
    "feedback",
    "like",
    "liked",
    "rating",
    "user_rating",
}


class Format(NamedTuple):
    """How a tool's rows look and are read."""

    name: str
    matches: Callable[[Row], bool]
    read: Callable[[Row, float], Iterator[Feedback]]


class Export(NamedTuple):
    """A file as it was read: its format, its words, and how many of its rows held none."""

    format: str
    words: list[Feedback]
    empty: int


def read_export(tree: Any, now: float, *, project: str = "default", where: str = "") -> Export:
    """The words of an export, received `now`. `tree` is the file's JSON value, or its lines as a list.

    Raises DataError for what no format knows, and with the number of a row that cannot be read.
    """
    rows = _rows(tree)
    known = next((format for format in FORMATS if any(format.matches(row) for row in rows)), None)
    if known is None:
        keys = f"a row with the keys {', '.join(map(str, list(rows[0])[:8]))}" if rows else "no rows"
        raise DataError(f"{keys} is no feedback that is known", where=where, allowed=", ".join(format.name for format in FORMATS))
    words: list[Feedback] = []
    empty = 0
    for number, row in enumerate(rows, 1):
        try:
            read = list(known.read(row, now))
        except (UsageError, msgspec.ValidationError, KeyError, TypeError, ValueError, AttributeError) as error:
            what = error.what if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            raise DataError(f"row {number} cannot be read as {known.name}: {what}", where=where) from error
        words += [msgspec.structs.replace(word, project=project) for word in read]
        empty += not read
    return Export(known.name, words, empty)


def _rows(tree: Any) -> list[Row]:
    """The rows of an export, out of whatever stands around them."""
    for key in ("feedback_data", "data", "results", "feedback", "scores", "items"):
        if isinstance(tree, dict) and isinstance(inside := tree.get(key), (list, dict)) and not _is_row(tree):
            return _rows(inside)
    return [row for row in (tree if isinstance(tree, list) else [tree]) if isinstance(row, dict)]


def _is_row(tree: Row) -> bool:
    return any(format.matches(tree) for format in FORMATS)


def _word(interaction: Any, kind: Any, value: float | str, now: float, *, id: str, created: Any = None, **more: Any) -> Feedback:
    said = now if created in (None, "") else seconds_since_1970(_number(created))
    texts = {name: str(text) if text else "" for name, text in more.items() if name not in ("messages",)}
    return Feedback(
        id=id,
        interaction=str(interaction or ""),
        kind=kind,
        value=value,
        created=said,
        received=now,
        messages=more.get("messages", ()),
        **texts,
    )


def _number(text: Any) -> Any:
    """Cells of a table are texts."""
    if isinstance(text, str) and text.strip().lower() in ("true", "false"):
        return float(text.strip().lower() == "true")
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


# --- Open WebUI --------------------------------------------------------------------------------------------------------------------------


def _is_open_webui(row: Row) -> bool:
    return row.keys() >= {"data", "meta", "user_id"} and isinstance(row["data"], dict) and "rating" in row["data"]


def _open_webui(row: Row, now: float) -> Iterator[Feedback]:
    data, meta = row["data"], row["meta"] or {}
    when = row.get("updated_at") or row.get("created_at")
    messages, answer, alias = _chat_of(row, str(meta.get("message_id") or ""))
    about = {"messages": messages, "answer": answer, "alias": alias or data.get("model_id"), "by": row["user_id"], "source": "open-webui"}
    comment = ": ".join(filter(None, [data.get("reason"), data.get("comment")]))
    named = f"open-webui:{row['id']}@{when}"
    rating = _number(data["rating"])
    if rating in (1, -1):
        thumbs = 1.0 if rating == 1 else 0.0
        yield _word(meta.get("message_id"), "thumbs", thumbs, now, id=named, created=when, comment=comment, **about)
    details = _number((data.get("details") or {}).get("rating"))
    if isinstance(details, float):
        yield _word(meta.get("message_id"), "score", details, now, id=f"{named}/details", created=when, name="details (1 to 10)", **about)


def _chat_of(row: Row, message: str) -> tuple[tuple[Message, ...], str, str]:
    """What was asked before a message of a chat's tree, the message, and the model that wrote it."""
    chat = (row.get("snapshot") or {}).get("chat") or {}
    chat = chat.get("chat") or chat
    by_id = (chat.get("history") or {}).get("messages") or {}
    answer = by_id.get(message)
    if not isinstance(answer, dict):
        return (), "", ""
    turns: list[Any] = []
    place = answer.get("parentId")
    while place in by_id and len(turns) < len(by_id):
        turns.append(by_id[place])
        place = by_id[place].get("parentId")
    system = (chat.get("params") or {}).get("system")
    first = [{"role": "system", "content": system}] if system else []
    return _turns([*first, *turns[::-1]]), str(answer.get("content") or ""), str(answer.get("model") or "")


# --- Dify --------------------------------------------------------------------------------------------------------------------------------


def _is_dify(row: Row) -> bool:
    export = row.keys() >= {"feedback_id", "message_id"} and ("feedback_rating_raw" in row or "feedback_rating" in row)
    message = row.keys() >= {"query", "answer"} and bool(row.keys() & {"feedback", "feedbacks"})
    return export or message or row.keys() >= {"message_id", "rating", "app_id"}


def _dify(row: Row, now: float) -> Iterator[Feedback]:
    several = row.get("feedbacks") or [row.get("feedback") or row]
    for place, said in enumerate(each for each in several if isinstance(each, dict)):
        rating = said.get("feedback_rating_raw") or said.get("feedback_rating") or said.get("rating")
        thumbs = {"like": 1.0, "dislike": 0.0, "👍": 1.0, "👎": 0.0}.get(str(rating))
        if thumbs is None:
            continue
        message = row.get("message_id") or row.get("id")
        question = str(row.get("user_query") or row.get("query") or "")
        answer = str(row.get("ai_response") or row.get("answer") or "")
        when = said.get("feedback_date") or said.get("updated_at") or said.get("created_at") or row.get("created_at")
        who = ("from_account_name", "from_end_user_id", "from_account_id", "feedback_source", "from_source")
        yield _word(
            message, "thumbs", thumbs, now,
            id=f"dify:{said.get('feedback_id') or said.get('id') or f'{message}/{place}'}@{when}:{thumbs:g}",
            created=when, comment=said.get("feedback_comment") or said.get("content"), answer=answer, alias=row.get("app_name"),
            source="dify", by=next((said[name] for name in who if said.get(name)), ""),
            messages=_turns([{"role": "user", "content": question}]) if question else (),
        )  # fmt: skip


# --- Langfuse ----------------------------------------------------------------------------------------------------------------------------


def _is_langfuse(row: Row) -> bool:
    score = bool(row.keys() & {"traceId", "trace_id"}) and "name" in row and bool(row.keys() & {"value", "stringValue", "string_value"})
    return score or (isinstance(row.get("scores"), list) and "output" in row)


def _langfuse(row: Row, now: float) -> Iterator[Feedback]:
    about: dict[str, Any] = {}
    scores = [row]
    if isinstance(row.get("scores"), list):
        about = _input_output(row.get("input"), row.get("output"))
        scores = [{"traceId": row.get("id"), **score} for score in row["scores"] if isinstance(score, dict)]
    for score in scores:
        named = str(score.get("name") or "")
        label = score.get("stringValue") or score.get("string_value")
        kind, value = _langfuse_value(named, str(score.get("dataType") or score.get("data_type") or ""), _number(score.get("value")), label)
        if value is None:
            continue
        subject = score.get("observationId") or score.get("observation_id") or score.get("traceId") or score.get("trace_id")
        when = score.get("timestamp") or score.get("createdAt") or score.get("created_at")
        identity = score.get("id") or digest(subject, named, value, str(when))
        by = score.get("authorUserId") or score.get("author_user_id") or score.get("source")
        comment = score.get("comment")
        yield _word(
            subject,
            kind,
            value,
            now,
            id=f"langfuse:{identity}",
            created=when,
            name=named,
            by=by,
            comment=comment,
            source="langfuse",
            **about,
        )


def _langfuse_value(name: str, kind: str, value: Any, label: Any) -> tuple[str, float | str | None]:
    if kind == "CORRECTION":
        return "correction", str(label or value) if label or value else None
    if kind == "CATEGORICAL" or (not isinstance(value, float) and label):
        return "outcome", str(label or value) if label or value is not None else None
    if not isinstance(value, float):
        return "score", None
    said, number = _good_or_bad(name, value)
    return ("outcome" if kind == "BOOLEAN" and said == "score" else said), number


# --- LangSmith ---------------------------------------------------------------------------------------------------------------------------


def _is_langsmith(row: Row) -> bool:
    return row.keys() >= {"run_id", "key"} and bool(row.keys() & {"score", "value", "correction"})


def _langsmith(row: Row, now: float) -> Iterator[Feedback]:
    source = row.get("feedback_source") if isinstance(row.get("feedback_source"), dict) else {}
    by = (source or {}).get("user_id") or (source or {}).get("type")
    when = row.get("modified_at") or row.get("created_at")
    about = _input_output(row.get("inputs"), row.get("outputs"))
    more = {"created": when, "by": by, "comment": row.get("comment"), "source": "langsmith", **about}
    identity, name = f"langsmith:{row.get('id') or digest(str(row['run_id']), str(row['key']), str(when))}@{when}", str(row["key"])
    correction = _said(row.get("correction"))
    if correction:
        yield _word(row["run_id"], "correction", correction, now, id=f"{identity}/correction", name=name, **more)
    score = _number(row.get("score"))
    if isinstance(score, float):
        kind, value = _good_or_bad(name, score)
        yield _word(row["run_id"], kind, value, now, id=identity, name=name, **more)
    elif row.get("value") not in (None, "") and not isinstance(row["value"], (dict, list)):
        yield _word(row["run_id"], "outcome", str(row["value"]), now, id=identity, name=name, **more)


# --- promptfoo ---------------------------------------------------------------------------------------------------------------------------


def _is_promptfoo(row: Row) -> bool:
    return "gradingResult" in row and "prompt" in row


def _promptfoo(row: Row, now: float) -> Iterator[Feedback]:
    graded = row.get("gradingResult") or {}
    people = [part for part in graded.get("componentResults") or () if ((part or {}).get("assertion") or {}).get("type") == "human"]
    raw = (row.get("prompt") or {}).get("raw") if isinstance(row.get("prompt"), dict) else row.get("prompt")
    output = (row.get("response") or {}).get("output")
    about = _input_output(raw, output)
    identity = row.get("id") or digest(str(raw), str(output), str((row.get("provider") or {}).get("id")))
    for place, part in enumerate(people):
        comment = ": ".join(filter(None, [part.get("comment") or graded.get("comment"), part.get("reason")]))
        thumbs = 1.0 if part.get("pass") else 0.0
        named = f"promptfoo:{identity}/{place}:{thumbs:g}"
        provider = row.get("provider") or {}
        alias = provider.get("id") if isinstance(provider, dict) else provider
        yield _word(identity, "thumbs", thumbs, now, id=named, comment=comment, alias=alias, source="promptfoo", by="human", **about)


# --- our own -----------------------------------------------------------------------------------------------------------------------------


def _is_own(row: Row) -> bool:
    return "interaction" in row and bool(row.keys() & {"thumbs", "score", "correction", "outcome"})


def _own(row: Row, now: float) -> Iterator[Feedback]:
    about = {key: row[key] for key in ("messages", "answer", "alias") if row.get(key)}
    given = {key: value for key, value in row.items() if value not in (None, "") and key not in about}
    for key in ("score", "created"):
        given |= {key: _number(given[key])} if key in given else {}
    word = msgspec.convert(given, FeedbackBody).feedback(now, source="tunesmith", project="default")
    yield msgspec.structs.replace(word, **{**about, "messages": _turns(about.get("messages", []))})


FORMATS = (
    Format("tunesmith", _is_own, _own),
    Format("open-webui", _is_open_webui, _open_webui),
    Format("langsmith", _is_langsmith, _langsmith),
    Format("langfuse", _is_langfuse, _langfuse),
    Format("promptfoo", _is_promptfoo, _promptfoo),
    Format("dify", _is_dify, _dify),
)


# --- words of many shapes ----------------------------------------------------------------------------------------------------------------


def _good_or_bad(name: str, value: float) -> tuple[str, float]:
    """Thumbs, where the name says so and the value can be; else a score."""
    if name.lower().replace("-", "_").replace(" ", "_") in _THUMBS and value in (0, 1, -1):
        return "thumbs", 1.0 if value == 1 else 0.0
    return "score", value


def _input_output(asked: Any, answered: Any) -> dict[str, Any]:
    """`messages` and `answer` out of what a tool traced; nothing where they are not there."""
    if isinstance(asked, str) and asked.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):  # it only looked like JSON
            asked = json.loads(asked)
    turns = _turns(asked.get("messages") if isinstance(asked, dict) and "messages" in asked else asked)
    words = _said(answered)
    return {"messages": turns, "answer": words} if turns and words else {}


def _turns(given: Any) -> tuple[Message, ...]:
    """Messages in any of the shapes that tools write; () where there are none."""
    if isinstance(given, dict):
        given = [{"role": "user", "content": _said(given)}]
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, Sequence):
        return ()
    turns = []
    for turn in given:
        role = {"human": "user", "ai": "assistant"}.get(str(turn.get("role") or turn.get("type")), str(turn.get("role")))
        if role in _ROLES and (words := _said(turn.get("content"))):
            turns.append(Message(role=role, content=words))  # type: ignore[arg-type]
    return tuple(turns)


def _said(value: Any) -> str:
    """The words of an answer, whatever stands around them; empty where there is no single text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_said(part) for part in value)
    if isinstance(value, dict):
        for key in ("content", "output", "answer", "text", "generations", "choices", "message", "input", "question", "query"):
            if key in value and (words := _said(value[key])):
                return words
        return _said(next(iter(value.values()))) if len(value) == 1 else ""
    return ""
