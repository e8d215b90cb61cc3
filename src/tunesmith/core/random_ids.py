"""Random digits for ids of requests, drawn from the operating system many at once: each call of it may cost as much as a tenth of passing a
request on. Not for keys and secrets."""

from __future__ import annotations

import os
import threading

_DRAWN = 4096  # bytes


class _Digits:
    """What is left of the last draw; a process that was forked draws its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes, self._at = b"", 0
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock, self._bytes, self._at = threading.Lock(), b"", 0

    def take(self, size: int) -> str:
        with self._lock:
            if self._at + size > len(self._bytes):
                self._bytes, self._at = os.urandom(max(_DRAWN, size)), 0
            taken = self._bytes[self._at : self._at + size]
            self._at += size
        return taken.hex()


random_hex = _Digits().take
"""So many random bytes as hexadecimal digits."""
