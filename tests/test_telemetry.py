"""What a collector of OpenTelemetry is told of requests: spans and histograms by the conventions' names, and no word of what was said."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from api_parts import running_server
from tunesmith.core.errors import ConfigError
from tunesmith.deploy.serve_config import OtlpConfig
from tunesmith.monitor.metrics import DURATION

pytest.importorskip("opentelemetry.sdk")
QUESTION = "a question that is nobody's business"


class Collector(BaseHTTPRequestHandler):
    """Keeps what comes, by its path."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.came.setdefault(self.path, []).append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def attributes(one):
    kinds = {each.key: each.value for each in one.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in kinds.items()}


@pytest.mark.slow
def test_a_collector_is_told_of_every_request_and_of_no_word(tmp_path):
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    collector.came = {}
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    with running_server(tmp_path, tmp_path, otlp=OtlpConfig(endpoint=f"http://127.0.0.1:{collector.server_port}")) as served:
        body = {"model": "echo", "messages": [{"role": "user", "content": QUESTION}], "metadata": {"conversation_id": "c1"}}
        answer = httpx.post(f"{served.url}/chat/completions", json=body, timeout=60).json()
        httpx.post(f"{served.url}/chat/completions", json=body | {"response_format": {"type": "no such"}}, timeout=60)
        httpx.post(f"{served.url}/chat/completions", json=body | {"model": "nobody"}, timeout=60)
    collector.shutdown()
    assert set(collector.came) == {"/v1/traces", "/v1/metrics"}
    spans = [
        span
        for sent in collector.came["/v1/traces"]
        for resource in ExportTraceServiceRequest.FromString(sent).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    told = {span.name: attributes(span) for span in spans}
    assert set(told) == {"chat echo"}, "a name that means nothing is no model"
    (good,) = (attributes(span) for span in spans if attributes(span)["http.response.status_code"] == 200)
    assert good["gen_ai.response.id"] == answer["id"]
    assert (good["gen_ai.operation.name"], good["gen_ai.provider.name"], good["gen_ai.request.model"]) == ("chat", "tunesmith", "echo")
    assert (good["gen_ai.usage.output_tokens"], good["gen_ai.conversation.id"]) == (answer["usage"]["completion_tokens"], "c1")
    metrics = {
        metric.name: metric
        for resource in ExportMetricsServiceRequest.FromString(collector.came["/v1/metrics"][-1]).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    duration = metrics["gen_ai.server.request.duration"]
    assert (duration.unit, tuple(duration.histogram.data_points[0].explicit_bounds)) == ("s", DURATION)
    assert {"gen_ai.server.time_to_first_token", "gen_ai.client.token.usage"} <= set(metrics)
    assert sum(point.count for point in duration.histogram.data_points) == len(spans)
    assert not any(QUESTION.encode() in part for parts in collector.came.values() for part in parts)


@pytest.mark.slow
def test_a_collector_that_is_away_keeps_nobody_waiting(tmp_path):
    with running_server(tmp_path, tmp_path, otlp=OtlpConfig(endpoint="http://127.0.0.1:9")) as served:
        body = {"model": "echo", "messages": [{"role": "user", "content": QUESTION}]}
        assert httpx.post(f"{served.url}/chat/completions", json=body, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "wrong", [{"endpoint": "collector:4318"}, {"endpoint": "http://host:4318/v1/traces"}, {"endpoint": "http://h", "every_s": 0}]
)
def test_addresses_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError, match="otlp"):
        OtlpConfig(**wrong)
