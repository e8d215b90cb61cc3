"""What the command line says and does once a run is there: one tiny project, run once, looked at by every command in this process."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
from pathlib import Path

import pytest

import tiny
from tunesmith.cli import app
from tunesmith.cli.shared import guarded

pytest.importorskip("torch")
openai = pytest.importorskip("openai")
pytestmark = pytest.mark.slow

YAML = """
name: bot
sources: [{path: rows.jsonl}]
base: base
split: {validation: 0.1, test: 0.25}
train: {epochs: 1, learning_rate: 0.003, batch_size: 8, dtype: float32, threads: 1, adapter: {kind: lora, r: 4}}
baselines: [{name: zero-shot}]
evaluate: {metrics: [rougeL], max_tokens: 4, limit: 8}
gate: {superior: true, margin: 0.999}
deploy: {alias: bot, questions: 1}
serve: {workers: 0}
"""
WORDS = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]


def written(folder: Path) -> Path:
    tiny.model(folder / "base", context=128)
    draw, lines = random.Random(0), []
    for _ in range(60):
        said = " ".join(draw.sample(WORDS, 5))
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": "yes" if "bank" in said else "no"}]
        lines.append(json.dumps({"messages": turns}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "tunesmith.yaml").write_text(YAML)
    return folder


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The project after a run whose gate says no."""
    folder = written(tmp_path_factory.mktemp("project"))
    assert guarded(app, ["run", "--config", str(folder / "tunesmith.yaml"), "--json"]) == 3
    return folder


@pytest.fixture
def call(ran, capsys, monkeypatch):
    """A command in the project's folder: its exit code, its JSON object, and what it said to people."""
    monkeypatch.chdir(ran)

    def made(*words: str, as_json: bool = True) -> tuple[int, dict, str]:
        code = guarded(app, [*words, *(["--json"] if as_json else [])])
        said = capsys.readouterr()
        lines = [line for line in said.out.splitlines() if line.startswith("{")] if as_json else []
        return code, json.loads(lines[-1]) if lines else {}, said.err if as_json else said.out + said.err

    return made


@contextlib.contextmanager
def serving(**names: str):
    """What `tunesmith serve --name …` in this folder answers: (client of the real SDK, what it said at the start)."""
    from tunesmith.api.app import running
    from tunesmith.api.serve import application

    lines: list[str] = []
    with application(Path("tunesmith.yaml"), ["--serve.port=0"], lines.append, names=names) as served, running(served.app) as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60), lines


def asked(client, model: str):
    said = [{"role": "user", "content": "bank of york"}]
    return client.chat.completions.create(model=model, messages=said, max_tokens=3, temperature=0).choices[0].message.content


def test_what_follows_from_a_training_that_was_made_anew_is_made_anew(ran, call, tmp_path, monkeypatch):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = {stage["name"]: stage for stage in call("status")[1]["stages"]}
    first = tmp_path / ".tunesmith" / "stages" / before["train"]["digest"]
    code, anew, _ = call("train", "--fresh")
    assert (code, anew["cached"]) == (0, False)
    assert first.is_dir(), "what may be deployed stays"
    assert call("train")[1]["cached"], "the new one is what is there now"
    after = {stage["name"]: stage for stage in call("status")[1]["stages"]}
    redone = [name for name, stage in after.items() if stage["state"] != "done"]
    assert redone == ["evaluate:tuned", "compare", "regression", "ask", "report"]
    assert after["split"] == before["split"]
    (first / "here").touch()
    assert not call("train", "--fresh")[1]["cached"]
    assert len({path for path in first.parent.iterdir() if (path / "adapter").is_dir()}) == 3


def test_what_the_gate_kept_from_being_deployed_is_named_with_the_way_to_it(call):
    code, _, said = call("eval", "bot", "--data", "validation")
    assert code == 2
    assert "said 'block'" in said or "said 'cannot tell'" in said
    assert "run:tuned" in said
    _, _, said = call("eval", "nobody", "--data", "validation")
    assert "gate" not in said
    with serving() as (client, lines):
        (line,) = [line for line in lines if "bot" in line]
        assert "the gate of the last run said" in line
        assert "--name bot=run:tuned" in line
        with pytest.raises(openai.NotFoundError, match=r"the gate of the last run said .* run:tuned"):
            asked(client, "bot")
    with serving(bot="run:tuned") as (client, lines):
        assert not [line for line in lines if "gate" in line]
        assert asked(client, "bot") is not None


def test_a_report_right_after_a_run_shows_its_arms_and_names_the_runs_own(call):
    code, found, _ = call("report")
    assert code == 0
    assert [(one["a"], one["b"]) for one in found["comparisons"]] == [("zero-shot", "tuned")]
    assert found["run_report"].endswith("report/report.html")
    assert "report/report.html" in call("report", as_json=False)[2]


