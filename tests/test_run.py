"""The whole circle through the command line, with a tiny real model: it ends, it is not repeated, it survives kill -9 anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path
from xml.etree import ElementTree

import markupsafe
import pytest

import browser
import tiny
from forked import command, start
from tunesmith.cli import main
from tunesmith.core.deployment import Variant
from tunesmith.core.model_ref import ModelRef
from tunesmith.store.deployments import Deployments
from tunesmith.store.runs import Runs
from tunesmith.store.store import Store
from waiting import until

YAML = """
name: tiny
sources: [{{path: rows.jsonl}}]
base: {base}
split: {{validation: 0.1, test: 0.25}}
train:
  epochs: 3
  learning_rate: 0.01
  batch_size: 8
  dtype: float32
  threads: 1
  checkpoint_every: 3
  adapter: {{kind: lora, r: 8}}
baselines: [{{name: zero-shot}}, {{name: few-shot, shots: 2}}]
evaluate: {{metrics: [exact_match], max_tokens: 6}}
deploy: {{alias: tiny, questions: 2, parity: false}}  # test_after_a_run asks it
serve: {{webhooks: [{{url: "http://127.0.0.1:9", secret: whsec_bm9ib2R5IG1heSByZWFkIHRoaXM=}}]}}
"""
# The file's own seed is another: whatever looks at this run must know what it was made with.
RUN = ("run", "--train.seed", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.model(tmp_path_factory.mktemp("base"), context=128)  # too short for the general abilities, which test_eval_findings asks


def rows() -> list[dict]:
    rng, found = random.Random(0), []
    words = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
    for _ in range(100):
        said = " ".join(rng.sample(words, 6))
        answer = "yes" if "bank" in said else "no"
        found.append({"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]})
    return found


def project(folder: Path, base: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    (folder / "tunesmith.yaml").write_text(YAML.format(base=base))
    return folder


def tunesmith(folder: Path, *words: str, check: int | None = None) -> tuple[int, dict, str]:
    process = command([*words, "--json"], folder)
    code = process.wait()
    lines = [line for line in process.out.splitlines() if line.startswith("{")]
    if check is not None:
        assert code == check, process.err
    return code, json.loads(lines[-1]) if lines else {}, process.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base):
    folder = project(tmp_path_factory.mktemp("finished"), base)
    code, result, said = tunesmith(folder, *RUN)
    assert code in (0, 3), said
    return folder, code, result


@pytest.mark.slow
def test_the_circle_ends_with_a_report_and_a_verdict(finished):
    folder, code, result = finished
    assert (code == 0) == (result["decision"] == "pass")
    report = json.loads((folder / "report" / "report.json").read_text())
    assert {arm["name"] for arm in report["arms"]} == {"zero-shot", "few-shot", "tuned"}
    for comparison in report["comparisons"]:
        for one in comparison["metrics"]:
            assert one["difference"]["low"] <= one["difference"]["estimate"] <= one["difference"]["high"]
    page = (folder / "report" / "report.html").read_text()
    assert "<svg" in page
    assert "webhooks" in page
    assert "bm9ib2R5" not in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://127.0.0.1", "")
    assert sum(line["rows"] for line in report["data"]["fates"]) == report["data"]["inputs"] == 100
    assert report["monitoring"]
    assert all(one["errors"] == 0 for one in report["monitoring"])


@pytest.mark.slow
def test_a_run_ends_no_canary(finished, tmp_path):
    from tunesmith.store.deployments import Deployments

    folder = shutil.copytree(finished[0], tmp_path / "copy")
    with contextlib.closing(Store.open(folder / ".tunesmith")) as store:
        pair = [Variant(name=name, model=ModelRef(base=f"base-{name}"), weight=weight) for name, weight in (("old", 0.9), ("new", 0.1))]
        before = Deployments(store).put("tiny-tuned", pair, strategy="split")
    run = command([*RUN, "--gate.superior", "false", "--gate.margin", "1", "--deploy.alias", "tiny-tuned"], folder)
    assert run.wait() == 0, run.err
    assert "not deployed: 'tiny-tuned' answers with several variants (old, new)" in run.err
    with contextlib.closing(Store.open(folder / ".tunesmith")) as store:
        assert Deployments(store).in_force()["tiny-tuned"] == before


@pytest.mark.slow
def test_an_answer_is_traced_to_its_rows_and_a_row_to_its_answers(finished, base, tmp_path):
    import httpx

    from tunesmith.api.app import create_app, running
    from tunesmith.deploy.router import Router
    from tunesmith.models.local import LocalModel
    from tunesmith.store.deployments import Deployments

    folder = shutil.copytree(finished[0], tmp_path / "copy")
    with contextlib.closing(Store.open(folder / ".tunesmith")) as store:
        run = next(iter(Runs(store).listed("tiny")))
        place = f"stages/{run.digests['train']}/adapter"
        model = LocalModel(base, store.folder / place, name="tiny", dtype="float32")
        ref = ModelRef(base=str(base), adapter=place, digest=model.digest, made_by=f"run:{run.digests['train']}")
        deployment, router = Deployments(store).put("traced", [Variant(name="tuned", model=ref)]), Router()
        router.deploy(deployment, {"tuned": model})
        with running(create_app(router, store=store)) as url:
            body = {"model": "traced", "messages": [{"role": "user", "content": "bank"}], "max_tokens": 2}
            answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()
    _, walked, _ = tunesmith(folder, "trace", answer["id"], check=0)
    kinds = [link["kind"] for link in walked["came_from"]]
    assert kinds[:6] == ["deployment", "model", "training", "run", "plan", "data"]
    assert "--train.seed=1" in next(link for link in walked["came_from"] if link["kind"] == "run")["facts"]["overrides"]
    assert sum(next(link for link in walked["came_from"] if link["kind"] == "ledger")["facts"]["fates"].values()) == 100
    origin = next(link for link in walked["came_from"] if link["kind"] == "row")["facts"]["origin"]
    _, back, _ = tunesmith(folder, "trace", origin, check=0)
    tallies = [link["facts"]["requests"] for link in back["led_to"] if link["kind"] == "answers" and link["id"].startswith("traced@")]
    assert tallies == [1]


@pytest.mark.slow
def test_the_report_opens_offline_in_a_browser(finished):
    folder, _, result = finished
    path = folder / "report" / "report.html"
    assert str(markupsafe.escape(result["verdict"])) in path.read_text("utf-8")
    assert path.read_text("utf-8").count("<svg") >= 3
    with browser.browser() as opened:
        for width, scheme in ((1200, "light"), (390, "dark")):
            assert browser.faults(opened, path, width=width, scheme=scheme) == []


@pytest.mark.slow
def test_a_second_run_does_nothing_and_a_changed_setting_redoes_only_what_follows(finished):
    folder, code, first = finished
    _, again, _ = tunesmith(folder, *RUN, check=code)
    assert again["computed"] == []
    assert again["values"] == first["values"]
    _, changed, _ = tunesmith(folder, *RUN, "--deploy.questions", "1")
    assert changed["computed"] == ["ask", "report"]
    _, states, _ = tunesmith(folder, "status", check=0)
    assert {stage["state"] for stage in states["stages"]} == {"done"}
    _, planned, _ = tunesmith(folder, "run", "--dry-run", "--train.epochs", "9", check=0)
    assert planned["epochs"] == 9
    assert "train" in planned["waiting"]
    assert "split" not in planned["waiting"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["collect", "split", "evaluate:zero-shot", "train", "compare"])
def test_kill_9_at_any_stage_and_the_same_numbers(finished, tmp_path, stage):
    folder = begun(finished[0], tmp_path, stage)
    process = command([*RUN], folder)
    process.until_err(stage)
    if stage == "train":
        until(lambda: [*folder.glob(".tunesmith/stages/.*.part/checkpoints/checkpoint-*")], alive=process.alive)
    assert process.kill() == -signal.SIGKILL
    code, result, said = tunesmith(folder, *RUN)
    _, whole_code, whole = finished
    assert code == whole_code, said
    assert result["values"] == whole["values"]
    adapters = [next(place.glob(".tunesmith/stages/*/adapter/adapter_model.safetensors")).read_bytes() for place in (folder, finished[0])]
    assert adapters[0] == adapters[1], "training continued to other weights"


def begun(finished: Path, folder: Path, stage: str) -> Path:
    """A copy of the finished project in which that stage, and whatever follows from it, was never done."""
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    _, states, _ = tunesmith(folder, "status", check=0)
    names = [each["name"] for each in states["stages"]]
    first = "evaluate:zero-shot" if stage == "evaluate" else stage
    for each in states["stages"][names.index(first) :]:
        shutil.rmtree(folder / ".tunesmith" / "stages" / each["digest"])
    shutil.rmtree(folder / "report")
    return folder


def run_with_ctrl_c_at(beginning: str) -> None:
    """The run, interrupted by the very line that begins so: from outside, a fast run may be over before a slow test has seen the line."""
    write = sys.stderr.write

    def written(text: str) -> int:
        count = write(text)
        if text.startswith(beginning):
            os.kill(os.getpid(), signal.SIGINT)
        return count

    sys.stderr.write = written
    sys.argv = ["tunesmith", *RUN]
    main()


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_the_next_run_goes_on(finished, tmp_path):
    folder = begun(finished[0], tmp_path, "evaluate")
    process = start(run_with_ctrl_c_at, "evaluate", cwd=folder)
    assert process.wait() == 130, process.err
    assert "run again to continue" in process.err
    assert "Traceback" not in process.err
    _, states, _ = tunesmith(folder, "status", check=0)
    assert [stage["state"] for stage in states["stages"]][:3] == ["done"] * 3


def run_with_little_room() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    sys.argv = ["tunesmith", "run"]
    main()


@pytest.mark.slow
def test_a_full_disk_is_one_clear_message_and_nothing_is_lost(base, tmp_path):
    folder, rng = project(tmp_path, base), random.Random(0)
    long = [
        {"messages": [{"role": "user", "content": rng.randbytes(8000).hex()}, {"role": "assistant", "content": "a"}]} for _ in range(140)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))

    process = start(run_with_little_room, cwd=folder)
    assert process.wait() == 1
    assert "free" in process.err
    assert "Traceback" not in process.err
    assert not list(folder.glob(".tunesmith/stages/*/rows.parquet")), "nothing half-written looks finished"
    _, states, _ = tunesmith(folder, "status", check=0)
    assert {stage["state"] for stage in states["stages"]} <= {"started", "waiting"}


@pytest.mark.slow
def test_a_gate_that_says_no_exits_with_3_and_deploys_nothing(finished):
    folder, _, _ = finished
    before = deployments(folder)
    code, result, _ = tunesmith(folder, *RUN, "--gate.margin", "0.999", "--deploy.alias", "never")
    assert code == 3
    assert result["decision"] in ("block", "cannot tell")
    assert deployments(folder) == before
    assert "never" not in before
    passing = [*RUN, "--gate.superior", "false", "--gate.margin", "1.0", "--deploy.alias", "always"]
    code, result, _ = tunesmith(folder, *passing)
    assert (code, result["decision"]) == (0, "pass")
    after = deployments(folder)
    assert after.pop("always") == 1
    assert after == before
    tunesmith(folder, *passing, check=0)
    assert deployments(folder)["always"] == 1, "the same model is not deployed again"
    code, _, said = tunesmith(folder, *RUN, "--gate.margin", "-1.0")
    assert (code, "superior: false with margin 1 tolerates" in said) == (2, True)


def deployments(folder: Path) -> dict[str, int]:
    """How many versions each alias has."""
    store = Store.open(folder / ".tunesmith")
    found = {alias: len(Deployments(store).history(alias)) for alias in Deployments(store).in_force()}
    store.close()
    return found


@pytest.mark.slow
def test_what_a_run_was_made_with_is_found_by_the_commands_that_look_at_it(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    tunesmith(folder, *RUN, check=finished[1])

    def states(*words):
        _, found, _ = tunesmith(folder, "status", *words, check=0)
        return {stage["name"]: stage["state"] for stage in found["stages"]}, found

    done, found = states()
    assert set(done.values()) == {"done"}
    assert (found["plan"]["overrides"], found["plan"]["changed"], found["next"]) == (["--train.seed=1"], [], None)
    assert "with --train.seed=1" in found["plan"]["text"]
    written, found = states("--as-written")
    assert (written["split"], written["train"], found["next"]) == ("done", "waiting", "tunesmith run")
    given, found = states("--train.seed", "7")
    assert (given["train"], found["next"]) == ("waiting", "tunesmith run --train.seed=7")
    _, gate, _ = tunesmith(folder, "gate", "run:zero-shot", "run:tuned", "--superior", "--margin", "0", check=finished[1])
    assert gate["plan"]["run"] == states()[1]["plan"]["run"]
    _, shown, _ = tunesmith(folder, "report", "run:zero-shot", "run:tuned", "--out", "shown", check=0)
    assert shown["comparisons"][0]["b"] == "tuned"
    code, refused, _ = tunesmith(folder, "gate", "run:zero-shot", "run:tuned", "--as-written")
    assert (code, "no finished arm 'tuned'" in refused["error"]["message"]) == (2, True)

    file = folder / "tunesmith.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    changed, found = states()
    assert set(changed.values()) == {"done"}, "what was run is there still"
    assert found["plan"]["changed"][0] == "train"
    assert "split" not in found["plan"]["changed"]
    assert "tunesmith.yaml or its rows have changed since" in found["plan"]["text"]
    assert tunesmith(folder, "gate", "run:zero-shot", "run:tuned", "--superior", "--margin", "0")[0] == finished[1]


@pytest.mark.slow
def test_secrets_among_a_runs_words_are_kept_nowhere(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    secret = "whsec_c2VjcmV0IG9mIHRoaXMgcnVu"
    tunesmith(folder, *RUN, "--serve.webhooks", f'[{{url: "http://127.0.0.1:9", secret: {secret}}}]', "--deploy.alias", "other")
    _, found, _ = tunesmith(folder, "status", check=0)
    assert found["plan"]["overrides"] == ["--train.seed=1", "--deploy.alias=other"]
    holding = [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holding == []


@pytest.mark.slow
def test_training_alone_is_remembered_too_and_a_whole_run_is_still_found(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    tunesmith(folder, *RUN, check=finished[1])
    tunesmith(folder, "train", "--train.seed", "2", "--train.epochs", "1", check=0)
    _, found, _ = tunesmith(folder, "status", check=0)
    states = {stage["name"]: stage["state"] for stage in found["stages"]}
    assert (states["train"], states["evaluate:tuned"]) == ("done", "waiting")
    assert found["next"] == "tunesmith run --train.seed=2 --train.epochs=1"
    code, gate, _ = tunesmith(folder, "gate", "run:zero-shot", "run:tuned", "--superior", "--margin", "0")
    assert (code, gate["plan"]["overrides"]) == (finished[1], ["--train.seed=1"])


@pytest.mark.slow
def test_run_gate_report_and_junit_say_the_same(finished):
    folder, code, _ = finished
    _, result, _ = tunesmith(folder, *RUN, check=code)  # puts this run's report in place
    report = json.loads((folder / "report" / "report.json").read_text())
    words = ("gate", f"run:{report['best_baseline']}", "run:tuned", "--superior", "--margin", "0", "--junit", "gate.xml")
    again, gate, _ = tunesmith(folder, *words)
    (line,) = gate["lines"]
    assert again == code
    assert {**report["gate"], **line} == report["gate"]
    assert (report["gate"]["superior"], report["gate"]["margin"]) == (True, 0.0)
    assert result["verdict"] == report["verdict"]
    assert report["verdict"].endswith(f"Gate: {line['decision']}, {line['reason']}.")
    failures = ElementTree.parse(folder / "gate.xml").getroot().findall("./testcase/failure")
    assert [failure.attrib["message"] for failure in failures] == ([line["sentence"]] if code else [])
    assert f'class="verdict {line["decision"].replace(" ", "-")}"' in (folder / "report" / "report.html").read_text()


@pytest.mark.slow
def test_train_alone_proves_that_it_can_learn_and_estimates_first(base, tmp_path):
    folder = project(tmp_path, base)
    _, found, _ = tunesmith(folder, "estimate", "--train.epochs", "2", check=0)
    assert found["epochs"] == 2
    assert found["memory_bytes"] > 0
    _, proof, _ = tunesmith(folder, "train", "--overfit", "4", check=0)
    assert proof["train_loss"] < 0.1
    code, _, said = tunesmith(folder, "train", "--overfit", "4", "--train.learning_rate", "1e-9")
    assert code == 1
    assert "data mask" in said
    _, first, _ = tunesmith(folder, "train", check=0)
    _, again, _ = tunesmith(folder, "train", check=0)
    assert (first["cached"], again["cached"]) == (False, True)
    _, anew, _ = tunesmith(folder, "train", "--fresh", check=0)
    assert not anew["cached"]
    assert anew["train_loss"] == first["train_loss"]
