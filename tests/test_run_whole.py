"""Whole weights, and training that goes on from what was trained, through the main command: trained, gated, deployed, served, evaluated."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

import tiny
from test_models_resolve import asked, evaluated, serving
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.store.deployments import Deployments
from tunesmith.store.store import Store

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

YAML = """
name: bot
sources: [{path: rows.jsonl}]
base: base
split: {validation: 0.1, test: 0.25}
train: {epochs: 1, learning_rate: 0.003, batch_size: 8, dtype: float32, threads: 1, adapter: ADAPTER}
baselines: [{name: zero-shot}]
evaluate: {metrics: [exact_match], max_tokens: 4, limit: 8}
gate: {superior: false, margin: 1.0}
deploy: {alias: bot, questions: 1, parity: false}  # test_after_a_run asks it
serve: {workers: 0}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"), context=128)  # too short for the general abilities, which test_eval_findings asks


def project(folder: Path, base: Path, adapter: str, rows: int = 60) -> Path:
    folder.mkdir()
    shutil.copytree(base, folder / "base")
    rng, lines = random.Random(0), []
    words = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
    for _ in range(rows):
        said = " ".join(rng.sample(words, 5))
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "yes" if "bank" in said else "no"}]
        lines.append(json.dumps({"messages": turns}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "tunesmith.yaml").write_text(YAML.replace("ADAPTER", adapter))
    return folder


def call(capsys, folder: Path, *words: str) -> tuple[int, dict, str]:
    code = guarded(app, [*words, "--config", str(folder / "tunesmith.yaml"), "--json"])
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("{")]
    return code, json.loads(lines[-1]) if lines else {}, said.err


def versions(folder: Path, alias: str = "bot"):
    store = Store.open(folder / ".tunesmith")
    history = Deployments(store).history(alias)
    store.close()
    return history


@pytest.fixture(scope="module")
def whole(tmp_path_factory, base):
    """A project whose weights were all trained, deployed."""
    folder = project(tmp_path_factory.mktemp("whole") / "project", base, "{kind: none}", rows=180)
    text = (folder / "tunesmith.yaml").read_text()
    (folder / "tunesmith.yaml").write_text(text.replace("{validation: 0.1, test: 0.25}", "{validation: 0.3, test: 0.1}"))
    assert guarded(app, ["run", "--config", str(folder / "tunesmith.yaml"), "--json"]) == 0
    return folder


