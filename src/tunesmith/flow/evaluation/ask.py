"""How models are asked and rated, as one record of options; asks nothing."""

from __future__ import annotations

from typing import Any, Literal

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record


class Ask(Record, frozen=True):
    """How models are asked and rated; every key is an option of `tunesmith eval` (`--max_tokens 64`).

    `metrics` (empty: what the rows bring, else exact_match) with `options` by metric; `judge` and `criterion` add a rubric. `temperature`
    and `max_tokens` are, where nobody gives them, those of the variant that a deployed alias answers with, else 0 and what the rows need.
    `samples` above 1 asks so many times with seeds `seed`, `seed` + 1, …; `instruction` replaces the rows' own (`@FILE` reads it); `shots`
    solved rows of `shots_from` go before each question. `price` is US dollars for a million tokens read and written. `rate`: questions a
    minute at most. `sealed` logs each look at the rows; `choose_on` names the data on which the winner is picked that alone is then
    measured on `data`.
    """

    data: str = "test"
    metrics: tuple[str, ...] = ()
    options: dict[str, dict[str, Any]] = {}
    judge: str = ""
    criterion: str = "Is the answer correct, complete and to the point?"
    format: str = "auto"
    map: dict[str, str] = {}
    limit: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    samples: int = 1
    seed: int = 0
    instruction: str | None = None
    shots: int = 0
    by: Literal["random", "nearest"] = "random"
    shots_from: str = "train"
    price: tuple[float, float] | None = None
    concurrency: int = 8
    rate: float | None = None
    sealed: bool = False
    choose_on: str = ""

    def __post_init__(self) -> None:
        for key, least in (("samples", 1), ("shots", 0), ("concurrency", 1)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key} is {getattr(self, key)}", where=key, allowed=f"{least} or more")
        if self.temperature is not None:
            self.check_samples(self.temperature)
        if (self.limit is not None and self.limit < 1) or (self.rate is not None and self.rate <= 0):
            raise ConfigError(f"limit {self.limit}, rate {self.rate}", allowed="limit from 1, rate above 0")

    def check_samples(self, temperature: float) -> None:
        """Raises ConfigError where several samples at this temperature would be one answer."""
        if self.samples > 1 and temperature <= 0:
            raise ConfigError(f"{self.samples} samples at temperature {temperature:g} are the same answer", allowed="--temperature above 0")
