"""A test that is looked at several times on its way to a horizon, with one error for all looks together; knows nothing about metrics.

Lan and DeMets (1983): a spending function says how much of α may be gone when a share of the way is behind; each look's bound follows from
what was spent before, by integrating the density of a Brownian motion that has not crossed (Armitage, McPherson and Rowe 1969). Looks need
not be planned. Two-sided and symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf, sqrt
from typing import Literal

import numpy as np

from tunesmith.core.errors import UsageError
from tunesmith.core.stats.distributions import z_cdf, z_quantile
from tunesmith.core.stats.records import Floats, share

Spending = Literal["obrien_fleming", "pocock", "quadratic"]
_POINTS = 321  # of the grid over the region that was not left
_FAR = 9.0  # standard errors beyond which nothing is spent
_HALVINGS = 50


def spent(time: float, alpha: float = 0.05, spending: Spending = "obrien_fleming") -> float:
    """How much of `alpha` (both sides together) may be gone at this share of the way."""
    share(alpha, "alpha")
    if time <= 0:
        return 0.0
    t = min(time, 1.0)
    if spending == "obrien_fleming":
        return 4 * (1 - z_cdf(z_quantile(1 - alpha / 4) / sqrt(t)))
    if spending == "pocock":
        return float(alpha * np.log1p((np.e - 1) * t))
    return alpha * t**2


def bounds(
    times: Sequence[float], alpha: float = 0.05, spending: Spending = "obrien_fleming", information: Sequence[float] | None = None
) -> tuple[float, ...]:
    """How many standard errors an estimate must be from 0 at each look, at these shares of the way (1: the horizon).

    `information` (1/se² at each look, in any unit; default: as `times`) says how much the looks have in common. Raises UsageError for times
    or information that do not grow.
    """
    known = tuple(times) if information is None else tuple(information)
    for name, values in (("times", tuple(times)), ("information", known)):
        if len(known) != len(times) or any(not later > before for before, later in zip((0.0, *values), values, strict=False)):
            raise UsageError(f"{name} {values}", allowed="numbers above 0 that grow, one a look")
    return _bounds(tuple(times), known, alpha, spending)


@lru_cache(maxsize=4096)
def _bounds(times: tuple[float, ...], information: tuple[float, ...], alpha: float, spending: Spending) -> tuple[float, ...]:
    return tuple(bound for bound, _, _ in _walk(times, information, alpha, spending))


@lru_cache(maxsize=4096)
def _walk(
    times: tuple[float, ...], information: tuple[float, ...], alpha: float, spending: Spending
) -> tuple[tuple[float, tuple[float, ...], tuple[float, ...]], ...]:
    """(bound, the grid of scores inside it, their density × step) of each look; the earlier looks are those of the walk one shorter."""
    before = _walk(times[:-1], information[:-1], alpha, spending) if len(times) > 1 else ()
    start, start_mass = (np.array(before[-1][1]), np.array(before[-1][2])) if before else (np.zeros(1), np.ones(1))
    gone = spent(times[-2], alpha, spending) if before else 0.0
    step = sqrt(information[-1] - (information[-2] if before else 0.0))
    bound = _bound(spent(times[-1], alpha, spending) - gone, start, start_mass, step, sqrt(information[-1]))
    grid, mass = _stayed(min(bound, _FAR) * sqrt(information[-1]), start, start_mass, step)
    return (*before, (bound, tuple(grid), tuple(mass)))


def _stayed(edge: float, start: Floats, mass: Floats, step: float) -> tuple[Floats, Floats]:
    """Where a motion may be that has moved on from `start` by a step of this standard deviation and stayed within ±`edge`, and its mass."""
    grid = np.linspace(-edge, edge, _POINTS)
    width = grid[1] - grid[0]
    density = np.exp(-0.5 * ((grid[:, None] - start) / step) ** 2) @ mass / (step * sqrt(2 * np.pi))
    density[[0, -1]] /= 2
    return grid, density * width


def _bound(target: float, start: Floats, mass: Floats, step: float, root: float) -> float:
    """The bound that spends `target` (both sides) at this look."""
    low, high = 0.0, _FAR
    if _crossing(high, start, mass, step, root) >= target:
        return inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _crossing(middle, start, mass, step, root) > target else (low, middle)
    return high


def _crossing(bound: float, start: Floats, mass: Floats, step: float, root: float, drift: float = 0.0) -> float:
    from scipy.special import ndtr

    edge = bound * root
    return float((ndtr((start + drift - edge) / step) + ndtr((-edge - start - drift) / step)) @ mass)


def power(drift: float, times: Sequence[float], alpha: float = 0.05, spending: Spending = "obrien_fleming") -> float:
    """The chance to be beyond a bound at some look, when the estimate is `drift` standard errors from 0 at the horizon."""
    crossed, start, mass, before = 0.0, np.zeros(1), np.ones(1), 0.0
    for time, bound in zip(times, bounds(times, alpha, spending), strict=True):
        step, shift = sqrt(time - before), drift * (time - before)
        if bound < inf:
            crossed += _crossing(bound, start, mass, step, sqrt(time), shift)
        start, mass = _stayed(min(bound, _FAR + abs(drift)) * sqrt(time), start + shift, mass, step)
        before = time
    return crossed


@lru_cache(maxsize=64)
def drift_for(wanted: float, looks: int, alpha: float = 0.05, spending: Spending = "obrien_fleming") -> float:
    """The drift at the horizon that is seen with this power at `looks` even looks; a fixed test needs z(1 − α/2) + z(power)."""
    times = [(i + 1) / looks for i in range(looks)]
    low = z_quantile(1 - alpha / 2) + z_quantile(share(wanted, "power"))
    high = 1.25 * low
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, times, alpha, spending) < wanted else (low, middle)
    return high
