"""The log of requests for people: a leaf of it, and one request with what was said of it and where its answer comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import NotFound
from tunesmith.core.types import Feedback, Interaction
from tunesmith.flow.trace import Trace, trace
from tunesmith.flow.trace_data import NAME_OF_SPLIT, Link
from tunesmith.store.feedback import FeedbackLog, last_question
from tunesmith.store.interaction_pages import LogFilter, leaf
from tunesmith.store.interactions import Interactions
from tunesmith.store.store import Store


def log_leaf(store: Store, wanted: LogFilter, *, before: str = "", limit: int = 50) -> list[dict[str, Any]]:
    """The newest requests that fit, or those before one, each with the beginning of what was asked last. Raises NotFound."""
    return [{**row, "asked": _asked(str(row["messages"]))} for row in leaf(store, wanted, before=before, limit=limit)]


def _asked(messages: str) -> str:
    """The beginning of a conversation's last turn, as far as its text was read."""
    try:
        turns = json.loads(messages)
        last = turns[-1].get("content") or "" if turns else ""
        return last if isinstance(last, str) else json.dumps(last, ensure_ascii=False)
    except ValueError:  # cut in the middle: the first words stand after the first "content"
        words = messages.partition('"content":"')[2] or messages
        return words.replace("\\n", " ").replace('\\"', '"').partition('","')[0]


def questions_of(store: Store, numbers: Sequence[str]) -> dict[str, str]:
    """What was asked last in each of these requests, as far as the log still has them."""
    log = Interactions(store)
    rows = {number: log.find(number) for number in dict.fromkeys(numbers)}
    return {number: last_question(row.messages) for number, row in rows.items() if row is not None}


def nearest_rows(store: Store, number: str, project: str | None, *, rows: int = 5) -> tuple[str, list[Link]]:
    """(the version that holds them, the rows which taught the model that are most like a request and its answer). Raises NotFound."""
    found = Interactions(store).find(number)
    if found is None or (project is not None and found.project != project):
        raise NotFound(f"no request '{number}' in the log", remedy="tunesmith monitor status tells what was asked")
    version, near = "", list[Link]()
    for link in trace(store, found.id, rows=rows, nearest_first=True).came_from:
        if link.kind in ("data", "data version") and not near:
            version = link.id[:NAME_OF_SPLIT] if link.kind == "data" else link.id
        near += [link] if link.kind == "row" else []
    return version, near[:rows]


@dataclass(frozen=True)
class LoggedRequest:
    """One request: what was asked and answered, what was said of it, and the way back to the data that taught its model."""

    asked: Interaction
    words: tuple[Feedback, ...]
    way: Trace


def logged_request(store: Store, number: str, project: str | None, *, rows: int = 0) -> LoggedRequest:
    """A request by its id; `project` None sees all. Raises NotFound."""
    found = Interactions(store).find(number)
    if found is None or (project is not None and found.project != project):
        raise NotFound(f"no request '{number}' in the log", remedy="tunesmith monitor status tells what was asked")
    words = FeedbackLog(store).about([found.id]).get(found.id, [])
    return LoggedRequest(found, tuple(words), trace(store, found.id, rows=rows))
