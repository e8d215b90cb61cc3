"""What looks at the identity of served models found, as Prometheus reads it; knows nothing about how is looked."""

from __future__ import annotations

import threading
from collections import Counter

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from tunesmith.core.identity import IdentityCheck

_LABELS = ["model_name", "deployment", "variant"]
_SAME = "Whether the variant answers probes as the weights that were deployed: 1 or 0; none before the first look."
_P = "The p-value of the last comparison."
_WHEN = "When the variant was last looked at, in seconds of the epoch."
_LOOKS = "Looks at the identity of served models, by what they found."
_PROBES = "One-token requests that they took; in no other figure."


class IdentityMetrics:
    """The newest look at each variant in force, and counts of all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[tuple[str, str], IdentityCheck] = {}
        self._looks = Counter[tuple[str, str, str]]()
        self._probes = Counter[tuple[str, str]]()

    def note(self, check: IdentityCheck) -> None:
        """Count a look."""
        with self._lock:
            if check.verdict != "unknown":
                self._newest[check.alias, check.variant] = check
            self._looks[check.alias, check.variant, check.verdict] += 1
            self._probes[check.alias, check.variant] += check.probes

    def families(self) -> list[Metric]:
        """What the page shows."""
        same = GaugeMetricFamily("tunesmith:identity_same", _SAME, labels=_LABELS)
        p = GaugeMetricFamily("tunesmith:identity_p", _P, labels=_LABELS)
        when = GaugeMetricFamily("tunesmith:identity_checked_timestamp_seconds", _WHEN, labels=_LABELS)
        looks = CounterMetricFamily("tunesmith:identity_looks", _LOOKS, labels=["model_name", "variant", "verdict"])
        probes = CounterMetricFamily("tunesmith:identity_probes", _PROBES, labels=["model_name", "variant"])
        with self._lock:
            for check in self._newest.values():
                place = [check.alias, str(check.deployment), check.variant]
                same.add_metric(place, float(check.verdict == "same"))
                p.add_metric(place, 1.0 if check.p is None else check.p)
                when.add_metric(place, check.created)
            for found, count in self._looks.items():
                looks.add_metric(list(found), count)
            for asked, count in self._probes.items():
                probes.add_metric(list(asked), count)
        return [same, p, when, looks, probes]
