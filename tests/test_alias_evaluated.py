"""An alias is evaluated as it answers: by the server that its variant names, with the variant's own sampling."""

from __future__ import annotations

import json

import pytest

from tunesmith.api.app import create_app, running
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.deployment import Variant
from tunesmith.models.echo import EchoModel
from tunesmith.store.deployments import Deployments
from tunesmith.store.store import Store

pytest.importorskip("openai")
YAML = """
name: bot
sources: [{{path: rows.jsonl}}]
base: smollm2-135m
serve: {{upstreams: {{far: {{base_url: "{url}", model: behind}}, locked: {{base_url: "{url}", model: behind, api_key_from: NO_SUCH_KEY}}}}}}
"""


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "one two three four"}, {"role": "assistant", "content": "one two"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}))

    def made(*words):
        code = guarded(app, [*words, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]), said.err

    with running(create_app({"behind": EchoModel()})) as url:
        (tmp_path / "tunesmith.yaml").write_text(YAML.format(url=url))
        yield made


@pytest.mark.slow
def test_an_alias_of_an_upstream_is_asked_there_with_its_own_sampling(call, tmp_path):
    store = Store.open(tmp_path / ".tunesmith")
    Deployments(store).put("bot", [Variant(name="far", upstream="far", sampling={"max_tokens": 2, "temperature": 0.5, "top_p": 0.9})])
    Deployments(store).put("shut", [Variant(name="locked", upstream="locked")])
    store.close()
    code, found, _ = call("eval", "bot", "--data", "rows.jsonl")
    (one,) = found["evaluations"]
    assert (code, one["values"]["exact_match"]) == (0, 1.0), "as many tokens as the variant has"
    assert (one["sampling"]["max_tokens"], one["sampling"]["temperature"], one["sampling"]["top_p"]) == (2, 0.5, 0.9)
    (one,) = call("eval", "bot", "--data", "rows.jsonl", "--max_tokens", "4", "--temperature", "0")[1]["evaluations"]
    assert (one["values"]["exact_match"], one["sampling"]["max_tokens"], one["sampling"]["temperature"]) == (0.0, 4, 0.0)
    (one,) = call("eval", "bot", "--data", "rows.jsonl", "--samples", "2")[1]["evaluations"]
    assert one["seeds"] == [0, 1]
    code, _, said = call("eval", "bot", "--data", "rows.jsonl", "--samples", "2", "--temperature", "0")
    assert (code, "are the same answer" in said) == (2, True)
    code, _, said = call("eval", "shut", "--data", "rows.jsonl")
    assert (code, "NO_SUCH_KEY" in said) == (2, True)
