"""What the section `tune:` of a project says, as frozen records. Knows nothing about how plans are trained."""

from __future__ import annotations

from typing import Any, Literal

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record

Sampler = Literal["tpe", "cmaes", "random", "grid"]


class Axis(Record, frozen=True):
    """The values that one key of the plan may take: `choices`, or the range `low` to `high`.

    `log`: the range is even in the logarithm. `step`: only these multiples above `low`. `points`: how many values a grid takes of a range.
    Ranges of whole numbers give whole numbers.
    """

    choices: tuple[Any, ...] = ()
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    points: int = 4

    def __post_init__(self) -> None:
        ranged = self.low is not None or self.high is not None
        if bool(self.choices) == ranged:
            raise ConfigError("an axis has choices or a range, one of both", allowed="choices: [8, 16], or low and high")
        if self.choices:
            if self.log or self.step is not None:
                raise ConfigError("log and step belong to a range, and this axis has choices", allowed="choices alone")
            if len({repr(value) for value in self.choices}) < len(self.choices):
                raise ConfigError(f"choices {list(self.choices)}", allowed="each value once")
            return
        if self.low is None or self.high is None or not self.low < self.high:
            raise ConfigError(f"a range from {self.low} to {self.high}", allowed="low below high")
        if self.log and self.low <= 0:
            raise ConfigError(f"a logarithmic range from {self.low}", allowed="low above 0")
        if self.step is not None and (self.log or self.step <= 0):
            raise ConfigError(f"step {self.step}{' with log' if self.log else ''}", allowed="a number above 0, in a range without log")
        if self.points < 2:
            raise ConfigError(f"points {self.points}", allowed="2 or more")


class Tune(Record, frozen=True):
    """How a better plan is looked for. The project's own plan is always trial 0.

    `space`: keys of `train:` with the values that they may take, `auto` for the ready ones; empty: all ready ones of the method.
    A study ends with `trials` plans, or when `tokens` were trained, `hours` were spent, or `usd` at `usd_per_hour`, whichever is first.
    `rungs` are shares of a training at which a trial is looked at; of those there, one of `eta` goes on (`[1]`: each is trained whole; eta
    auto: as many as the next rung is longer than this one).
    `proxy` is the share of the training rows, whole near-duplicate clusters, that the lowest rung is trained on (0: none).
    `seeds` more trainings of each of the `finalists` best, and of the default, decide whether one of them is better (0: only the search).
    `rows`: at most so many validation rows are asked (None: all). `by: loss` searches by validation loss where answers take too long.
    `warm_start`: what earlier studies of this store found best is tried first. `storage` is the URL of an SQLite or PostgreSQL database
    (None: a file in the project's store). `at_once`: so many trials of a rung are trained side by side on one base (auto: as many as are
    measured to be fastest here, at most 8).
    """

    space: dict[str, Axis | Literal["auto"]] = {}
    sampler: Sampler = "tpe"
    trials: int = 20
    tokens: int | None = None
    hours: float | None = None
    usd: float | None = None
    usd_per_hour: float | None = None
    rungs: tuple[float, ...] | Literal["auto"] = "auto"
    proxy: float | Literal["auto"] = "auto"
    eta: int | Literal["auto"] = "auto"
    seeds: int = 3
    finalists: int = 2
    rows: int | None = None
    by: Literal["metric", "loss"] = "metric"
    warm_start: bool = True
    seed: int = 0
    storage: str | None = None
    at_once: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("tokens", 1), ("eta", 2), ("finalists", 1), ("seeds", 0), ("rows", 1), ("at_once", 1)):
            value = getattr(self, name)
            if value not in (None, "auto") and value < least:
                raise ConfigError(f"{name} is {value}", where=f"tune.{name}", allowed=f"{least} or more")
        for name in ("hours", "usd", "usd_per_hour"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}", where=f"tune.{name}", allowed="a number above 0")
        if self.usd is not None and self.usd_per_hour is None:
            raise ConfigError(
                "usd needs what an hour of this machine costs", where="tune.usd_per_hour", allowed="a price", remedy="usd_per_hour: 2.5"
            )
        if self.seeds == 1:
            raise ConfigError("one seed shows no noise", where="tune.seeds", allowed="2 or more, or 0 for no repetition")
        if self.rungs != "auto" and (not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or not 0 < self.rungs[0] <= 1):
            raise ConfigError(f"rungs {list(self.rungs)}", where="tune.rungs", allowed="rising shares of a training, the last one 1")
        if self.rungs != "auto" and self.rungs[-1] != 1:
            raise ConfigError(f"the last rung is {self.rungs[-1]}", where="tune.rungs", allowed="1: a whole training")
        if self.proxy != "auto" and not 0 <= self.proxy < 1:
            raise ConfigError(f"proxy is {self.proxy}", where="tune.proxy", allowed="a share below 1; 0 for none")

    @property
    def seconds(self) -> float | None:
        """The time that a study may take: the hours, or what the money pays for, whichever is less."""
        paid = None if self.usd is None or self.usd_per_hour is None else 3600 * self.usd / self.usd_per_hour
        limits = [value for value in (None if self.hours is None else 3600 * self.hours, paid) if value is not None]
        return min(limits, default=None)
