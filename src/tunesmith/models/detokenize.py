"""Token ids to words as they come: holds back what is not yet whole characters or may become a stop string; knows nothing about models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CONTEXT = 6  # ids before the new ones that are decoded with them, because a token's text may depend on its neighbours


class Words:
    """The text of one answer. `push` an id, get the words that are certain; `stopped` is set when a stop string came.

    The stop string itself is not part of the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(word for word in stop if word)
        self._ids: list[int] = []
        self._from = self._to = 0  # ids before _to are decoded; decoding starts again at _from
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, number: int) -> str:
        """The new words after one more id; may be empty."""
        self._ids.append(number)
        before = self._decode(self._ids[self._from : self._to])
        now = self._decode(self._ids[self._from :])
        if now.endswith("\ufffd") and len(self._ids) - self._to < 8:
            return ""  # the bytes of one character are split over tokens: wait for the rest, not for ever
        self._to = len(self._ids)
        self._from = max(self._from, self._to - _CONTEXT)
        return self._release(now[len(before) :])

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        if self.stopped:
            return ""
        tail = self._decode(self._ids[self._from :])[len(self._decode(self._ids[self._from : self._to])) :]
        self._to = len(self._ids)
        new = self._release(tail) + self._held
        self.text += self._held if not self.stopped else ""
        self._held = ""
        return new

    def _release(self, new: str) -> str:
        self._held += new
        stops = [(at, word) for word in self._stop if (at := self._held.find(word)) >= 0]
        if stops:
            out, self._held, self.stopped = self._held[: min(stops)[0]], "", True
        else:
            keep = max((overlap(self._held, word) for word in self._stop), default=0)
            cut = len(self._held) - keep
            out, self._held = self._held[:cut], self._held[cut:]
        self.text += out
        return out


def overlap(text: str, word: str) -> int:
    """How many characters at the end of `text` may be the beginning of `word`."""
    return next((n for n in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:n])), 0)
