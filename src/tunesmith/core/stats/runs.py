"""Noise from run to run (seeds of training or of sampling), measured and put into a difference; knows nothing about what a run is."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from msgspec.structs import replace

from tunesmith.core.stats.distributions import t_for, t_p_value
from tunesmith.core.stats.records import Difference, Floats, column


def run_noise(values: Sequence[float]) -> float | None:
    """Standard deviation of a metric's value over runs on the same rows; None for a single run, which shows no noise."""
    runs = column(values, "runs")
    return float(np.std(runs, ddof=1)) if runs.size > 1 else None


def with_run_noise(difference: Difference, runs_a: Sequence[float], runs_b: Sequence[float]) -> Difference:
    """The difference with the variance of the means of both sides' runs added to that over rows; a side of one run adds none.

    Degrees of freedom by Welch and Satterthwaite. What sampling adds within a run is in both parts, so the interval is rather too wide
    than too narrow. With one run on each side the difference comes back as it was.
    """
    sides: list[Floats] = [column(runs, "runs") for runs in (runs_a, runs_b)]
    added = [(float(np.var(runs, ddof=1)) / runs.size, runs.size - 1) for runs in sides if runs.size > 1]
    if not any(variance > 0 for variance, _ in added):
        return difference
    own = difference.se**2
    variance = own + sum(noise for noise, _ in added)
    parts = sum(noise**2 / df for noise, df in added) + (own**2 / difference.df if difference.df is not None else 0.0)
    se, df = sqrt(variance), variance**2 / parts
    half = t_for(difference.level, df) * se
    return replace(
        difference,
        low=difference.estimate - half,
        high=difference.estimate + half,
        p_value=t_p_value(difference.estimate / se, df),
        se=se,
        df=df,
        method=f"{difference.method}, with the noise of {sides[0].size} and {sides[1].size} runs, t({df:.3g})",
    )
