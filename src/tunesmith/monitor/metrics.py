"""Counters, gauges, histograms and quantile sketches of a running server, as Prometheus text; knows nothing about what they count.

Histogram buckets are the dashboards' standard ones; they give a p95 with an error of 15–24 % in the middle. So each histogram keeps a
sketch with logarithmic buckets beside them (DDSketch, Masson, Rim and Lee 2019, arXiv:1908.10693), whose quantiles are within 1 %.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Callable, Iterable, Sequence

Labels = tuple[tuple[str, str], ...]


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
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen > rank:
                break
        return 2 * self._gamma**bucket / (self._gamma + 1)


class Metric:
    """One metric family: its name, what it says, its kind, and a value for each set of labels."""

    kind = "counter"

    def __init__(self, name: str, about: str) -> None:
        self.name, self.about = name, about
        self._values: dict[Labels, float] = {}

    def add(self, value: float = 1.0, **labels: str) -> None:
        """Count up."""
        key = tuple(sorted(labels.items()))
        self._values[key] = self._values.get(key, 0.0) + value

    def lines(self) -> Iterable[str]:
        """Exposition lines."""
        return (f"{self.name}{_braces(labels)} {_number(value)}" for labels, value in self._values.items())


class Gauge(Metric):
    """A value that is asked for when the page is read."""

    kind = "gauge"

    def __init__(self, name: str, about: str, read: Callable[[], float]) -> None:
        super().__init__(name, about)
        self._read = read

    def lines(self) -> Iterable[str]:
        """Exposition lines."""
        return [f"{self.name} {_number(self._read())}"]


class _Series:
    """The values of one set of labels."""

    __slots__ = ("counts", "sketch", "sum")

    def __init__(self, bounds: int) -> None:
        self.counts, self.sum, self.sketch = [0] * (bounds + 1), 0.0, Sketch()


class Histogram(Metric):
    """Counts in buckets with the upper `bounds`, and a sketch, for each set of labels."""

    kind = "histogram"

    def __init__(self, name: str, about: str, bounds: Sequence[float]) -> None:
        super().__init__(name, about)
        self.bounds = tuple(bounds)
        self._series: dict[Labels, _Series] = {}

    def observe(self, value: float, **labels: str) -> None:
        """Count a value."""
        key = tuple(sorted(labels.items()))
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = _Series(len(self.bounds))
        series.counts[bisect.bisect_left(self.bounds, value)] += 1
        series.sum += value
        series.sketch.add(value)

    def lines(self) -> Iterable[str]:
        """Exposition lines: cumulative buckets, sum and count."""
        for labels, series in self._series.items():
            total = 0
            for bound, count in zip((*self.bounds, math.inf), series.counts, strict=True):
                total += count
                yield f"{self.name}_bucket{_braces((*labels, ('le', _number(bound))))} {total}"
            yield f"{self.name}_sum{_braces(labels)} {_number(series.sum)}"
            yield f"{self.name}_count{_braces(labels)} {total}"

    def quantile_lines(self, quantiles: Sequence[float] = (0.5, 0.95, 0.99)) -> Iterable[str]:
        """The sketch's quantiles, as the gauge `NAME_quantile`."""
        for labels, series in self._series.items():
            for q in quantiles:
                yield f"{self.name}_quantile{_braces((*labels, ('quantile', str(q))))} {_number(series.sketch.quantile(q))}"


# The buckets that vLLM and OpenTelemetry's GenAI conventions (1.41.1) use.
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


class ServerMetrics:
    """What a model server shows: vLLM's names, so that one dashboard serves both, and OpenTelemetry's beside them.

    `load` answers (rows being answered, rows waiting, share of the cache in use).
    """

    def __init__(self, load: Callable[[], tuple[int, int, float]]) -> None:
        self._lock = threading.Lock()
        self.prompt_tokens = Metric("vllm:prompt_tokens_total", "Prompt tokens read.")
        self.generation_tokens = Metric("vllm:generation_tokens_total", "Tokens generated.")
        self.success = Metric("vllm:request_success_total", "Requests answered, by finish reason.")
        self.errors = Metric("tunesmith:request_errors_total", "Requests that ended with an error, by status.")
        self.first_token = Histogram("vllm:time_to_first_token_seconds", "Seconds until the first token.", FIRST_TOKEN)
        self.per_token = Histogram("vllm:inter_token_latency_seconds", "Mean seconds between the tokens of a request.", PER_TOKEN)
        self.total = Histogram("vllm:e2e_request_latency_seconds", "Seconds until the answer was whole.", DURATION)
        self.duration = Histogram("gen_ai_server_request_duration_seconds", "Seconds until the answer was whole.", DURATION)
        gauges = [
            Gauge("vllm:num_requests_running", "Rows being answered.", lambda: load()[0]),
            Gauge("vllm:num_requests_waiting", "Rows waiting.", lambda: load()[1]),
            Gauge("vllm:kv_cache_usage_perc", "Share of the key-value cache in use.", lambda: load()[2]),
        ]
        self._all: list[Metric] = [*gauges, self.prompt_tokens, self.generation_tokens, self.success, self.errors]
        self._histograms = [self.first_token, self.per_token, self.total, self.duration]

    def answered(self, alias: str, finish: str, tokens: tuple[int, int], first_token_s: float, total_s: float) -> None:
        """Count one answered request; `tokens` are (prompt, generated)."""
        prompt, generated = tokens
        with self._lock:
            self.prompt_tokens.add(prompt, model_name=alias)
            self.generation_tokens.add(generated, model_name=alias)
            self.success.add(model_name=alias, finished_reason=finish)
            self.first_token.observe(first_token_s, model_name=alias)
            if generated > 1:
                self.per_token.observe((total_s - first_token_s) / (generated - 1), model_name=alias)
            self.total.observe(total_s, model_name=alias)
            self.duration.observe(total_s, gen_ai_operation_name="chat", gen_ai_provider_name="tunesmith", gen_ai_request_model=alias)

    def failed(self, status: int) -> None:
        """Count one request that ended with an error."""
        with self._lock:
            self.errors.add(status=str(status))

    def text(self) -> str:
        """The page, in Prometheus' text format 0.0.4."""
        out: list[str] = []
        with self._lock:
            for metric in [*self._all, *self._histograms]:
                out += [f"# HELP {metric.name} {metric.about}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
            for histogram in self._histograms:
                name = f"{histogram.name}_quantile"
                out += [f"# HELP {name} {histogram.about} Within 1 %.", f"# TYPE {name} gauge", *histogram.quantile_lines()]
        return "\n".join(out) + "\n"


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() else repr(float(value))
