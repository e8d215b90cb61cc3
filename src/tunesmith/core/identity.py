"""What was answered to probes when a model was deployed, and what a later look at them found; knows nothing about how they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Message, Record

Sample = Mapping[str, float]  # the likeliest first tokens with their log-probabilities; without these the answer itself, with 0
Verdict = Literal["same", "differs", "unknown"]
Moment = Literal["loaded", "served", "asked", "rollback"]
ANSWERS = 4  # to each probe of a reference: two for either half
LEAST_TOLERANCE = 1e-3  # nats: what the order of float32 sums does to a log-probability


class IdentityReference(Record, frozen=True):
    """What the exact weights answered: conversations, and for each `ANSWERS` samples. `logprobs` False: answers only.

    `tolerance` is what rounding may do, in nats; `precision` the type in which it was computed, empty for a model elsewhere.
    """

    probes: tuple[tuple[Message, ...], ...]
    samples: tuple[tuple[dict[str, float], ...], ...]
    logprobs: bool = True
    tolerance: float = LEAST_TOLERANCE
    precision: str = ""

    def __post_init__(self) -> None:
        counts = {len(samples) for samples in self.samples}
        if len(self.probes) != len(self.samples) or counts - {ANSWERS} or not self.probes:
            raise ConfigError(f"{len(self.probes)} probes with {sorted(counts)} answers", allowed=f"some, with {ANSWERS} answers each")

    def half(self, number: int) -> list[Sequence[Sample]]:
        """Every other sample of each probe: those of a look (0), or of what follows a surprising one (1)."""
        return [samples[number::2] for samples in self.samples]


class IdentityCheck(Record, frozen=True):
    """What one look at a variant found. `moment`: when its weights had been `loaded`, while it was `served`, because somebody `asked`, or
    before a `rollback`; `server` is who looked. `p` is that of the last comparison, `distance` in nats (or the share of other answers),
    `probes` how many one-token requests it took; `why` says what is to be known besides."""

    alias: str
    deployment: int
    variant: str
    moment: Moment
    verdict: Verdict
    created: float = 0.0
    server: str = ""
    p: float | None = None
    distance: float | None = None
    probes: int = 0
    why: str = ""

    def text(self) -> str:
        """For people."""
        numbers = "" if self.p is None else f", p {self.p:.2g}, {self.distance or 0.0:.3g} apart on average, {self.probes} probes"
        return f"{self.verdict}{numbers}{f': {self.why}' if self.why else ''}"