def test_monitoring_counts_what_others_asked_and_says_which_variant(ran, call):
    assert json.loads((ran / "report" / "report.json").read_text())["monitoring"]
    before = call("monitor", "status")[1]["requests"]
    with serving(bot="run:tuned") as (client, _):
        asked(client, "bot")
        asked(client, "base")
    _, found, _ = call("monitor", "status")
    assert (before, found["requests"]) == (before, before + 2)
    assert not [one for one in found["variants"] if one["requests"] > found["requests"]]
    said = call("monitor", "status", as_json=False)[2]
    for one in found["variants"]:
        assert f"{one['alias']} " in said


@pytest.mark.parametrize(("words", "meant"), [
    (["run", "--dryrun"], "--dry-run"),
    (["run", "--dryrun", "--train.epochs", "2"], "--dry-run"),
    (["status", "--aswritten"], "--as-written"),
    (["train", "--overfitt", "3"], "--overfit"),
    (["eval", "base", "--aswritten", "x"], "--as-written"),
    (["gate", "run:zero-shot", "run:tuned", "--juint", "x.xml"], "--junit"),
    (["run", "--trian.epochs", "2"], "train"),
])  # fmt: skip
def test_an_option_that_is_none_names_the_nearest_of_the_command(call, words, meant):
    code, _, said = call(*words)
    assert code == 2
    assert f"did you mean '{meant}'?" in said


@pytest.mark.parametrize("words", [
    ["compare", "base", "nosuch"], ["compare", "nosuch", "base"], ["compare", "base", "run:nosuch"], ["compare", "base,nosuch", "run:tuned"],
    ["compare", "base", "nosuch", "--data", "validation"], ["compare", "base", "run:tuned", "--data", "nosuch.jsonl"],
    ["compare", "base", "run", "--judge", "nosuch"], ["compare", "base", "run", "--slices", "nosuch"],
    ["compare", "base", "run", "--human", "nosuch.jsonl"], ["gate", "base", "nosuch"], ["eval", "base", "--data", "nosuch.jsonl"],
    ["eval", "base", "run", "--choose_on", "validation", "--data", "nosuch.jsonl"], ["eval", "base", "nosuch"],
])  # fmt: skip
def test_a_word_that_names_nothing_is_told_before_anybody_is_asked(ran, call, words):
    before = kept(ran)
    code, _, said = call(*words)
    assert code == 2, said
    assert "nosuch" in said
    assert kept(ran) == before, "nobody was asked, and no sealed row was opened"


def kept(folder: Path) -> dict[str, bytes]:
    """What evaluations left: answers, results, and openings of sealed rows."""
    store = folder / ".tunesmith"
    return {str(path): path.read_bytes() for path in [*store.glob("evaluations/**/*"), *store.glob("openings*")] if path.is_file()}


def test_what_a_run_split_is_no_version_to_train_on_and_that_is_said(ran, call):
    split = next(stage["digest"] for stage in call("status")[1]["stages"] if stage["name"] == "split")
    code, _, said = call("train", "--data", split[:12])
    assert code == 2
    assert "the split that a run of this project made" in said
    assert "latest[:PART], VERSION[:PART]" in said
    code, _, said = call("train", "--data", "abcdef123456")
    assert (code, "no version 'abcdef123456'" in said) == (2, True)


def test_init_beside_a_project_names_both_faults(call):
    code, _, said = call("init", "nofile.jsonl")
    assert code == 2
    assert "'tunesmith.yaml' is already there" in said
    assert "nofile.jsonl" in said


def test_trace_takes_the_last_run_and_helps_with_what_it_does_not_know(call):
    code, walked, _ = call("trace", "run")
    assert (code, walked["asked"]["kind"]) == (0, "run")
    code, _, said = call("trace", "rnu")
    assert (code, "did you mean 'run'?" in said) == (2, True)
    assert "tunesmith trace run" in call("trace", "zzzzzzzzzz")[2]


def test_tokens_are_those_of_any_word_for_a_model(call):
    shown = [call("data", "mask", "1", "--data", "rows.jsonl", "--base", word)[1]["sides"] for word in ("base", "run", "run:tuned")]
    assert shown[0] == shown[1] == shown[2]
    checked = [call("data", "check", "rows.jsonl", "--base", word)[1]["tokens"]["spread"] for word in ("base", "run")]
    assert checked[0] == checked[1]
    assert call("data", "mask", "1", "--data", "rows.jsonl", "--base", "nosuch")[0] == 2


