"""How many trials of a study are trained side by side: as many as were measured to be fastest. Trains nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from tunesmith.core.atomic import write_atomic

MOST = 8
GAIN = 1.05  # twice as many must be so much faster, or it may be the clock


def cpu_seconds() -> float:
    """Processor time of this process: other programs of the machine are not in it."""
    used = os.times()
    return used.user + used.system


@dataclass
class Meter:
    """How fast some trainings are together, from what they tell: the time that ended with a step. Evaluations, checkpoints, saving and the
    artifact's test of itself end with events of their own and do not count, nor does what comes before the start."""

    clock: Callable[[], float] = cpu_seconds
    tokens: int = 0
    seconds: float = 0.0
    _last: float | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        now = self.clock()
        if event["event"] == "step" and self._last is not None:
            self.tokens, self.seconds = self.tokens + event["tokens"], self.seconds + now - self._last
        self._last = now

    @property
    def rate(self) -> float | None:
        """Tokens a second; None where nothing was trained."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None


class Width:
    """The width of one study, in a file of its folder, so that every process of it goes on with what was measured.

    Twice as many are tried as long as that trains more tokens a processor second on the lowest rung.
    """

    def __init__(self, folder: Path, asked: int | Literal["auto"]) -> None:
        self.path, self.asked = folder / "side_by_side.json", asked

    @property
    def rates(self) -> dict[int, float]:
        """Tokens a processor second by how many were trained side by side."""
        return msgspec.json.decode(self.path.read_bytes(), type=dict[int, float]) if self.path.is_file() else {}

    @property
    def most(self) -> int:
        """How many trials are taken at most."""
        if self.asked != "auto":
            return self.asked
        rates, width = self.rates, 1
        while width < MOST and width in rates and rates.get(2 * width, float("inf")) > GAIN * rates[width]:
            width *= 2
        return width

    def measured(self, count: int, rate: float) -> None:
        """Keep a rate; the first of each number holds, so that a study does not change its mind."""
        rates = self.rates
        if rates.setdefault(count, rate) is rate:
            write_atomic(self.path, msgspec.json.encode(rates))
