"""Whether the best plan of a study is better than the default: noise is not to be taken for progress. Knows no metric and no model.

The best of many equal plans looks better than the default: the highest of twenty draws lies 1.9 deviations above the mean. So the finalists
and the default are trained again with fresh seeds, which chose nobody; the difference is taken row by row at a level that is corrected for
the number of plans that were tried (Bonferroni), since a plan may have been chosen for what these very rows happen to like; and the noise
between seeds is added to the interval. Unless all of it is on the good side, the default is recommended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import hypot, sqrt
from typing import Literal

import numpy as np
from msgspec.structs import replace

from tunesmith.core.stats import Difference
from tunesmith.core.stats.distributions import t_for
from tunesmith.core.types import Record
from tunesmith.tune.trials import DEFAULT, Trial, ranked

Recommended = Literal["default", "trial"]


class StudyVerdict(Record, frozen=True):
    """What a study recommends. `trial` is the best finalist (None: no trial was better than the default in the search).
    `difference` is that trial minus the default on the validation rows, at `level`; None where nothing was repeated."""

    recommended: Recommended
    sentence: str
    trial: int | None = None
    difference: Difference | None = None
    level: float = 0.95
    tried: int = 0
    seeds: int = 0


def level(tried: int, alpha: float = 0.05) -> float:
    """The level of the interval that decides after `tried` plans beside the default."""
    return 1 - alpha / max(1, tried)


def finalists(trials: Sequence[Trial], count: int, *, higher: bool) -> list[Trial]:
    """The trials that were trained whole and were better than the default in the search, the best first, at most so many."""
    order = ranked([trial for trial in trials if trial.state == "finished"], higher=higher)
    default = next((trial for trial in order if trial.number == DEFAULT), None)
    if default is None:
        return []
    return [trial for trial in order[: order.index(default)] if trial.value != default.value][:count]


def winner(values: Mapping[int, float], *, higher: bool) -> int | None:
    """The finalist with the best mean over its fresh seeds; of equal ones the earlier. None without finalists."""
    sign = -1 if higher else 1
    return min(values, key=lambda number: (sign * values[number], number), default=None)


def with_seeds(difference: Difference, default: Sequence[float], trial: Sequence[float], level: float = 0.95) -> Difference:
    """The difference over rows with the noise between seeds in its interval; `default` and `trial` have a value a seed.

    Fresh seeds chose nobody, so their part keeps the plain `level` while that of the rows is corrected; the two halves of the interval are
    joined by their squares (MOVER, Zou and Donner 2008). Degrees of freedom by Welch and Satterthwaite.
    """
    parts = [(float(np.var(values, ddof=1)) / len(values), len(values) - 1) for values in (default, trial) if len(values) > 1]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return difference
    df = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    half = t_for(level, df) * sqrt(variance)
    low, high = (hypot(difference.estimate - end, half) for end in (difference.low, difference.high))
    method = f"{difference.method}, with the noise of {len(default)} and {len(trial)} seeds, t({df:.3g})"
    return replace(difference, low=difference.estimate - low, high=difference.estimate + high, method=method)


def decide(trial: int, difference: Difference | None, *, metric: str, higher: bool, tried: int, seeds: int) -> StudyVerdict:
    """The verdict on the best finalist. `difference` (trial minus default) is None where there were too few rows to say anything."""
    if difference is None:
        sentence = f"The default plan is recommended: too few rows have a {metric} to compare trial {trial} with it."
        return StudyVerdict(recommended="default", sentence=sentence, trial=trial, level=level(tried), tried=tried, seeds=seeds)
    better = difference.low > 0 if higher else difference.high < 0
    numbers = (
        f"{metric} {difference.estimate:+.3g} (interval {difference.low:+.3g} to {difference.high:+.3g}, {100 * difference.level:.4g}% "
        f"over rows for {tried} tried plans, with the noise of {seeds} fresh seeds each)"
    )
    if better:
        sentence = f"Trial {trial} is better than the default plan on the validation rows: {numbers}."
    else:
        sentence = f"The default plan is recommended: trial {trial} is not shown to be better, {numbers}."
    recommended: Recommended = "trial" if better else "default"
    return StudyVerdict(
        recommended=recommended, sentence=sentence, trial=trial, difference=difference, level=difference.level, tried=tried, seeds=seeds
    )


def unbeaten(best: int | None, tried: int) -> StudyVerdict:
    """The verdict where no trial of the search was better than the default: there is nothing to repeat."""
    named = "no trial has a value" if best is None else "no trial was better than it in the search"
    return StudyVerdict(recommended="default", sentence=f"The default plan is recommended: {named}, of {tried} tried plans.", tried=tried)


def unrepeated(best: int, tried: int) -> StudyVerdict:
    """The verdict of a study without repetitions: the best of many may be so by chance."""
    sentence = (
        f"The default plan is recommended: trial {best} was the best of {tried} in the search, and nothing was repeated "
        "(tune.seeds, or the budget), so that this may be noise."
    )
    return StudyVerdict(recommended="default", sentence=sentence, trial=best, tried=tried)
