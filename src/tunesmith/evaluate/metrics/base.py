"""What a metric is and how its rows add up to one number; knows no metric, no model and no interval.

A metric rates one answer. A set of rows becomes one number through the metric's `Pool`: a matrix with one row of sufficient
statistics an example, and a function from their sum to the value. So every subset, slice, cluster and bootstrap resample of any metric is
`pool.value(weights @ pool.rows)`, without rating anything again.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tunesmith.core.errors import ConfigError, NotFound, TunesmithError, nearest
from tunesmith.core.load import resolve
from tunesmith.core.thinking import parted
from tunesmith.core.types import Answer, Example, Record, Score

Floats = NDArray[np.float64]


class Measured(NamedTuple):
    """What a rating function may return beside a plain number: the value, its sufficient statistics, a word for people."""

    value: float | None
    counts: tuple[float, ...] | None = None
    detail: str = ""


Rate = Callable[[Example, Answer], "float | Measured | None"]


class Pool(NamedTuple):
    """`rows` (examples, statistics) and `value`, which maps sums (…, statistics) to values (…); nan where it is not defined.

    `noise` is for a value that noise alone drives away from its least: from the sums, the share of the rows that stand alone and the
    level, how far noise may have driven it.
    """

    rows: Floats
    value: Callable[[Floats], Floats]
    noise: Callable[[Floats, float, float], float] | None = None


def ratio(numerator: Floats, denominator: Floats, empty: float = np.nan) -> Floats:
    """Element-wise quotient, `empty` where the denominator is 0."""
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), empty, dtype=np.float64)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def mean_pool(scores: Sequence[Score]) -> Pool:
    """The mean of the values; a missing value counts in neither sum."""
    rows = np.array([(0.0, 0.0) if s.value is None else (s.value, 1.0) for s in scores], dtype=np.float64).reshape(-1, 2)
    return Pool(rows, lambda sums: ratio(sums[..., 0], sums[..., 1]))


def f1_pool(scores: Sequence[Score]) -> Pool:
    """Micro F1 of summed (true positives, false positives, false negatives); 1 where there is nothing to find and nothing was."""
    rows = stacked(scores, 3)
    return Pool(rows, lambda sums: ratio(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2], empty=1.0))


def ratio_pool(scores: Sequence[Score]) -> Pool:
    """First statistic over the second, each summed: error rates over a corpus."""
    return Pool(stacked(scores, 2), lambda sums: ratio(sums[..., 0], sums[..., 1]))


def stacked(scores: Sequence[Score], width: int) -> Floats:
    """The first `width` counts of every row, zeros for a missing row: shape (rows, width)."""
    empty = (0.0,) * width
    return np.array([(s.counts or empty)[:width] for s in scores], dtype=np.float64).reshape(-1, width)


@dataclass(frozen=True)
class Metric:
    """A named way to rate an answer, called with one example and one answer.

    `low` and `high` bound the values, `better` is the good direction; `kind` says whether the number of a set of rows is the mean of
    the rows or is computed from pooled statistics; `rates` what is rated: answers, or how likely a text is that is there already; `unit`
    is empty for shares. `many`, where a metric has it, rates all rows at once
    (batched encoders and judges) and equals `rate` row by row.
    """

    name: str
    rate: Rate
    low: float = 0.0
    high: float = 1.0
    better: Literal["higher", "lower", "neither"] = "higher"
    kind: Literal["mean", "pooled"] = "mean"
    pool: Callable[[Sequence[Score]], Pool] = mean_pool
    unit: str = ""
    rates: Literal["answers", "likelihood"] = "answers"
    many: Callable[[Sequence[Example], Sequence[Answer]], Sequence[float | Measured | None]] | None = None

    def __call__(self, example: Example, answer: Answer) -> Score:
        """The score of one answer; missing where the model gave none (`finish_reason` error)."""
        if answer.finish_reason == "error":
            return self._score(example, Measured(None, detail="the model gave no answer"))
        try:
            return self._score(example, self.rate(*without_thoughts(example, answer)))
        except TunesmithError:
            raise
        except Exception as error:  # a user's function may raise anything: passed on with the row it happened at
            where = f"metric '{self.name}', row {example.id} {example.origin}".rstrip()
            raise TunesmithError(f"{type(error).__name__}: {error}", where=where) from error

    def rows(self, examples: Sequence[Example], answers: Sequence[Answer]) -> list[Score]:
        """One score for each pair, in order."""
        if self.many is None:
            return [self(example, answer) for example, answer in zip(examples, answers, strict=True)]
        there = [i for i, answer in enumerate(answers) if answer.finish_reason != "error"]
        spoken = [without_thoughts(examples[i], answers[i]) for i in there]
        rated = self.many([example for example, _ in spoken], [answer for _, answer in spoken])
        rated_at = dict(zip(there, rated, strict=True))
        missing = Measured(None, detail="the model gave no answer")
        return [self._score(example, rated_at.get(i, missing)) for i, example in enumerate(examples)]

    def value(self, scores: Sequence[Score]) -> float | None:
        """The number of a set of rows; None where no row has one."""
        if not any(s.value is not None for s in scores):
            return None
        pool = self.pool(scores)
        number = float(pool.value(pool.rows.sum(axis=0)))
        return None if np.isnan(number) else number

    def pools(self, *sides: Sequence[Score]) -> tuple[list[Floats], Callable[[Floats], Floats]]:
        """The statistics of several sets of scores in the same columns, and the one function that reads their sums.

        Two models may have said different labels: only pooled together do their columns mean the same.
        """
        pool = self.pool([score for side in sides for score in side])
        return np.split(pool.rows, np.cumsum([len(side) for side in sides])[:-1]), pool.value

    def _score(self, example: Example, rated: float | Measured | None) -> Score:
        result = rated if isinstance(rated, Measured) else Measured(None if rated is None else float(rated))
        if result.value is not None and np.isnan(result.value):
            result = result._replace(value=None, detail=result.detail or "not a number")
        return Score(example_id=example.id, metric=self.name, value=result.value, counts=result.counts, detail=result.detail)


def without_thoughts(example: Example, answer: Answer) -> tuple[Example, Answer]:
    """Both as they are rated: what stands in <think>…</think> before an answer is no part of it, in an answer as in a reference."""
    wanted, spoken = parted(example.answer, inside=False), parted(answer.text, inside=False)
    if wanted.reasoning is not None:
        example = msgspec.structs.replace(example, reference=wanted.rest)
    if spoken.reasoning is not None:
        thoughts = answer.reasoning_content or spoken.reasoning
        answer = msgspec.structs.replace(answer, text=spoken.rest, reasoning_content=thoughts)
    return example, answer


_makers: dict[str, Callable[..., Metric]] = {}


def register(name: str) -> Callable[[Callable[..., Metric]], Callable[..., Metric]]:
    """Enter a maker of metrics under `name`; its parameters are the metric's options."""

    def enter(make: Callable[..., Metric]) -> Callable[..., Metric]:
        _makers[name] = make
        return make

    return enter


