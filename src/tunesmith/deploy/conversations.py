"""Which conversation a request goes on with, seen from its messages alone; knows nothing about HTTP or the log.

Clients of the chat API send the whole history each time and name no conversation. A request goes on with one when its history, up to its
last answer, was answered here before: same project and user, same turns, the same answer. System and developer messages are left out, since
they may say another date or other documents each time. So examples that stand as turns before every question join no two conversations,
and neither do openings that were answered differently. What was seen is kept in memory, the latest first: after a restart, or where a
client shortens its history, a new conversation begins. Clients that want certainty name theirs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from tunesmith.core.types import Message, ToolCall

_REMEMBERED = 1 << 16


class History:
    """The turns of one request, hashed: `answered` is the hash up to its last answer (None where there is none)."""

    __slots__ = ("_hash", "answered")

    def __init__(self, project: str, user: str | None, messages: Sequence[Message]) -> None:
        self._hash = hashlib.blake2b(f"{project}\0{user}".encode(errors="replace"), digest_size=16)
        last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        self.answered: bytes | None = None
        for i, message in enumerate(messages):
            if message.role not in ("system", "developer"):
                _turn(self._hash, message.role, message.text, message.tool_calls)
            if i == last:
                self.answered = self._hash.copy().digest()

    def with_answer(self, text: str, calls: Sequence[ToolCall]) -> bytes:
        """The hash with an answer after the last message: what the next request's `answered` is."""
        longer = self._hash.copy()
        _turn(longer, "assistant", text, calls)
        return longer.digest()


def _turn(into: hashlib.blake2b, role: str, text: str, calls: Sequence[ToolCall]) -> None:
    words = "\0".join((role, text.strip(), *(f"{call.id} {call.function.name} {call.function.arguments}" for call in calls)))
    into.update(f"{len(words)} {words}".encode(errors="replace"))


class Conversations:
    """The conversations that were seen, the latest `remembered` turns of them."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._by_history: OrderedDict[bytes, str] = OrderedDict()
        self._remembered = remembered

    def of(self, history: History) -> str | None:
        """The conversation that this history goes on with; None where it begins one."""
        return self._by_history.get(history.answered) if history.answered is not None else None

    def remember(self, conversation: str, history: History, text: str, calls: Sequence[ToolCall]) -> None:
        """Know this history with its answer again."""
        self._by_history[history.with_answer(text, calls)] = conversation
        if len(self._by_history) > self._remembered:
            self._by_history.popitem(last=False)
