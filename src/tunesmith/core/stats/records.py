"""What the statistics answer with, and how their input is checked; knows nothing about any method."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.types import Record

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]
Clusters = Sequence[Hashable] | NDArray[np.generic]


class Interval(Record, frozen=True):
    """An estimate with its two-sided confidence interval, in the unit of the values.

    `n` counts rows; `clusters` counts the independent groups when rows are not independent (None: each row stands alone).
    """

    estimate: float
    low: float
    high: float
    method: str
    n: int
    level: float = 0.95
    clusters: int | None = None


class Difference(Record, frozen=True):
    """B minus A on the same rows, with interval and two-sided p-value.

    `effect_size` is Cohen's d_z (mean over standard deviation of the differences), for right/wrong scores Cohen's g (share of wins among
    the rows that differ, minus 0.5), None where it is undefined. `se` is the standard error in the unit of the values, `df` its degrees of
    freedom (None: normal). A row is a win when B's score is higher.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    method: str
    n: int
    se: float
    df: float | None = None
    level: float = 0.95
    clusters: int | None = None
    effect_size: float | None = None
    wins: int = 0
    losses: int = 0
    ties: int = 0


def column(values: ArrayLike, what: str = "values", least: int = 1) -> Floats:
    """The values as one float column. Raises DataError for a missing or infinite value and for fewer than `least` rows."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise UsageError(f"{what} has shape {array.shape}", allowed="one number for each row")
    finite(array, what)
    if array.size < least:
        raise DataError(f"{what}: {array.size} row(s)", allowed=f"at least {least}", remedy="measure on more rows")
    return array


def finite(array: Floats, what: str) -> None:
    """Raises DataError when the array has a NaN or an infinity: a missing score must be left out, never averaged."""
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        raise DataError(
            f"{what}: {len(bad)} missing or infinite of {array.size}, the first is {array[tuple(bad[0])]}",
            where=f"index {bad[0][0]}",
            allowed="finite numbers",
            remedy="leave missing scores out, in a comparison from both sides, and say how many they were",
        )


def pair(a: ArrayLike, b: ArrayLike, least: int = 1) -> tuple[Floats, Floats]:
    """Two columns over the same rows. Raises UsageError when their lengths differ."""
    left, right = column(a, "a", least), column(b, "b", least)
    if left.size != right.size:
        raise UsageError(f"a has {left.size} rows and b has {right.size}", allowed="the same rows in the same order")
    return left, right


def share(value: float, what: str) -> float:
    """A number strictly between 0 and 1 (a level, a power, an alpha). Raises UsageError."""
    if not 0.0 < value < 1.0:
        raise UsageError(f"{what} is {value}", allowed="a number between 0 and 1, both excluded")
    return float(value)


def cluster_codes(clusters: Clusters | None, n: int) -> Codes | None:
    """Clusters as 0…C−1 in order of appearance; None when rows are independent (no clusters, or every cluster has one row)."""
    if clusters is None:
        return None
    if len(clusters) != n:
        raise UsageError(f"{len(clusters)} cluster names for {n} rows", allowed="one for each row")
    seen: dict[Hashable, int] = {}
    codes = np.fromiter((seen.setdefault(name, len(seen)) for name in clusters), dtype=np.intp, count=n)
    return None if len(seen) == n else codes


def is_binary(values: Floats) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.all((values == 0.0) | (values == 1.0)))
