"""The log of requests for people: a leaf of it, and one request with what was said of it and where its answer comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tunesmith.core.errors import NotFound
from tunesmith.core.types import Feedback, Interaction
from tunesmith.flow.trace import Trace, trace
from tunesmith.store.feedback import FeedbackLog
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


@dataclass(frozen=True)
class LoggedRequest:
    """One request: what was asked and answered, what was said of it, and the way back to the rows that taught its model."""

    asked: Interaction
    words: tuple[Feedback, ...]
    way: Trace


def logged_request(store: Store, number: str, project: str | None, *, rows: int = 5) -> LoggedRequest:
    """A request by its id; `project` None sees all. Raises NotFound."""
    found = Interactions(store).find(number)
    if found is None or (project is not None and found.project != project):
        raise NotFound(f"no request '{number}' in the log", remedy="tunesmith monitor status tells what was asked")
    words = FeedbackLog(store).about([found.id]).get(found.id, [])
    return LoggedRequest(found, tuple(words), trace(store, found.id, rows=rows))
