"""Estimates that this machine corrects: timed before a long run, corrected by what stages take, printed beside the real time."""

from __future__ import annotations

import json
import os

import pytest

import tiny
from tunesmith.core.progress import Silent
from tunesmith.flow.pipeline import timing
from tunesmith.flow.pipeline.estimate import estimate
from tunesmith.flow.pipeline.run import opened
from tunesmith.flow.pipeline.timing import Expected
from tunesmith.flow.project import load_project

YAML = """
name: timed
sources: [{path: rows.jsonl}]
split: {validation: 0.1, test: 0.2}
base: ./base
train: {epochs: 2, dtype: float32, threads: 1, adapter: {r: 4}}
baselines: [{name: zero-shot}, {name: few-shot, shots: 2}]
evaluate: {metrics: [exact_match], max_tokens: 8}
"""


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "user_folder", lambda: tmp_path / "user")
    tiny.model(tmp_path / "base", context=128)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"bank {i} agreement {i * 7 % 31}"},
                {"role": "assistant", "content": "yes" if i % 2 else "no"},
            ]
        }
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tunesmith.yaml").write_text(YAML)
    return tmp_path


def estimated(folder):
    heard = Heard()
    with opened(load_project(folder / "tunesmith.yaml"), folder, heard) as context:
        for name in ("collect", "split", "tokens"):
            context.runner.run(name)
        return estimate(context, ["evaluate:zero-shot", "evaluate:few-shot", "train", "evaluate:tuned"]), heard.lines


@pytest.mark.slow
def test_a_short_run_is_estimated_by_formula_alone(folder):
    found, lines = estimated(folder)
    assert "by formula" in found.text()
    assert not any("timing" in line for line in lines)


@pytest.mark.slow
def test_a_long_run_is_timed_at_its_own_work_once(folder, monkeypatch):
    by_formula, _ = estimated(folder)
    monkeypatch.setattr(timing, "LONG_S", 0.0)
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    timed, lines = estimated(folder)
    assert any("timing one training step" in line for line in lines)
    speeds = next((folder / "user" / "speeds").glob("*.json"))
    kept = json.loads(speeds.read_text())
    assert f"training takes {kept['train']:.2g} ×" in timed.summary()["basis"]
    fixed = timed.training.fixed_seconds
    assert timed.seconds["train"] - fixed == pytest.approx((timed.training.seconds - fixed) * kept["train"])
    assert by_formula.seconds.keys() == timed.seconds.keys()
    again, lines = estimated(folder)
    assert not any("timing" in line for line in lines)
    assert again.summary()["basis"] == timed.summary()["basis"]
    monkeypatch.setattr("os.getloadavg", lambda: (8.0 * (os.cpu_count() or 1), 0.0, 0.0))
    assert any("timing" in line for line in estimated(folder)[1]), "what was timed on an idle machine says nothing of a busy one"


def test_a_stage_that_took_longer_corrects_its_like_aloud():
    expected = Expected({"evaluate:zero-shot": 40.0, "evaluate:few-shot": 20.0, "train": 100.0, "evaluate:tuned": 30.0})
    sentence = expected.took("evaluate:zero-shot", 160.0)
    assert "evaluate:zero-shot took 3 min, 40 s were estimated" in sentence
    assert expected.seconds == {"evaluate:few-shot": 80.0, "train": 100.0, "evaluate:tuned": 30.0}
    assert "rest takes about 4 min" in sentence
    assert not expected.took("evaluate:few-shot", 85.0)
    assert not expected.took("train", 120.0)
    assert "estimated" not in expected.took("evaluate:tuned", 300.0)  # nothing is left to correct
    assert expected.estimated_s == 190.0
    assert expected.outcome()["error"] >= 1.0


def test_stages_of_seconds_say_nothing():
    expected = Expected({"evaluate:zero-shot": 1.0, "train": 2.0})
    assert not expected.took("evaluate:zero-shot", 9.0)
    assert expected.seconds == {"train": 2.0}
