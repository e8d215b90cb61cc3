"""Statistics of sums over rows (micro F1, BLEU, error rates, perplexity), alone and paired; knows nothing about what is counted.

A pooled metric is a function of the column sums of an [n, k] table, not a mean of rows. Its variance comes from leaving out one row (or
cluster) at a time. For micro F1 this was simulated against a bootstrap of the same counts: it covered at least as well at every size
(docs/statistics.md), needs no seed, and its p-values have no floor.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.stats.bootstrap import cluster_sums
from tunesmith.core.stats.clustered import spread
from tunesmith.core.stats.distributions import t_for, t_p_value, z_for
from tunesmith.core.stats.intervals import score_bounds, wilson
from tunesmith.core.stats.paired import clipped, outcomes
from tunesmith.core.stats.records import Clusters, Codes, Difference, Floats, Interval, cluster_codes, finite, share

Value = Callable[[Floats], Floats]


def pooled_interval(
    rows: ArrayLike,
    value: Value,
    clusters: Clusters | None = None,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    size: Value | None = None,
    level: float = 0.95,
) -> Interval:
    """`value` of the column sums of `rows` [n, k]; it maps sums (…, k) to values (…), nan where undefined.

    Within `bounds` the value is read as a rate over its effective number of rows (a score interval, as in `rate_interval`; a value that
    no unit changes counts every unit as one row); without bounds: ± t standard errors. `size` gives each row's weight (the denominator
    of a ratio), 1 unless given. Raises DataError when the value is undefined and for fewer than 2 units with weight.
    """
    table = _table(rows, "rows")
    codes = cluster_codes(clusters, len(table))
    estimate, parts, sizes = _parts(table, codes, value, size)
    variance, units, df = spread(parts, sizes)
    t, span = t_for(share(level, "level"), df), 1.0 if bounds is None else bounds[1] - bounds[0]
    varies = bool(np.max(np.abs(parts)) > 1e-12 * span)
    if bounds is None:
        half = t * sqrt(variance) if varies else wilson(0, units, level).high * max(1.0, abs(estimate))
        low, high = estimate - half, estimate + half
    else:
        rate = min(max((estimate - bounds[0]) / span, 0.0), 1.0)
        effective = rate * (1 - rate) * span**2 / variance if varies and 0 < rate < 1 else float(units)
        low, high = (bounds[0] + span * end for end in score_bounds(rate, effective, t))
    low, high, number = min(low, estimate), max(high, estimate), None if codes is None else int(codes.max()) + 1
    return Interval(estimate=estimate, low=low, high=high, level=level, method=f"pooled, t({df:.3g})", n=len(table), clusters=number)


def paired_pooled(
    rows_a: ArrayLike,
    rows_b: ArrayLike,
    value: Value,
    clusters: Clusters | None = None,
    *,
    span: float = 1.0,
    bounded: bool = True,
    size: Value | None = None,
    level: float = 0.95,
) -> Difference:
    """`value` of B's sums minus that of A's on the same rows, against t. Wins and losses count rows by their own value.

    `span` is the width of the scale, at which a `bounded` interval ends: when no unit changes the difference, the interval is Wilson's
    bound of "0 of C" times it. Raises as `pooled_interval` does, and UsageError when the tables differ in shape.
    """
    a, b = _table(rows_a, "rows_a"), _table(rows_b, "rows_b")
    if a.shape != b.shape:
        raise UsageError(f"rows_a has shape {a.shape} and rows_b {b.shape}", allowed="the same rows in the same order")
    codes = cluster_codes(clusters, len(a))
    value_a, parts_a, sizes_a = _parts(a, codes, value, size)
    value_b, parts_b, sizes_b = _parts(b, codes, value, size)
    estimate, parts = value_b - value_a, parts_b - parts_a
    variance, units, df = spread(parts, sizes_a / sizes_a.sum() + sizes_b / sizes_b.sum())
    if np.max(np.abs(parts)) > 1e-12 * span:
        se, method = sqrt(variance), f"paired pooled, t({df:.3g})"
        half, p_value = t_for(share(level, "level"), df) * se, t_p_value(estimate / se, df)
    else:
        half, p_value = wilson(0, units, level).high * span, 1.0 if estimate == 0 else 2.0 ** (1 - units)
        se, df, method = half / z_for(level), float(units - 1), "no variation: Wilson's bound, sign flip"
    difference = Difference(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        level=level,
        p_value=p_value,
        method=method,
        se=se,
        df=df,
        n=len(a),
        clusters=None if codes is None else int(codes.max()) + 1,
        **outcomes(value(a), value(b)),
    )
    return clipped(difference, span) if bounded else difference


def pooled_f1_interval(counts: ArrayLike, clusters: Clusters | None = None, *, level: float = 0.95) -> Interval:
    """Micro F1 of [n, 3] counts (true positives, false positives, false negatives): 2·TP / (2·TP + FP + FN) of their sums.

    Rows without any count carry nothing. Raises DataError when nothing was to be found and nothing was found (F1 is undefined) and for
    fewer than 2 units with counts.
    """
    return pooled_interval(_counts(counts), row_f1, clusters, size=_possible, level=level)


def paired_pooled_f1(counts_a: ArrayLike, counts_b: ArrayLike, clusters: Clusters | None = None, *, level: float = 0.95) -> Difference:
    """Micro F1 of B minus that of A on the same rows; raises as `pooled_f1_interval` does."""
    return paired_pooled(_counts(counts_a), _counts(counts_b), row_f1, clusters, size=_possible, level=level)


def row_f1(counts: Floats) -> Floats:
    """F1 of counts (…, 3); 1 where nothing was to be found and nothing was found."""
    possible = _possible(counts)
    f1 = np.ones_like(possible)
    np.divide(2 * counts[..., 0], possible, out=f1, where=possible > 0)
    return f1


def _possible(counts: Floats) -> Floats:
    return np.asarray(2 * counts[..., 0] + counts[..., 1] + counts[..., 2], dtype=np.float64)


def _counts(counts: ArrayLike) -> Floats:
    table = _table(counts, "counts")
    if table.shape[1] != 3 or np.any(table < 0):
        raise UsageError(
            f"counts of shape {table.shape} from {table.min(initial=0.0):g}",
            allowed="[n, 3]: true positives, false positives, false negatives, none below 0",
        )
    return table


def _table(rows: ArrayLike, what: str) -> Floats:
    table = np.asarray(rows, dtype=np.float64)
    if table.ndim != 2:
        raise UsageError(f"{what} has shape {table.shape}", allowed="[n, k]: one row of statistics for each example")
    finite(table, what)
    return table


def _parts(rows: Floats, codes: Codes | None, value: Value, size: Value | None) -> tuple[float, Floats, Floats]:
    """The value of all rows, what each unit adds to it, and the units' sizes.

    A unit of share w adds (1 − w)(θ − θ without it): for a ratio of sums exactly its first-order influence. A unit without which the
    value is undefined adds nothing that could be known.
    """
    units, sizes = cluster_sums(rows, codes), cluster_sums((np.ones(len(rows)) if size is None else size(rows))[:, None], codes)[:, 0]
    total = units.sum(axis=0)
    estimate = float(value(total)) if sizes.sum() > 0 else float("nan")
    if not np.isfinite(estimate):
        raise DataError(f"the value is undefined over {len(rows)} row(s): nothing was counted that it could be computed from")
    changes = estimate - value(total - units)
    return estimate, np.where(np.isfinite(changes), changes, 0.0) * (1 - sizes / sizes.sum()), sizes