def test_a_runs_split_by_its_id_is_measured_as_the_run_measured_it(ran, call, tmp_path, monkeypatch):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    first = next(stage["digest"][:16] for stage in call("status")[1]["stages"] if stage["name"] == "split")
    by_name, by_run, by_id = (call("eval", "base", "--data", word)[1]["evaluations"][0] for word in ("test", "run:test", first))
    assert by_id["metrics"] == by_name["metrics"] == ["rougeL"]
    assert by_id["id"] == by_run["id"] == by_name["id"], "the same rows, tokens and metric: asked once"
    assert (by_id["sampling"]["max_tokens"], by_id["rows"]) == (4, 8)
    assert by_id["opening"] == by_run["opening"] == by_name["opening"] > 0, "one look, by whatever word"
    file = tmp_path / "tunesmith.yaml"
    file.write_text(file.read_text().replace("split: {", "split: {salt: other, ").replace("max_tokens: 4", "max_tokens: 5"))
    older = call("eval", "base", "--data", first, "--as-written")[1]["evaluations"][0]
    assert older["id"] == by_id["id"], "as that run measured it, whatever the file says now"
    assert call("eval", "base", "--data", f"{first}:train", "--limit", "3")[1]["evaluations"][0]["metrics"] == ["rougeL"]


def test_no_way_to_deploy_leads_around_the_comparison_of_what_computes(ran, call, tmp_path, monkeypatch):
    from tunesmith.api.serve import temporary
    from tunesmith.core.errors import GateRefused
    from tunesmith.core.progress import Silent
    from tunesmith.flow.pipeline.run import run_pipeline
    from tunesmith.flow.project import load_project
    from tunesmith.store.deployments import Deployments
    from tunesmith.store.store import Store

    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    tiny.adapter(tmp_path / "base", tmp_path / "other", seed=9)
    compared = tmp_path / ".tunesmith" / "parity"

    @contextlib.contextmanager
    def wrong(models, log):
        with temporary({name: model.with_adapter(tmp_path / "other", name) for name, model in models.items()}, log) as url:
            yield url

    passing = load_project(Path("tunesmith.yaml"), ["--gate.superior=false"])
    with pytest.raises(GateRefused, match="is not deployed: it computes another model"):
        run_pipeline(passing, tmp_path, Silent(), wrong)
    with contextlib.closing(Store.open(tmp_path / ".tunesmith")) as store:
        assert Deployments(store).in_force() == {}
    assert (tmp_path / "report" / "report.html").is_file()
    assert call("deploy", "bot", "base")[0] == 0, "a base was made by nobody here"
    assert not compared.is_dir()
    code, _, said = call("deploy", "canary", "bot", "run:tuned", "--gate", "any", "--no-parity", " ")
    assert (code, "--no-parity without a reason" in said) == (2, True)
    assert call("deploy", "canary", "bot", "run:tuned", "--gate", "any", "--no-parity", "in a hurry")[0] == 0
    assert "(no parity: in a hurry)" in call("deploy", "history", "bot")[1]["versions"][0]["reason"]
    assert not compared.is_dir()
    with pages(tmp_path, wrong) as post:
        refused = post("/deployments/bot/promote", variant="canary")
        assert (refused.status_code, "it computes another model than transformers and peft" in refused.text) == (409, True)
        assert "&#39;bot:canary&#39; is not deployed" in refused.text
        assert post("/deployments", alias="new", model="run:tuned").status_code == 409
        assert post("/deployments/bot/experiment", control="base", treatment="run:tuned", metrics="thumbs").status_code == 409
    assert not compared.is_dir()
    assert len(call("deploy", "history", "bot")[1]["versions"]) == 2
    assert call("deploy", "promote", "bot", "canary")[0] == 0
    (passed,) = compared.iterdir()
    assert "pass: every side computes the same model" in passed.read_text()
    passed.write_text("once is enough")
    assert call("deploy", "again", "run:tuned")[0] == 0
    with pages(tmp_path, wrong) as post:
        assert post("/deployments", alias="third", model="run:tuned").status_code == 200
    assert [path.read_text() for path in compared.iterdir()] == ["once is enough"], "the same weights are compared once"


@contextlib.contextmanager
def pages(folder: Path, server):
    """What a post to a page leads to, of a server whose models are compared behind `server`."""
    import httpx

    from tunesmith.api.app import running
    from tunesmith.api.serve import application
    from tunesmith.web.site import PageSite
    from waiting import until

    file = folder / "tunesmith.yaml"
    with (
        application(file, ["--serve.port=0"], lambda _: None, names={}, pages=lambda *at: PageSite(*at, server)) as served,
        running(served.app) as url,
        httpx.Client(base_url=url.removesuffix("/v1"), headers={"accept": "text/html"}, timeout=60, follow_redirects=True) as client,
    ):

        def post(path: str, **form: str):
            alias = path.split("/")[2] if path.count("/") > 1 else ""
            seen = {"seen": re.search(r'name="seen" value="(\d+)"', client.get(f"/deployments/{alias}").text)[1]} if alias else {}
            answer = client.post(path, data={**form, **seen}, headers={"sec-fetch-site": "same-origin"})
            waited = answer.url.path
            if waited.startswith("/errands/"):
                until(lambda: client.get(waited, headers={"hx-request": "true"}).headers.get("hx-redirect"))
                answer = client.get(waited)
            return answer

        yield post
