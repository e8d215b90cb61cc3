"""What a running server shows to Prometheus: counts, tokens and latency by alias; knows nothing about HTTP or models.

The exposition is prometheus_client's; counting is ours, since with its counters and histograms a request costs several times as much.
Histogram buckets are the dashboards' standard ones, and a quantile that is read from them is off by up to a quarter where
they are wide. So each histogram keeps a sketch with logarithmic buckets beside them (`core/sketch.py`), whose quantiles are
within 1 %; it is shown as the gauge `NAME_quantile`.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tunesmith.core.sketch import Sketch
from tunesmith.core.types import CLIENT_LEFT, Interaction, ShadowAnswer
from tunesmith.monitor.identity import IdentityMetrics

# The buckets that vLLM and OpenTelemetry's GenAI conventions (1.41.1) use.
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
USAGE = tuple(float(4**power) for power in range(14))
# What OpenTelemetry calls the operation of an endpoint; an endpoint that it does not know keeps its own name.
OPERATIONS = {"chat.completions": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_OTEL = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_KINDS = ("input", "output")
_QUANTILES = (0.5, 0.95, 0.99)
_WHOLE, _FIRST, _BETWEEN = (
    "Seconds until the answer was whole.",
    "Seconds until the first token.",
    "Mean seconds between the tokens of a request.",
)
_SOURCE = ["model_name", "variant", "model_digest", "experiment"]


class _Series:
    """Values: counted in buckets, summed, and in a sketch."""

    __slots__ = ("bounds", "counts", "sketch", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum, self.sketch = bounds, [0] * (len(bounds) + 1), 0.0, Sketch()

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.sketch.add(value)

    def merge(self, other: _Series) -> None:
        """Count what another series with the same bounds counted."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum
        self.sketch.merge(other.sketch)

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound, how many values up to it)."""
        bounds = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(bounds, map(float, itertools.accumulate(self.counts)), strict=True))


class _Answers:
    """What one alias answered at one endpoint."""

    def __init__(self) -> None:
        self.prompt_tokens = self.generated_tokens = 0
        self.finished = Counter[str]()
        self.first_token, self.per_token, self.total = _Series(FIRST_TOKEN), _Series(PER_TOKEN), _Series(DURATION)
        self.input, self.output = _Series(USAGE), _Series(USAGE)

    def add(self, row: Interaction) -> None:
        """Count one request."""
        self.input.add(row.prompt_tokens)
        self.output.add(row.completion_tokens)
        self.prompt_tokens += row.prompt_tokens
        self.generated_tokens += row.completion_tokens
        self.finished[row.finish_reason] += 1
        self.first_token.add(row.first_token_s)
        if row.completion_tokens > 1:
            self.per_token.add((row.total_s - row.first_token_s) / (row.completion_tokens - 1))
        self.total.add(row.total_s)

    def merge(self, other: _Answers) -> None:
        """Count what was answered at another endpoint too."""
        self.prompt_tokens += other.prompt_tokens
        self.generated_tokens += other.generated_tokens
        self.finished.update(other.finished)
        for name in ("first_token", "per_token", "total", "input", "output"):
            getattr(self, name).merge(getattr(other, name))


class _Variant:
    """What became of the requests that one variant was assigned."""

    def __init__(self) -> None:
        self.outcomes, self.total = Counter[str](), _Series(DURATION)

    def add(self, row: Interaction) -> None:
        """Count one."""
        self.outcomes["failed" if row.status >= 400 else "fallback" if row.fallback is not None else "answered"] += 1
        self.total.add(row.total_s)

    def merge(self, other: _Variant) -> None:
        """Count what another project asked of it, too."""
        self.outcomes.update(other.outcomes)
        self.total.merge(other.total)


class _Source:
    """What became of the requests of one alias, variant, model and experiment, and what they used."""

    def __init__(self) -> None:
        self.outcomes, self.tokens, self.cost_usd = Counter[str](), Counter[str](), 0.0

    def add(self, row: Interaction) -> None:
        """Count one request, however it ended."""
        self.outcomes[_outcome(row)] += 1
        self.tokens["input"] += row.prompt_tokens
        self.tokens["output"] += row.completion_tokens
        self.cost_usd += row.cost_usd or 0.0

    def merge(self, other: _Source) -> None:
        """Count what another project asked, too."""
        self.outcomes.update(other.outcomes)
        self.tokens.update(other.tokens)
        self.cost_usd += other.cost_usd


def _outcome(row: Interaction) -> str:
    if row.status < 400:
        return "answered" if row.fallback is None else "fallback"
    return "left" if row.status == CLIENT_LEFT else "failed" if row.status >= 500 else "refused"


class ServerMetrics:
    """What a model server shows: vLLM's names, so that one dashboard serves both, and OpenTelemetry's beside them.

    `load` answers (rows being answered, rows waiting, share of the cache in use); `identity` is what operators see besides. Counting
    is a few additions; what the page needs is put together when it is read.
    """

    def __init__(self, load: Callable[[], tuple[int, int, float]]) -> None:
        self._load, self._lock = load, threading.Lock()
        self.identity = IdentityMetrics()
        self._answers: dict[tuple[str, str, str], _Answers] = {}
        self._failed = Counter[tuple[int, str | None]]()
        self._variants: dict[tuple[str | None, str, str, str], _Variant] = {}
        self._copies = Counter[tuple[str | None, str, str, str]]()
        self._sources: dict[tuple[str, ...], _Source] = {}

    def answered(self, row: Interaction) -> None:
        """Count one answered request."""
        with self._lock:
            place = (row.endpoint, row.alias, row.project)
            answers = self._answers.get(place)
            if answers is None:
                answers = self._answers[place] = _Answers()
            answers.add(row)

    def failed(self, status: int, project: str | None = None) -> None:
        """Count one request that ended with an error; `project` None: before anybody knew whose it was."""
        with self._lock:
            self._failed[status, project] += 1

    def assigned(self, row: Interaction) -> None:
        """Count one request of a deployment for the variant that it was assigned, whoever answered it."""
        with self._lock:
            place = (row.project, row.alias, str(row.deployment), row.variant)
            variant = self._variants.get(place)
            if variant is None:
                variant = self._variants[place] = _Variant()
            variant.add(row)

    def ended(self, row: Interaction) -> None:
        """Count one request that came to a model, however it ended."""
        place = (row.project, row.alias, row.variant, row.model_digest[:12], row.experiment or "")
        with self._lock:
            source = self._sources.get(place)
            if source is None:
                source = self._sources[place] = _Source()
            source.add(row)

    def copied(self, row: ShadowAnswer) -> None:
        """Count what became of a copy of a request."""
        outcome = "skipped" if row.skipped else "failed" if row.error else "answered"
        with self._lock:
            self._copies[row.project, row.alias, row.variant, outcome] += 1

    def text(self, project: str | None = None) -> str:
        """The page, in Prometheus' text format 0.0.4: of all requests, or of one project's alone."""
        registry = CollectorRegistry()
        with self._lock:
            registry.register(_Page(self._families(project)))
            return generate_latest(registry).decode()

    def _families(self, project: str | None) -> list[Metric]:
        mine: dict[tuple[str, str], _Answers] = {}
        for (endpoint, alias, whose), answers in self._answers.items():
            if project in (None, whose):
                mine.setdefault((endpoint, alias), _Answers()).merge(answers)
        failed = Counter[int]()
        for (status, owner), count in self._failed.items():
            if project in (None, owner):
                failed[status] += count
        variants = _merged({place: variant for place, variant in self._variants.items() if project in (None, place[0])})
        copies = Counter[tuple[str, ...]]()
        for (owner, *labels), count in self._copies.items():
            if project in (None, owner):
                copies[tuple(labels)] += count
        sources: dict[tuple[str, ...], _Source] = {}
        for (owner, *labels), source in self._sources.items():
            if project in (None, owner):
                sources.setdefault(tuple(labels), _Source()).merge(source)
        seen = self.identity.families() if project is None else []
        return [*self._shown(mine, failed), *_variants(variants, copies), *_sources(sources), *seen]

    def _shown(self, mine: Mapping[tuple[str, str], _Answers], failed: Mapping[int, int]) -> Iterator[Metric]:
        running, waiting, used = self._load()
        yield GaugeMetricFamily("vllm:num_requests_running", "Rows being answered.", running)
        yield GaugeMetricFamily("vllm:num_requests_waiting", "Rows waiting.", waiting)
        yield GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the key-value cache in use.", used)
        by_alias: dict[str, _Answers] = {}
        for (_, alias), answers in mine.items():
            by_alias.setdefault(alias, _Answers()).merge(answers)
        yield from _counters(by_alias, failed)
        for name, about, part in (
            ("vllm:time_to_first_token_seconds", _FIRST, "first_token"),
            ("vllm:inter_token_latency_seconds", _BETWEEN, "per_token"),
            ("vllm:e2e_request_latency_seconds", _WHOLE, "total"),
        ):
            yield from _latency(name, about, ["model_name"], {(alias,): getattr(answers, part) for alias, answers in by_alias.items()})
        yield from _open_telemetry({(OPERATIONS.get(end, end), "tunesmith", alias): answers for (end, alias), answers in mine.items()})


class _Page(Collector):
    """The families of one page."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> list[Metric]:
        """Nothing beforehand: there is one collector, and nothing to clash with."""
        return []

    def collect(self) -> list[Metric]:
        """The families."""
        return self._families


