"""What the log of requests says: counts, errors, tokens, latency with intervals, by alias and variant; knows nothing about live servers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from tunesmith.core.stats.distributions import binomial_cdf
from tunesmith.store.tables import interactions


def status(engine: sa.Engine, since: float = 0.0) -> dict[str, Any]:
    """What was asked since a time (seconds of the epoch), in all and by alias and variant.

    Latencies are seconds of requests that were answered; each quantile comes with its 95 % order-statistic interval.
    """
    table = interactions.c
    query = sa.select(
        table.alias,
        table.variant,
        table.status,
        table.prompt_tokens,
        table.completion_tokens,
        table.first_token_s,
        table.total_s,
        table.created,
    )
    groups: dict[tuple[str, str], list[Any]] = defaultdict(list)
    with engine.connect() as connection:
        for row in connection.execute(query.where(table.created >= since).order_by(table.created)):
            groups[(row.alias, row.variant)].append(row)
    everything = [row for rows in groups.values() for row in rows]
    by_variant = [{"alias": alias, "variant": variant, **_summary(rows)} for (alias, variant), rows in sorted(groups.items())]
    return {"since": since, "until": time.time(), **_summary(everything), "variants": by_variant}


def _summary(rows: Sequence[Any]) -> dict[str, Any]:
    answered = [row for row in rows if row.status < 400]
    seconds = sum(row.total_s for row in answered)
    generated = sum(row.completion_tokens for row in answered)
    return {
        "requests": len(rows),
        "errors": len(rows) - len(answered),
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "completion_tokens": sum(row.completion_tokens for row in rows),
        "tokens_per_s": generated / seconds if seconds else None,
        "first_token_s": quantiles([row.first_token_s for row in answered]),
        "total_s": quantiles([row.total_s for row in answered]),
        "last": max((row.created for row in rows), default=None),
    }


def quantiles(values: Sequence[float], level: float = 0.95) -> dict[str, dict[str, float | None]]:
    """p50 and p95 (`value`), each with the order statistics that enclose it with probability `level` or more.

    A bound is None where so few values cannot enclose the quantile: the interval is open on that side. Distribution-free: the number of
    values below a quantile q is binomial (n, q) (David and Nagaraja 2003, section 7.1).
    """
    ordered = sorted(values)
    return {f"p{round(100 * q)}": _quantile(ordered, q, level) for q in (0.5, 0.95)} if ordered else {}


def _quantile(ordered: Sequence[float], q: float, level: float) -> dict[str, float | None]:
    n, tail = len(ordered), (1 - level) / 2
    value = ordered[min(n - 1, int(q * n))]
    below = [k for k in range(n) if binomial_cdf(k, n, q) <= tail] if n <= _EXACT else [_normal_rank(n, q, -1)]
    above = [k for k in range(n) if binomial_cdf(k, n, q) >= 1 - tail] if n <= _EXACT else [_normal_rank(n, q, +1)]
    low = ordered[below[-1]] if below and 0 <= below[-1] < n else None
    high = ordered[above[0]] if above and above[0] < n else None
    return {"value": value, "low": low, "high": high}


_EXACT = 1000  # above this many values the normal approximation of the ranks is as good and much faster


def _normal_rank(n: int, q: float, sign: int) -> int:
    return int(n * q + sign * (1.96 * (n * q * (1 - q)) ** 0.5 + 1))