def test_whole_weights_are_trained_deployed_served_and_evaluated_as_one_model(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    (deployment,) = versions(folder)
    model = deployment.variants[0].model
    assert (model.base, model.adapter) == ("../base", None)
    assert model.weights.endswith("/model")
    assert model.made_by.startswith("run:")
    assert (folder / "report" / "report.html").is_file()
    with serving(folder) as (client, lines):
        assert lines == []
        served = asked(client, "bot")
    assert served == evaluated(folder, "bot")
    assert served != evaluated(folder, "base")
    moved = folder.rename(tmp_path / "moved")
    assert evaluated(moved, "bot") == served


LIVE = (
    "--deploy.alias=live",
    "--deploy.live_questions=48",
    "--deploy.rollout={steps: [0.5, 1.0], step_s: 0, step_requests: 5, look_s: 0.05, guardrails: {errors: 0.3}}",
    "--monitor={window: 20, sample: 90, vectors: words, reference: train, golden: validation}",
)


def test_a_model_goes_live_as_a_canary_on_held_out_questions_is_watched_and_corrected(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "copy")
    code, found, said = call(capsys, folder, "run", *LIVE)
    assert (code, found["computed"]) == (0, ["ask", "live", "report"]), said
    assert found["live"].startswith("promoted: ")
    live = json.loads((folder / "report" / "report.json").read_text())["live"]
    assert (live["left_out"], live["status"]) == ("", "promoted"), live
    shares = [[each.weight for each in version.variants] for version in versions(folder, "live")[::-1]]
    assert shares == [[1.0], [0.5, 0.5], [1.0]], "the base, the canary beside it, the new model alone"
    assert all(guardrail["canary"][0] and guardrail["others"][0] for guardrail in live["guardrails"])
    assert {curve[0] for curve in live["drift"]["curves"]} == {"questions", "answers"}
    assert live["drift"]["lines"][0] == "questions: quiet"
    assert [(row["metric"], row["golden"], row["state"]) for row in live["quality"]["rows"]] == [("refusal", 0.0, "steady")]
    assert live["correction"]["correction"] in ("yes", "no")
    assert live["correction"]["answered"].strip() != live["correction"]["correction"]
    code, proposed, _ = call(capsys, folder, "data", "show", live["correction"]["version"])
    assert code == 0, proposed
    page = (folder / "report" / "report.html").read_text()
    assert "Live and watched" in page
    assert live["correction"]["version"] in page
    code, again, _ = call(capsys, folder, "run", *LIVE)
    assert (code, again["computed"]) == (0, [])
    assert len(versions(folder, "live")) == 3


def test_a_canary_that_is_not_promoted_deploys_nothing(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "copy")
    code, found, _ = call(capsys, folder, "run", *LIVE, "--deploy.live_questions=12")
    assert (code, "12 held-out questions did not decide it; nothing is deployed" in found["live"]) == (0, True)
    assert [len(version.variants) for version in versions(folder, "live")] == [1, 2, 1], "the base answers as before"
    assert versions(folder, "live")[0].variants[0].model.made_by == ""


def test_a_gate_that_says_no_deploys_nothing_and_a_second_run_deploys_nothing_anew(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "copy")
    before, said = versions(folder), evaluated(folder, "bot")
    assert len(before) == 1
    code, again, _ = call(capsys, folder, "run")
    assert (code, again["computed"]) == (0, [])
    assert versions(folder) == before
    code, refused, _ = call(capsys, folder, "run", "--gate.superior", "true", "--gate.margin", "0.999", "--train.epochs", "2")
    assert (code, refused["decision"] == "pass") == (3, False)
    assert versions(folder) == before
    assert evaluated(folder, "bot") == said
    code, _, _ = call(capsys, folder, "run", "--train.epochs", "2")
    assert code == 0
    newest, *older = versions(folder)
    assert older == before
    assert newest.version > before[0].version
    assert evaluated(folder, "bot") != said


def test_what_the_last_run_trained_is_evaluated_by_the_word_run(whole, tmp_path, capsys):
    folder = shutil.copytree(whole, tmp_path / "copy")
    data = ("--data", str(folder / "rows.jsonl"), "--limit", "3", "--max_tokens", "3")
    code, found, _ = call(capsys, folder, "eval", "run", "bot", "run:tuned", *data)
    assert code == 0
    by_run, by_alias, by_part = found["evaluations"]
    assert by_run["values"] == by_alias["values"] == by_part["values"]
    assert (by_run["asked"], by_alias["asked"], by_part["asked"]) == (3, 0, 0), "one model: its answers are kept once"
    code, shown, _ = call(capsys, folder, "data", "show", "test", "--rows", "100")
    report = json.loads((folder / "report" / "report.json").read_text())
    assert (code, len(shown["rows"])) == (0, report["data"]["split"]["test"]), "evaluate.limit bounds evaluations, not what the part holds"
    assert len(shown["rows"]) > 8


@pytest.mark.parametrize("adapter", ["{kind: none}", "{kind: lora, r: 4, targets: [q_proj, v_proj]}"])
def test_training_goes_on_from_a_version_of_an_alias(base, tmp_path, capsys, adapter):
    folder = project(tmp_path / "project", base, adapter)
    assert call(capsys, folder, "run")[0] == 0
    (first,) = versions(folder)
    text = (folder / "tunesmith.yaml").read_text()
    (folder / "tunesmith.yaml").write_text(text.replace("base: base", f"base: bot@{first.version}").replace(adapter, "{kind: lora}"))
    code, found, said = call(capsys, folder, "run", "--train.replay", "0.5")
    assert code == 0, said
    assert "train" in found["computed"]
    report = json.loads((folder / "report" / "report.json").read_text())
    (left,) = [line["rows"] for line in report["data"]["fates"] if line["rule"] == "replay"]
    assert 10 <= left <= 30, "half of the 40 rows that the first run trained on"
    assert f"{report['data']['split']['train'] - left} rows" in report["training"]["about"]
    code, _, said = call(capsys, folder, "run", "--base", "base", "--train.replay", "0.5")
    assert code == 2
    assert "was trained by no run of this store" in said
    newest, _ = versions(folder)
    model = newest.variants[0].model
    start = first.variants[0].model
    assert model.base == (start.base if start.adapter else f"./{start.weights}")
    with serving(folder) as (client, lines):
        assert lines == []
        assert asked(client, "bot") == evaluated(folder, "bot")
    if start.adapter is not None:
        settings = [json.loads((folder / ".tunesmith" / one.adapter / "adapter_config.json").read_text()) for one in (start, model)]
        assert settings[0]["target_modules"] == settings[1]["target_modules"]
        code, _, said = call(capsys, folder, "run", "--train.adapter.r", "8")
        assert code == 2
        assert "r is 8, and 4 in the adapter" in said
        code, _, said = call(capsys, folder, "run", "--train.adapter.kind", "none")
        assert code == 2
        assert "kind is none" in said


@pytest.mark.parametrize("word", ["bot", "run"])
def test_a_base_that_each_run_would_change_is_refused(whole, tmp_path, capsys, word):
    folder = shutil.copytree(whole, tmp_path / "copy")
    code, _, said = call(capsys, folder, "run", "--base", word)
    assert code == 2
    assert "start from its own result" in said
    assert "bot@VERSION" in said


def test_whole_weights_through_train_and_estimate(base, tmp_path, capsys):
    folder = project(tmp_path / "project", base, "{kind: none}")
    code, found, _ = call(capsys, folder, "estimate")
    assert code == 0
    assert found["trainable_parameters"] > 100_000
    code, found, _ = call(capsys, folder, "train")
    assert code == 0
    assert Path(found["artifact"]).name == "model"
    code, found, _ = call(capsys, folder, "train", "--overfit", "3", "--train.learning_rate", "0.01")
    assert code == 0
    assert found["train_loss"] < 0.1