def _open_telemetry(answers: Mapping[tuple[str, ...], _Answers]) -> Iterator[Metric]:
    """The histograms of OpenTelemetry's GenAI conventions, by operation and model."""
    for name, about, part in (
        ("gen_ai_server_request_duration_seconds", _WHOLE, "total"),
        ("gen_ai_server_time_to_first_token_seconds", _FIRST, "first_token"),
        ("gen_ai_server_time_per_output_token_seconds", _BETWEEN, "per_token"),
    ):
        yield from _latency(name, about, _OTEL, {labels: getattr(each, part) for labels, each in answers.items()})
    usage: dict[tuple[str, ...], _Series] = {(*labels, kind): getattr(each, kind) for labels, each in answers.items() for kind in _KINDS}
    yield from _latency("gen_ai_client_token_usage", "Tokens of a request.", (*_OTEL, "gen_ai_token_type"), usage)


def _sources(sources: Mapping[tuple[str, ...], _Source]) -> Iterator[Metric]:
    """What was asked of whom, and what it used."""
    requests = CounterMetricFamily("tunesmith:requests", "Requests that came to a model, and how they ended.", labels=[*_SOURCE, "outcome"])
    tokens = CounterMetricFamily("tunesmith:tokens", "Tokens read and generated.", labels=[*_SOURCE, "type"])
    cost = CounterMetricFamily("tunesmith:cost_usd", "US dollars, of requests whose price is known.", labels=_SOURCE)
    for place, source in sources.items():
        for outcome, count in source.outcomes.items():
            requests.add_metric([*place, outcome], count)
        for kind, count in source.tokens.items():
            tokens.add_metric([*place, kind], count)
        cost.add_metric(list(place), source.cost_usd)
    yield from (requests, tokens, cost)


