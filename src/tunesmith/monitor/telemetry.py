"""Each request as a span, and OpenTelemetry's GenAI histograms (conventions 1.41.1), sent by OTLP over HTTP; knows nothing about what is
answered here over HTTP. What was said is in none of it.

Sending is a thread's own work, in batches: a collector that is away costs no request anything, and what it missed is in the log.
"""

from __future__ import annotations

import logging
from typing import Any

from tunesmith.core.load import need
from tunesmith.core.types import Interaction
from tunesmith.monitor.metrics import DURATION, FIRST_TOKEN, OPERATIONS, PER_TOKEN, USAGE

_EXTRA, _NS = "otel", 1_000_000_000
# (name, unit, bucket bounds)
HISTOGRAMS = (
    ("gen_ai.server.request.duration", "s", DURATION),
    ("gen_ai.server.time_to_first_token", "s", FIRST_TOKEN),
    ("gen_ai.server.time_per_output_token", "s", PER_TOKEN),
    ("gen_ai.client.token.usage", "{token}", USAGE),
)
_SENDERS = ("opentelemetry.sdk", "opentelemetry.exporter")


class Telemetry:
    """Sends to the collector at `endpoint` (`http://HOST:4318`); metrics each `every_s`. Headers, such as a key, are read by OpenTelemetry
    itself from OTEL_EXPORTER_OTLP_HEADERS. Raises MissingExtra."""

    def __init__(self, endpoint: str, every_s: float = 30.0) -> None:
        resource = need("opentelemetry.sdk.resources", extra=_EXTRA).Resource.create({"service.name": "tunesmith"})
        self._spans, self._tracer = _spans(endpoint, resource)
        self._meters = _meters(endpoint, resource, every_s)
        meter = self._meters.get_meter("tunesmith")
        self._duration, self._first, self._between, self._usage = (meter.create_histogram(name, unit=unit) for name, unit, _ in HISTOGRAMS)
        trace = need("opentelemetry.trace", extra=_EXTRA)
        self._server, self._failed = trace.SpanKind.SERVER, trace.Status(trace.StatusCode.ERROR)

    def ended(self, row: Interaction) -> None:
        """Tell of one request, however it ended."""
        operation = OPERATIONS.get(row.endpoint, row.endpoint)
        labels = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "tunesmith", "gen_ai.request.model": row.alias}
        if row.status >= 400:
            labels["error.type"] = str(row.status)
        began = int(row.created * _NS)
        span = self._tracer.start_span(
            f"{operation} {row.alias}", kind=self._server, start_time=began, attributes={**labels, **_attributes(row)}
        )
        if row.status >= 400:
            span.set_status(self._failed)
        span.end(began + int(row.total_s * _NS))
        self._duration.record(row.total_s, labels)
        if row.status < 400:
            self._first.record(row.first_token_s, labels)
            if row.completion_tokens > 1:
                self._between.record((row.total_s - row.first_token_s) / (row.completion_tokens - 1), labels)
            self._usage.record(row.prompt_tokens, {**labels, "gen_ai.token.type": "input"})
            self._usage.record(row.completion_tokens, {**labels, "gen_ai.token.type": "output"})

    def close(self) -> None:
        """Send what waits, for some seconds at most."""
        self._spans.shutdown()
        self._meters.shutdown(timeout_millis=5000)


def _attributes(row: Interaction) -> dict[str, Any]:
    """What a span tells of a request beside its model; what is not known is left out."""
    known = {
        "gen_ai.response.id": row.id,
        "gen_ai.response.model": row.fallback or row.variant,
        "gen_ai.response.finish_reasons": [row.finish_reason],
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.completion_tokens,
        "gen_ai.conversation.id": row.conversation,
        "http.response.status_code": row.status,
        "tunesmith.variant": row.variant,
        "tunesmith.deployment": row.deployment,
        "tunesmith.model_digest": row.model_digest or None,
        "tunesmith.experiment": row.experiment,
        "tunesmith.cost_usd": row.cost_usd,
    }
    return {name: value for name, value in known.items() if value is not None}


def _spans(endpoint: str, resource: Any) -> tuple[Any, Any]:
    """(what ends the sending, what makes spans)."""
    sdk, export = need("opentelemetry.sdk.trace", extra=_EXTRA), need("opentelemetry.sdk.trace.export", extra=_EXTRA)
    otlp = need("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra=_EXTRA)
    provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=5)))
    for name in _SENDERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a collector that is away would fill the server's log
    return provider, provider.get_tracer("tunesmith")


def _meters(endpoint: str, resource: Any, every_s: float) -> Any:
    sdk, export = need("opentelemetry.sdk.metrics", extra=_EXTRA), need("opentelemetry.sdk.metrics.export", extra=_EXTRA)
    view = need("opentelemetry.sdk.metrics.view", extra=_EXTRA)
    otlp = need("opentelemetry.exporter.otlp.proto.http.metric_exporter", extra=_EXTRA)
    exporter = otlp.OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics", timeout=5)
    reader = export.PeriodicExportingMetricReader(exporter, export_interval_millis=1000 * every_s)
    buckets = [
        view.View(instrument_name=name, aggregation=view.ExplicitBucketHistogramAggregation(boundaries=bounds))
        for name, _, bounds in HISTOGRAMS
    ]
    return sdk.MeterProvider(metric_readers=[reader], resource=resource, views=buckets, shutdown_on_exit=False)
