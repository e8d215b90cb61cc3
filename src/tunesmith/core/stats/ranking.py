"""Strengths of several models from their pairwise wins; knows nothing about who judged."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.distributions import z_for
from tunesmith.core.stats.records import Floats, Interval, finite, pair, share


def bradley_terry(wins: ArrayLike, names: Sequence[str], *, reference: str | None = None, level: float = 0.95) -> dict[str, Interval]:
    """Log-strength of each model against `reference` (the first one): P(i beats j) = 1 / (1 + exp(s_j − s_i)) (Bradley and Terry 1952).

    `wins[i][j]` counts how often i beat j; a tie is half a win for each. Maximum likelihood by Newton's method; Wald intervals (the
    reference has 0 by definition). `n` counts the comparisons in which a model took part. Raises DataError when some models never lost to
    the others (their strength is infinite) or were never compared with them.
    """
    table = np.asarray(wins, dtype=np.float64)
    k = len(names)
    if table.shape != (k, k) or k < 2 or len(set(names)) != k:
        raise UsageError(f"a table of shape {table.shape} for {k} names", allowed="[k, k] wins and k ≥ 2 different names")
    finite(table, "wins")
    anchor = names[0] if reference is None else reference
    if anchor not in names:
        raise UsageError(f"reference '{anchor}'", allowed=", ".join(names))
    if np.any(table < 0) or np.any(np.diag(table) > 0):
        raise UsageError("wins below 0, or of a model against itself", allowed="0 or more, with an empty diagonal")
    _connected(table, names)
    base = list(names).index(anchor)
    strengths, covariance = _fit(table, base)
    games = table.sum(axis=0) + table.sum(axis=1)
    z = z_for(share(level, "level"))
    return {
        name: Interval(
            estimate=float(strengths[i]),
            low=float(strengths[i]) - z * sqrt(float(covariance[i, i])),
            high=float(strengths[i]) + z * sqrt(float(covariance[i, i])),
            level=level,
            method="Bradley–Terry, Wald",
            n=round(float(games[i])),
        )
        for i, name in enumerate(names)
    }


def _fit(wins: Floats, base: int) -> tuple[Floats, Floats]:
    """Strengths with that of `base` fixed at 0, and their covariance."""
    k = len(wins)
    free = np.delete(np.arange(k), base)
    games, strengths, covariance = wins + wins.T, np.zeros(k), np.zeros((k, k))
    for _ in range(100):
        expected = 1 / (1 + np.exp(np.subtract.outer(strengths, strengths) * -1))
        information = -games * expected * (1 - expected)
        np.fill_diagonal(information, 0.0)
        np.fill_diagonal(information, -information.sum(axis=1))
        gradient = (wins - games * expected).sum(axis=1)
        covariance[np.ix_(free, free)] = np.linalg.inv(information[np.ix_(free, free)])
        step = covariance @ gradient
        # The likelihood is concave; a bounded step keeps a far start from overshooting.
        strengths = strengths + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-12:
            break
    return strengths, covariance


def _connected(wins: Floats, names: Sequence[str]) -> None:
    """Ford's condition: from every model a chain of wins leads to every other."""
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(len(wins)):
        reach = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
    if not reach.all():
        i, j = (int(x) for x in np.argwhere(~reach)[0])
        raise DataError(
            f"no chain of wins leads from '{names[i]}' to '{names[j]}': a strength would be infinite",
            remedy="compare them more often, or leave one out",
        )


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Rank correlation of two columns (Spearman 1904), equal values at the mean of their ranks; None where one of them does not vary."""
    from scipy.stats import rankdata

    x, y = (rankdata(column) for column in pair(a, b, least=2))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None