def _counters(by_alias: Mapping[str, _Answers], failed: Mapping[int, int]) -> Iterator[Metric]:
    prompt = CounterMetricFamily("vllm:prompt_tokens", "Prompt tokens read.", labels=["model_name"])
    generated = CounterMetricFamily("vllm:generation_tokens", "Tokens generated.", labels=["model_name"])
    labels = ["model_name", "finished_reason"]
    success = CounterMetricFamily("vllm:request_success", "Requests answered, by finish reason.", labels=labels)
    errors = CounterMetricFamily("tunesmith:request_errors", "Requests that ended with an error, by status.", labels=["status"])
    for alias, answers in by_alias.items():
        prompt.add_metric([alias], answers.prompt_tokens)
        generated.add_metric([alias], answers.generated_tokens)
        for reason, count in answers.finished.items():
            success.add_metric([alias, reason], count)
    for status, count in failed.items():
        errors.add_metric([str(status)], count)
    yield from (prompt, generated, success, errors)


def _merged(by_project: Mapping[tuple[str | None, str, str, str], _Variant]) -> dict[tuple[str, str, str], _Variant]:
    whole: dict[tuple[str, str, str], _Variant] = {}
    for (_, *labels), variant in by_project.items():
        alias, deployment, name = labels
        whole.setdefault((alias, deployment, name), _Variant()).merge(variant)
    return whole


def _variants(variants: Mapping[tuple[str, str, str], _Variant], copies: Mapping[tuple[str, ...], int]) -> Iterator[Metric]:
    labels = ["model_name", "deployment", "variant"]
    about = "Requests by the variant that they were assigned, and what became of them."
    requests = CounterMetricFamily("tunesmith:variant_requests", about, labels=[*labels, "outcome"])
    for place, variant in variants.items():
        for outcome, count in variant.outcomes.items():
            requests.add_metric([*place, outcome], count)
    yield requests
    yield from _latency(
        "tunesmith:variant_request_duration_seconds", _WHOLE, labels, {place: each.total for place, each in variants.items()}
    )
    about = "Copies of requests for shadows, and what became of them; in no other figure."
    shadows = CounterMetricFamily("tunesmith:shadow_requests", about, labels=["model_name", "variant", "outcome"])
    for values, count in copies.items():
        shadows.add_metric(list(values), count)
    yield shadows


def _latency(name: str, about: str, labels: Sequence[str], series: Mapping[tuple[str, ...], _Series]) -> Iterator[Metric]:
    """A histogram, and its quantiles."""
    histogram = HistogramMetricFamily(name, about, labels=labels)
    quantiles = GaugeMetricFamily(f"{name}_quantile", f"{about} Within 1 %.", labels=[*labels, "quantile"])
    for values, counted in series.items():
        if not counted.sketch.count:
            continue
        histogram.add_metric(list(values), counted.buckets(), counted.sum)
        for q in _QUANTILES:
            quantiles.add_metric([*values, str(q)], counted.sketch.quantile(q))
    yield from (histogram, quantiles)