def measured(name: str, **traits: Any) -> Callable[[Rate], Metric]:
    """Make the function below it a metric without options and enter it under `name`; `traits` are Metric's fields."""

    def make(rate: Rate) -> Metric:
        made = Metric(name=name, rate=rate, **traits)
        object.__setattr__(made, "__doc__", rate.__doc__)  # frozen keeps its fields; the docstring is none of them

        def same() -> Metric:
            return made

        same.__doc__ = rate.__doc__
        _makers[name] = same
        return made

    return make


class MetricEntry(Record, frozen=True):
    """A registered metric for people: what it counts in one sentence, all that its docstring says, and its options with their defaults."""

    name: str
    summary: str
    about: str
    options: dict[str, str] = {}


def described(name: str) -> MetricEntry:
    """What a registered metric counts and takes. Raises NotFound with the nearest known name."""
    make = _maker(name)
    parameters = inspect.signature(make).parameters
    about = inspect.cleandoc(make.__doc__ or "")
    summary = re.split(r"(?<=[.])\s+(?=[A-Z])", " ".join(about.split("\n\n")[0].split()), maxsplit=1)[0]
    given = {key: "must be given" if p.default is p.empty else f"{p.default!r} unless given" for key, p in parameters.items()}
    return MetricEntry(name=name, summary=summary, about=about, options=given)


def _maker(name: str) -> Callable[..., Metric]:
    if name not in _makers:
        raise NotFound(f"no metric '{name}'", allowed=", ".join(names()) + ", or module:function", remedy=nearest(name, _makers))
    return _makers[name]


def names() -> list[str]:
    """The names of all registered metrics, sorted."""
    return sorted(_makers)


def metric(name: str, **options: Any) -> Metric:
    """The metric of a registered name, or of a user's `module:function`.

    A function `(example, answer)` that returns a number, None (missing) or Measured becomes a metric with mean aggregation; an
    attribute that is a Metric already is taken as it is. Raises NotFound with the nearest known name, ConfigError for an unknown option.
    """
    if ":" in name:
        target = resolve(name, where="metric")
        if isinstance(target, Metric):
            return target
        if not callable(target):
            raise ConfigError(f"'{name}' is no function but {type(target).__name__}", where="metric", allowed="(example, answer) -> number")
        return Metric(name=name, rate=target, low=-np.inf, high=np.inf)
    make = _maker(name)
    allowed = list(inspect.signature(make).parameters)
    for key in options:
        if key not in allowed:
            raise ConfigError(
                f"'{key}' is no option", where=f"metric '{name}'", allowed=", ".join(allowed) or "none", remedy=nearest(key, allowed)
            )
    return make(**options)
