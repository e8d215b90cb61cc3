"""What dashboards elsewhere are built on: names, units, labels and buckets of /metrics, and the files that we ship over them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.identity import IdentityCheck
from tunesmith.core.types import Interaction, ShadowAnswer
from tunesmith.monitor.dashboards import FILES, write
from tunesmith.monitor.metrics import ServerMetrics

SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]  # OpenTelemetry GenAI 1.41.1
FIRST = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
BETWEEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5]
OTEL = {"gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"}
SOURCE = {"model_name", "variant", "model_digest", "experiment"}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ({"model_name"}, FIRST),
    "vllm:inter_token_latency_seconds": ({"model_name"}, BETWEEN),
    "vllm:e2e_request_latency_seconds": ({"model_name"}, SECONDS),
    "gen_ai_server_request_duration_seconds": (OTEL, SECONDS),
    "gen_ai_server_time_to_first_token_seconds": (OTEL, FIRST),
    "gen_ai_server_time_per_output_token_seconds": (OTEL, BETWEEN),
    "gen_ai_client_token_usage": ({*OTEL, "gen_ai_token_type"}, [4.0**power for power in range(14)]),
    "tunesmith:variant_request_duration_seconds": ({"model_name", "deployment", "variant"}, SECONDS),
}
OTHERS = {
    "vllm:num_requests_running": ("gauge", set()),
    "vllm:num_requests_waiting": ("gauge", set()),
    "vllm:kv_cache_usage_perc": ("gauge", set()),
    "vllm:prompt_tokens": ("counter", {"model_name"}),
    "vllm:generation_tokens": ("counter", {"model_name"}),
    "vllm:request_success": ("counter", {"model_name", "finished_reason"}),
    "tunesmith:request_errors": ("counter", {"status"}),
    "tunesmith:requests": ("counter", {*SOURCE, "outcome"}),
    "tunesmith:tokens": ("counter", {*SOURCE, "type"}),
    "tunesmith:cost_usd": ("counter", SOURCE),
    "tunesmith:variant_requests": ("counter", {"model_name", "deployment", "variant", "outcome"}),
    "tunesmith:shadow_requests": ("counter", {"model_name", "variant", "outcome"}),
    "tunesmith:identity_same": ("gauge", {"model_name", "variant", "deployment"}),
    "tunesmith:identity_p": ("gauge", {"model_name", "variant", "deployment"}),
    "tunesmith:identity_checked_timestamp_seconds": ("gauge", {"model_name", "variant", "deployment"}),
    "tunesmith:identity_looks": ("counter", {"model_name", "variant", "verdict"}),
    "tunesmith:identity_probes": ("counter", {"model_name", "variant"}),
}


def row(**more):
    fields = {
        "id": "1", "created": 1.0, "alias": "bot", "variant": "v1", "messages": (), "answer": "", "finish_reason": "stop", "prompt_tokens": 7,
        "completion_tokens": 3, "first_token_s": 0.1, "total_s": 0.5, "project": "p", "deployment": 3, "model_digest": "d" * 64, "cost_usd": 0.25,
    }  # fmt: skip
    return Interaction(**fields | more)


@pytest.fixture(scope="module")
def metrics():
    shown = ServerMetrics(lambda: (1, 2, 0.5))
    for each in (row(), row(project="q", experiment="e1"), row(fallback="v2"), row(status=500), row(status=499), row(status=400)):
        (shown.answered if each.status < 400 else lambda failed: shown.failed(failed.status, failed.project))(each)
        shown.assigned(each)
        shown.ended(each)
    shown.identity.note(IdentityCheck(alias="bot", deployment=3, variant="v1", moment="served", verdict="same", p=0.5, probes=12))
    shown.copied(ShadowAnswer(interaction="1", created=1.0, project="p", alias="bot", deployment=3, variant="s"))
    return shown


@pytest.fixture(scope="module")
def families(metrics):
    return {family.name: family for family in text_string_to_metric_families(metrics.text())}


def test_the_names_types_labels_and_buckets_are_those_that_operators_know(families):
    quantiles = {f"{name}_quantile" for name in HISTOGRAMS}
    assert set(families) == {*HISTOGRAMS, *OTHERS, *quantiles}
    for name, (labels, bounds) in HISTOGRAMS.items():
        assert families[name].type == "histogram"
        buckets = [sample for sample in families[name].samples if sample.name.endswith("_bucket")]
        assert all(set(sample.labels) == {*labels, "le"} for sample in buckets), name
        assert sorted({float(sample.labels["le"]) for sample in buckets}) == [*bounds, float("inf")], name
        assert {sample.labels["quantile"] for sample in families[f"{name}_quantile"].samples} == {"0.5", "0.95", "0.99"}
    for name, (kind, labels) in OTHERS.items():
        assert (families[name].type, {frozenset(sample.labels) for sample in families[name].samples}) == (kind, {frozenset(labels)}), name


def test_requests_tokens_and_cost_are_told_by_who_answered(metrics, families):
    def told(name, project=None, **labels):
        page = families if project is None else {each.name: each for each in text_string_to_metric_families(metrics.text(project))}
        return sum(s.value for s in page[name].samples if labels.items() <= s.labels.items() and not s.name.endswith("_created"))

    outcomes = ("answered", "fallback", "failed", "left", "refused")
    assert [told("tunesmith:requests", outcome=outcome) for outcome in outcomes] == [2, 1, 1, 1, 1]
    assert told("tunesmith:requests", experiment="e1", model_digest="d" * 12) == 1
    assert told("tunesmith:tokens", type="input") == 42
    assert told("tunesmith:cost_usd") == 1.5
    assert (told("tunesmith:cost_usd", "q"), told("tunesmith:requests", "q")) == (0.25, 1), "a project sees its own"


def test_shipped_files_name_what_is_shown(families, tmp_path, capsys):
    assert guarded(app, ["monitor", "dashboards", "--to", str(tmp_path / "to"), "--json"]) == 0
    assert [path.rpartition("/")[2] for path in json.loads(capsys.readouterr().out)["written"]] == list(FILES)
    dashboard = json.loads((tmp_path / "to" / "grafana.json").read_text())
    rules = yaml.safe_load((tmp_path / "to" / "prometheus-rules.yaml").read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    texts += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    shown = {sample.name: set(sample.labels) for family in families.values() for sample in family.samples}
    for text in texts:
        named = set(re.findall(r"(?:vllm|tunesmith|gen_ai)[:_]\w+", re.sub(r"\[[^]]*\]", "", text)))
        assert named, text
        assert named <= set(shown), text
        for labels in re.findall(r"\{([^}]*)\}", text):
            assert {part.partition("=")[0] for part in labels.split(",")} <= set.union(*(shown[name] for name in named)), text
    assert write(tmp_path / "to"), "what is there already is no obstacle"
    (tmp_path / "to" / "grafana.json").write_text("mine")
    assert guarded(app, ["monitor", "dashboards", "--to", str(tmp_path / "to")]) == 2
    assert (tmp_path / "to" / "grafana.json").read_text() == "mine"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_prometheus_takes_the_page_and_the_rules(metrics, tmp_path):
    write(tmp_path)
    for words, given in (
        (["check", "rules", str(tmp_path / "prometheus-rules.yaml")], None),
        (["check", "metrics"], metrics.text()),
    ):
        said = subprocess.run(["promtool", *words], input=given, capture_output=True, text=True)
        assert said.returncode in ((0,) if given is None else (0, 3)), said.stdout + said.stderr  # 3: lint on names that others made
