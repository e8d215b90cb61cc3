"""What a run's report answers beyond the numbers, on a whole tiny circle: where not, what broke, what next."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import tiny
from test_run import project
from tunesmith.cli import app
from tunesmith.cli.shared import guarded
from tunesmith.core.progress import Silent
from tunesmith.core.types import Score
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.slices import Slice
from tunesmith.flow.evaluation.findings import _gained, _lost, findings, findings_html
from tunesmith.flow.evaluation.results import arm_evaluations
from tunesmith.flow.pipeline.run import opened
from tunesmith.flow.project import load_project


def unserved(*_):
    raise AssertionError("nothing is served here")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = project(tmp_path_factory.mktemp("findings"), tiny.model(tmp_path_factory.mktemp("base")))
    with opened(load_project(folder / "tunesmith.yaml"), folder, Silent(), unserved) as found:
        found.runner.run("compare")
        yield found


@pytest.mark.slow
def test_before_regression_it_is_said_to_be_unmeasured(context):
    if context.runner.peek("regression") is None:
        found = findings(context)
        assert found["regression"] is None
        assert found["answers"]["what broke"] == "not measured."


@pytest.mark.slow
def test_six_questions_have_answers(context):
    output = context.runner.run("regression").output
    assert len(output["abilities"]) == 6
    together = output["together"]
    assert together["low"] <= together["difference"] <= together["high"]
    assert sum(one["difference"]["n"] for one in output["abilities"]) == together["rows"] <= 120
    found = findings(context)
    assert list(found["answers"]) == ["better", "by how much", "sure", "where not", "what broke", "what next"]
    assert "interval" in found["answers"]["sure"]
    sides = found["lost"] if together["difference"] < 0 else found["gained"]
    assert together["difference"] == 0 or any(line.startswith("general abilities") for line in sides)
    tested = [line for line in found["slices"] if line["difference"]]
    assert all(line["p_adjusted"] is not None for line in tested)
    assert found["slices_tested"] >= len(tested)
    rows = {row.id for row in context.rows("test")}
    assert {i for group in found["failures"] for i in group["ids"]} <= rows
    if found["failures"]:
        assert sum(group["collect"] for group in found["failures"]) <= 1 + 1e-9
        assert found["failures"][0]["example"]["nearest"]
    assert len(found["openings"]) == 3  # two baselines and the tuned model
    json.dumps(found)


@pytest.mark.slow
def test_the_part_of_the_report_is_escaped_and_whole(context):
    context.runner.run("regression")
    found = findings(context)
    found["answers"]["better"] = "<script>alert(1)</script>"
    html = findings_html(found)
    for title in ("Six questions", "Where not?", "What broke?", "What next?"):
        assert f"<h2>{title}</h2>" in html
    assert "<script>" not in html
    assert "<svg" in html


def call(context, capsys, *words):
    code = guarded(app, [*words, "--config", str(context.folder / "tunesmith.yaml"), "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_single_evaluations_agree_with_the_run_and_need_no_weights_again(context, capsys):
    base = str(context.base)
    words = ("eval", base, f"{base}+{context.trained}", str(context.trained), "--data", "test")
    code, found = call(context, capsys, *words)
    assert code == 0
    ran = arm_evaluations(context, ["zero-shot", "tuned"])
    wanted = [ran["zero-shot"].values, ran["tuned"].values, ran["tuned"].values]
    assert [one["values"] for one in found["evaluations"]] == wanted
    assert [one["asked"] for one in found["evaluations"]][1:] == [found["evaluations"][0]["asked"], 0]
    openings = [one["opening"] for one in found["evaluations"]]
    assert openings[0] > 3  # the run's own looks are counted too
    assert [one["opening"] for one in call(context, capsys, *words)[1]["evaluations"]] == openings
    program = (
        "import sys; from tunesmith.cli import app\n"
        f"app({[*words, '--config', str(context.folder / 'tunesmith.yaml'), '--json']!r}, standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.slow
def test_arms_of_the_run_are_compared_and_gated(context, capsys):
    code, found = call(context, capsys, "compare", "run:zero-shot", "run:tuned")
    assert code == 0
    assert found["comparison"]["metrics"][0]["difference"]["n"] == len(context.rows("test"))
    code, _ = call(context, capsys, "gate", "run:zero-shot", "run:zero-shot", "--margin", "0.9")
    assert code == 0
    code, told = call(context, capsys, "compare", "run:zero-shot", "run:best")
    assert code == 2
    assert "tuned" in told["error"]["message"]


def test_few_rows_that_fell_from_1_to_0_are_among_what_was_lost():
    base, tuned = [0.0] * 8 + [1.0] * 4, [1.0] * 10 + [0.0] * 2
    one = compare(*([Score(example_id=str(i), metric="m", value=v) for i, v in enumerate(side)] for side in (base, tuned))).metric("m")
    table = [Slice(dimension="label", name="politics", metric="m", n=2, a=1.0, b=0.0)]
    fell = {"together": {"difference": -0.15, "p_value": 0.001, "before": 0.217, "after": 0.058, "rows": 120}}
    gained, lost = _gained(one, table, "higher", fell), _lost(one, table, "higher", fell)
    assert gained[0].startswith("m: 0.333 → 0.833 (+0.500, 95% interval")
    assert lost[0] == "general abilities fell: 0.217 → 0.058 over 120 rows (surely)"
    assert "2 held-out rows answered worse" in lost
    assert "label politics: 1.000 → 0.000 over 2 rows (few rows: not sure)" in lost
