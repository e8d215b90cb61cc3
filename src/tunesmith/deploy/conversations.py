"""Which conversation a request goes on with, seen from its messages alone; knows nothing about HTTP or the log.

Clients of the chat API send the whole history each time and name no conversation. A request goes on with one when its history, up to its
last answer, was answered here before: same project and user, same turns, the same answer. System and developer messages are left out, since
they may say another date or other documents each time. So examples that stand as turns before every question join no two conversations,
and neither do openings that were answered differently. What was seen is kept in memory, the latest first: after a restart, or where a
client shortens its history, a new conversation begins. Clients that want certainty name theirs.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Sequence

from tunesmith.core.types import Message, ToolCall

_REMEMBERED = 1 << 16


class History:
    """The turns of one request, hashed: `answered` is the hash up to its last answer (None where there is none).

    Python's own hash of strings (64 bits, keyed anew in each process) is enough for what never leaves it.
    """

    __slots__ = ("_hash", "answered")

    def __init__(self, project: str, user: str | None, messages: Sequence[Message]) -> None:
        self._hash = hash((project, user))
        self.answered: int | None = None
        for message in messages:
            if message.role not in ("system", "developer"):
                self._hash = _longer(self._hash, message.role, message.text, message.tool_calls)
                if message.role == "assistant":
                    self.answered = self._hash

    def with_answer(self, text: str, calls: Sequence[ToolCall]) -> int:
        """The hash with an answer after the last message: what the next request's `answered` is."""
        return _longer(self._hash, "assistant", text, calls)


def _longer(before: int, role: str, text: str, calls: Sequence[ToolCall]) -> int:
    called = tuple((call.id, call.function.name, call.function.arguments) for call in calls) if calls else ()
    return hash((before, role, text.strip(), called))


class Conversations:
    """The conversations that were seen, the latest `remembered` turns of them."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._by_history: OrderedDict[int, str] = OrderedDict()
        self._remembered, self._numbers = remembered, itertools.count()

    def of(self, history: History) -> str:
        """The conversation that this history goes on with, or a new one."""
        known = self._by_history.get(history.answered) if history.answered is not None else None
        return known or f"conv-{time.time_ns():x}-{next(self._numbers)}"  # in order of time, as an index likes its keys

    def knows(self, history: History) -> bool:
        """Whether this history goes on with a conversation that was seen."""
        return history.answered in self._by_history

    def remember(self, conversation: str, history: History, text: str, calls: Sequence[ToolCall]) -> None:
        """Know this history with its answer again."""
        self._by_history[history.with_answer(text, calls)] = conversation
        if len(self._by_history) > self._remembered:
            self._by_history.popitem(last=False)
