"""Waiting in tests: until something is true, for as long as what works on it lives and gets on; never by a clock that a slow machine outruns."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

PAUSE_S = 0.1  # shorter, looking would take the time of what is looked at
STALLED_S = 600.0  # without any progress at all: a hang, not a slow machine


def until(condition: Callable[[], Any], *, alive: Callable[[], bool] | None = None, progress: Callable[[], Any] | None = None) -> Any:
    """The first true answer of `condition`. Fails when `alive` says that nobody works on it any more, or when neither the answer nor
    `progress` has changed for `STALLED_S`."""
    seen, since = None, time.monotonic()
    while True:
        living = alive is None or alive()  # asked first: what was done by then counts
        answer = condition()
        if answer:
            return answer
        assert living, f"what worked on it has ended, and the answer is still {answer!r}"
        state = (answer, progress() if progress else None)
        if state != seen:
            seen, since = state, time.monotonic()
        assert time.monotonic() - since < STALLED_S, f"no progress for {STALLED_S:.0f} s, the answer is still {state!r}"
        time.sleep(PAUSE_S)


def address(output: str) -> str:
    """Where `tunesmith serve` says that it answers; empty before it says so."""
    said = re.search(r" at (http://\S+)", output)
    return said.group(1) if said else ""
