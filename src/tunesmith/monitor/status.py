"""What the log of requests says: counts, errors, tokens, cost, latency with intervals, by alias and variant; knows nothing about live
servers, nor how the log is counted.

It costs the same over ten requests and ten million: what it reads was counted when the requests were logged (`store/counts.py`).
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

from tunesmith.core.sketch import Sketch
from tunesmith.core.stats.distributions import binomial_cdf
from tunesmith.store.counting import TIMED, Count
from tunesmith.store.counts import counts, minute_of, summed
from tunesmith.store.store import Store

_QUANTILES = {"p50": 0.5, "p95": 0.95}


def status(store: Store, since: float = 0.0) -> dict[str, Any]:
    """What was asked since the minute of a time (seconds of the epoch), in all and by alias and variant.

    Latencies are seconds of requests that were answered, within 1 %; each quantile comes with its 95 % order-statistic interval. `cost_usd`
    is the sum over requests whose price is known, None where none is. Raises StoreError when the database is away.
    """
    each = counts(store, since, by=("alias", "variant"))
    by_variant = [{"alias": alias, "variant": variant, **_summary(count)} for (alias, variant), count in each.items()]
    return {"since": minute_of(since), "until": time.time(), **_summary(summed(each.values())), "variants": by_variant}


def _summary(count: Count) -> dict[str, Any]:
    return {
        "requests": count.requests,
        "errors": count.errors,
        "prompt_tokens": count.prompt_tokens,
        "completion_tokens": count.completion_tokens,
        "tokens_per_s": count.generated / count.seconds if count.seconds else None,
        "cost_usd": count.cost_usd,
        **{name: _quantiles(getattr(count, name)) for name in TIMED},
        "last": count.last,
    }


def _quantiles(values: Sketch) -> dict[str, dict[str, float | None]]:
    """p50 and p95 (`value`) with what encloses each (`low`, `high`, None where the interval is open on that side)."""
    if not values.count:
        return {}
    named = {name: zip(("value", "low", "high"), ranks(values.count, q), strict=True) for name, q in _QUANTILES.items()}
    return {name: {key: None if rank is None else values.at(rank) for key, rank in keys} for name, keys in named.items()}


@lru_cache(maxsize=4096)
def ranks(n: int, q: float, level: float = 0.95) -> tuple[int, int | None, int | None]:
    """Of n values in order (from 0): the rank of the quantile q, and of those that enclose it with probability `level` or more.

    A bound is None where so few values cannot enclose the quantile: the interval is open on that side. Distribution-free: the number of
    values below a quantile q is binomial (n, q) (David and Nagaraja 2003, section 7.1).
    """
    tail = (1 - level) / 2
    below = [k for k in range(n) if binomial_cdf(k, n, q) <= tail] if n <= _EXACT else [_normal_rank(n, q, -1)]
    above = [k for k in range(n) if binomial_cdf(k, n, q) >= 1 - tail] if n <= _EXACT else [_normal_rank(n, q, +1)]
    low = below[-1] if below and 0 <= below[-1] < n else None
    high = above[0] if above and above[0] < n else None
    return min(n - 1, int(q * n)), low, high


_EXACT = 1000  # above this many values the normal approximation of the ranks is as good and much faster


def _normal_rank(n: int, q: float, sign: int) -> int:
    return int(n * q + sign * (1.96 * (n * q * (1 - q)) ** 0.5 + 1))
