"""The section `decide:` of tunesmith.yaml as one frozen record; knows nothing about how an arm is built or measured."""

from __future__ import annotations

import math
import re

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record
from tunesmith.decide.records import Constraints
from tunesmith.decide.rules import Needs

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Learning(Record, frozen=True):
    """How the value of more data is measured: a fine-tuning on each of these shares of the training rows, nested, once for each seed."""

    shares: tuple[float, ...] = (0.25, 0.5)
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        if any(not 0 < share < 1 for share in self.shares) or len(set(self.shares)) < len(self.shares):
            raise ConfigError(f"shares {list(self.shares)}", where="decide.learning.shares", allowed="distinct numbers between 0 and 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {list(self.seeds)}", where="decide.learning.seeds", allowed="at least one, each once")


class Decide(Record, frozen=True):
    """What `tunesmith decide` compares and by which rule.

    `arms` are kinds of arms (see `decide/arms.py`), each for every base, or one of them as KIND@BASE; empty: all that can be built here.
    `prompt` is the user's own instruction; what stands in it between `{{` and `}}` is never changed by the search for a better one.
    `bases` come beside the project's `base`; `models` are larger or hosted models that answer as they are; `teacher` is a model on whose
    answers the arm `distilled` is trained; `documents` are files and folders that retrieval arms look things up in, without those (or pages
    of them) that `skip` names.

    The decision is the cheapest arm that is not worse than the best by `margin` of the first metric's scale, at the level `alpha`.
    `shots` and `passages` are the numbers of solved rows and passages to choose from; `encoder` of the catalogue (or `words`: tf-idf) says
    what is alike. Choices are made on the first `validation_rows` of the validation part, `test_rows` of the sealed test part decide (None:
    as `evaluate.limit` says), `shard` of them at a time. Latency is that of `latency_rows` validation questions, asked one by one.

    `needs` is the questionnaire (fresh facts? sources? form? private?): arms that cannot meet an answer are cut before anything is spent.
    `enough` is the score (0 to 1) at which the task counts as done, for the probe of what the base lacks. An arm that breaks one of the
    `constraints`, as measured on validation rows, is asked no test row.

    `machine_per_hour` is what an hour of this machine costs (US dollars), `busy` the share of it that serving would be at work. With
    `requests_per_month` the cheapest is the one with the least cost of building and so many answers, without it the simplest to keep.
    `budget` (90s, 20m, 2h) bounds the time of the experiment, `budget_usd` what it costs; `quick` makes everything smaller, for a first
    verdict.
    """

    arms: tuple[str, ...] = ()
    prompt: str | None = None
    bases: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    teacher: str | None = None
    documents: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    margin: float = 0.02
    alpha: float = 0.05
    shots: tuple[int, ...] = (2, 4)
    passages: tuple[int, ...] = (1, 3)
    encoder: str = "minilm-l6-v2"
    validation_rows: int = 48
    test_rows: int | None = None
    shard: int = 24
    latency_rows: int = 8
    learning: Learning = Learning()
    needs: Needs = Needs()
    constraints: Constraints = Constraints()
    enough: float = 0.8
    machine_per_hour: float | None = None
    busy: float = 1.0
    requests_per_month: float | None = None
    budget: str | None = None
    budget_usd: float | None = None
    quick: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.budget is not None:
            seconds_of(self.budget)
        for key in ("arms", "bases", "models", "documents"):
            refuse_repeated(getattr(self, key), f"decide.{key}")

    def _check_numbers(self) -> None:
        least = {"validation_rows": 1, "shard": 2, "latency_rows": 1}
        for key, number in least.items():
            if getattr(self, key) < number:
                raise ConfigError(f"{key} is {getattr(self, key)}", where=f"decide.{key}", allowed=f"{number} or more")
        if self.test_rows is not None and self.test_rows < 2:
            raise ConfigError(f"test_rows is {self.test_rows}", where="decide.test_rows", allowed="2 or more")
        for key in ("shots", "passages"):
            numbers = getattr(self, key)
            if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
                raise ConfigError(f"{key} {list(numbers)}", where=f"decide.{key}", allowed="at least one number from 1, each once")
        for key, low, high in (("margin", 0.0, 1.0), ("alpha", 0.0, 0.5), ("busy", 0.0, 1.0), ("enough", 0.0, 1.0)):
            value = getattr(self, key)
            if not low < value <= high:
                raise ConfigError(f"{key} is {value}", where=f"decide.{key}", allowed=f"above {low:g}, at most {high:g}")
        for key in ("machine_per_hour", "budget_usd", "requests_per_month"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{key} is {value}", where=f"decide.{key}", allowed="0 or more")

    @property
    def budget_s(self) -> float | None:
        """The time that the experiment may take, in seconds; None: as long as it takes."""
        return None if self.budget is None else seconds_of(self.budget)


def seconds_of(budget: str) -> float:
    """`90s`, `20m`, `1.5h` in seconds. Raises ConfigError for anything else, and for no time at all."""
    match = _BUDGET.fullmatch(budget.strip())
    if match is None or float(match[1]) == 0:
        raise ConfigError(f"budget '{budget}'", where="decide.budget", allowed="a number with s, m or h, such as 90s, 20m, 2h")
    return float(match[1]) * _SECONDS[match[2]]


def refuse_repeated(words: tuple[str, ...], where: str) -> None:
    """Raises ConfigError for a word that stands twice."""
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise ConfigError(f"'{twice[0]}' is named twice", where=where, allowed="each once", remedy="leave one of them out")
