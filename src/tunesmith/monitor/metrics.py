"""What a running server shows to Prometheus: counts, tokens and latency by alias; knows nothing about HTTP or models.

The exposition is prometheus_client's. Histogram buckets are the dashboards' standard ones, and a quantile that is read from them is off
by up to a quarter where the buckets are wide. So each histogram keeps a sketch with logarithmic buckets beside them (DDSketch, Masson, Rim
and Lee 2019, arXiv:1908.10693), whose quantiles are within 1 %; it is shown as the gauge `NAME_quantile`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tunesmith.core.types import Interaction

# The buckets that vLLM and OpenTelemetry's GenAI conventions (1.41.1) use.
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
# What OpenTelemetry calls the operation of an endpoint; an endpoint that it does not know keeps its own name.
OPERATIONS = {"chat.completions": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_QUANTILES = (0.5, 0.95, 0.99)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter, of no use to vLLM's dashboards


class Sketch:
    """Quantiles of positive values within a relative error of `accuracy`, in bounded memory (one count a bucket)."""

    def __init__(self, accuracy: float = 0.01) -> None:
        self._gamma = (1 + accuracy) / (1 - accuracy)
        self._log = math.log(self._gamma)
        self._buckets: dict[int, int] = {}
        self.count = 0

    def add(self, value: float) -> None:
        """Count a value; below a nanosecond it counts as one."""
        bucket = math.ceil(math.log(max(value, 1e-9)) / self._log)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def quantile(self, q: float) -> float:
        """The value at rank ⌊1 + q (n − 1)⌋; NaN when nothing was counted."""
        if not self.count:
            return math.nan
        rank, seen = math.floor(q * (self.count - 1)), 0
        for bucket in sorted(buckets := dict(self._buckets)):
            seen += buckets[bucket]
            if seen > rank:
                break
        return 2 * self._gamma**bucket / (self._gamma + 1)


class _Latency:
    """One histogram, and a sketch for each set of its labels."""

    def __init__(self, registry: CollectorRegistry, name: str, about: str, bounds: tuple[float, ...], labels: tuple[str, ...]) -> None:
        self.name, self.about, self.labels = name, about, labels
        self._histogram = Histogram(name, about, labels, buckets=bounds, registry=registry)
        self.sketches: dict[tuple[str, ...], Sketch] = {}

    def of(self, *values: str) -> Callable[[float], None]:
        """What takes the values of one set of labels; asked for once, since finding a set costs more than counting in it."""
        observe, sketch = self._histogram.labels(*values).observe, self.sketches.setdefault(values, Sketch())

        def take(value: float) -> None:
            observe(value)
            sketch.add(value)

        return take


class _Quantiles(Collector):
    """The sketches' quantiles, read when the page is."""

    def __init__(self, latencies: list[_Latency]) -> None:
        self._latencies = latencies

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """A family a histogram."""
        for latency in self._latencies:
            family = GaugeMetricFamily(f"{latency.name}_quantile", f"{latency.about} Within 1 %.", labels=(*latency.labels, "quantile"))
            for values, sketch in list(latency.sketches.items()):
                for q in _QUANTILES:
                    family.add_metric((*values, str(q)), sketch.quantile(q))
            yield family

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing beforehand: the names are the histograms'."""
        return []


class _OfAlias:
    """The series of one alias at one endpoint, found once."""

    def __init__(self, metrics: ServerMetrics, endpoint: str, alias: str) -> None:
        self.prompt_tokens = metrics.prompt_tokens.labels(alias).inc
        self.generated_tokens = metrics.generated_tokens.labels(alias).inc
        self.first_token, self.per_token = metrics.first_token.of(alias), metrics.per_token.of(alias)
        self.total = metrics.total.of(alias)
        self.duration = metrics.duration.of(OPERATIONS.get(endpoint, endpoint), "tunesmith", alias)
        self.finished: dict[str, Callable[[], None]] = {}


def _part(load: Callable[[], tuple[int, int, float]], index: int) -> float:
    return load()[index]


class ServerMetrics:
    """What a model server shows: vLLM's names, so that one dashboard serves both, and OpenTelemetry's beside them.

    `load` answers (rows being answered, rows waiting, share of the cache in use).
    """

    def __init__(self, load: Callable[[], tuple[int, int, float]]) -> None:
        self.registry = registry = CollectorRegistry()
        for i, (name, about) in enumerate(
            (
                ("vllm:num_requests_running", "Rows being answered."),
                ("vllm:num_requests_waiting", "Rows waiting."),
                ("vllm:kv_cache_usage_perc", "Share of the key-value cache in use."),
            )
        ):
            Gauge(name, about, registry=registry).set_function(partial(_part, load, i))
        model, otel = ("model_name",), ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Prompt tokens read.", model, registry=registry)
        self.generated_tokens = Counter("vllm:generation_tokens", "Tokens generated.", model, registry=registry)
        self.success = Counter(
            "vllm:request_success", "Requests answered, by finish reason.", ("model_name", "finished_reason"), registry=registry
        )
        self.errors = Counter("tunesmith:request_errors", "Requests that ended with an error, by status.", ("status",), registry=registry)
        whole = "Seconds until the answer was whole."
        self.first_token = _Latency(registry, "vllm:time_to_first_token_seconds", "Seconds until the first token.", FIRST_TOKEN, model)
        self.per_token = _Latency(
            registry, "vllm:inter_token_latency_seconds", "Mean seconds between the tokens of a request.", PER_TOKEN, model
        )
        self.total = _Latency(registry, "vllm:e2e_request_latency_seconds", whole, DURATION, model)
        self.duration = _Latency(registry, "gen_ai_server_request_duration_seconds", whole, DURATION, otel)
        registry.register(_Quantiles([self.first_token, self.per_token, self.total, self.duration]))
        self._series: dict[tuple[str, str], _OfAlias] = {}

    def answered(self, row: Interaction) -> None:
        """Count one answered request."""
        series = self._series.get((row.endpoint, row.alias))
        if series is None:
            series = self._series[(row.endpoint, row.alias)] = _OfAlias(self, row.endpoint, row.alias)
        series.prompt_tokens(row.prompt_tokens)
        series.generated_tokens(row.completion_tokens)
        if row.finish_reason not in series.finished:
            series.finished[row.finish_reason] = self.success.labels(row.alias, row.finish_reason).inc
        series.finished[row.finish_reason]()
        series.first_token(row.first_token_s)
        if row.completion_tokens > 1:
            series.per_token((row.total_s - row.first_token_s) / (row.completion_tokens - 1))
        series.total(row.total_s)
        series.duration(row.total_s)

    def failed(self, status: int) -> None:
        """Count one request that ended with an error."""
        self.errors.labels(str(status)).inc()

    def text(self) -> str:
        """The page, in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry).decode()
