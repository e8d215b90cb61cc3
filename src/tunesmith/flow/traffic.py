"""Traffic over time for a picture: requests and errors of each minute, hour or day, and the slow end of their times."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tunesmith.store.counting import Count
from tunesmith.store.counts import counts, series
from tunesmith.store.store import Store

# Hours back → (in words, the span of a point in seconds).
TRAFFIC: dict[str, tuple[str, int]] = {"1": ("hour", 60), "24": ("day", 3_600), "168": ("week", 3_600), "720": ("30 days", 86_400)}


@dataclass(frozen=True)
class Traffic:
    """Points over hours back from now (0 is now): requests, errors, and the 95th percentile of seconds where anything was answered."""

    at: list[float]
    requests: list[float]
    errors: list[float]
    p95_s: list[float]
    unit: str


def traffic(store: Store, hours: str, project: str | None) -> Traffic:
    """The traffic of the last hours, empty spans as nought. Raises StoreError."""
    _, span = TRAFFIC[hours]
    now, equal = time.time(), {"project": project} if project is not None else None
    first = (now - 3600 * float(hours)) // span * span
    found: dict[float, Any] = series(store, first, now, span, equal=equal)
    starts = [first + span * step for step in range(int((now - first) // span) + 1)]
    counted = [found.get(start) for start in starts]
    return Traffic(
        at=[-(now - start) / 3600 for start in starts],
        requests=[float(count.requests) if count else 0.0 for count in counted],
        errors=[float(count.errors) if count else 0.0 for count in counted],
        p95_s=[_p95(count) for count in counted],
        unit={60: "a minute", 3_600: "an hour", 86_400: "a day"}[span],
    )


def _p95(count: Any) -> float:
    if count is None or not count.answered:
        return float("nan")
    value = count.total_s.quantile(0.95)
    return float("nan") if value is None else float(value)


def by_alias(store: Store, hours: float = 24.0) -> dict[str, Count]:
    """What each name answered in the last hours. Raises StoreError."""
    return {str(alias): count for (alias,), count in counts(store, time.time() - 3600 * hours, by=("alias",)).items()}
