"""The task's own metric during training: it joins every evaluation, and it, not the loss, decides what is best and when to stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from test_run import project, tunesmith
from train_parts import adapter_bytes, make_rows, tiny_base, user_plan
from tunesmith.core.errors import ConfigError
from tunesmith.train.loop import train
from tunesmith.train.plan import Plan
from tunesmith.train.resolve import check
from tunesmith.train.validation import Measure


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def given(*values, higher=True):
    """A measure that says the values in their order, and the folders that it was shown."""
    left, seen = list(values), []

    def value(folder: Path):
        assert (folder / "adapter_model.safetensors").stat().st_size > 0
        seen.append((folder / "adapter_model.safetensors").read_bytes())
        return left.pop(0)

    return Measure("score", higher, value), seen


def run(base, out, measure, **changes):
    events: list[dict] = []
    plan = user_plan(epochs=4, eval_every=1, batch_size=4, learning_rate=1e-2, **changes)
    result = train(plan, make_rows(4), make_rows(3, seed=5), base=base, out=out, on_event=events.append, measure=measure)
    return result, [e for e in events if e["event"] == "evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize(("values", "higher", "best"), [((0, 0.2, 0.7, 0.3, 0.6), True, 2), ((0, 0.2, 0.7, 0.1, 0.6), False, 3)])
def test_the_metric_decides_which_weights_are_kept(base, tmp_path, values, higher, best):
    measure, seen = given(*values, higher=higher)
    result, evaluations = run(base, tmp_path, measure, keep="best")
    losses = [e["valid_loss"] for e in evaluations[1:]]
    assert losses.index(min(losses)) + 1 != best  # by its loss another one would be best
    assert [e["valid_score"] for e in evaluations] == list(values)
    assert (result.best_step, result.metric, result.valid_metric) == (best, "score", values[best])
    assert result.valid_loss == losses[best - 1]
    assert (Path(result.artifact) / "adapter_model.safetensors").read_bytes() == seen[best]
    assert f"| score on validation rows | {values[best]:.4f} |" in (Path(result.artifact) / "README.md").read_text()
    assert not (tmp_path / "measured").exists()


@pytest.mark.slow
def test_patience_waits_for_the_metric_and_a_missing_value_is_no_gain(base, tmp_path):
    measure, _ = given(0, 0.5, None, float("nan"))
    result, evaluations = run(base, tmp_path, measure, patience=2)
    assert result.early_stopped
    assert (result.steps, result.best_step, result.valid_metric) == (3, 1, 0.5)
    assert [e["valid_score"] for e in evaluations] == [0, 0.5, None, None]


@pytest.mark.slow
def test_a_run_that_was_killed_while_it_measured_goes_on_to_the_same_choice(base, tmp_path):
    whole, _ = run(base, tmp_path / "whole", given(0, 0.2, 0.7, 0.3, 0.6)[0], keep="best")

    class Killed(Exception):
        pass

    def value(_: Path):
        values.append(None)
        if len(values) == 4:
            raise Killed
        return (0, 0.2, 0.7)[len(values) - 1]

    values: list[None] = []
    with pytest.raises(Killed):
        run(base, tmp_path / "out", Measure("score", True, value), keep="best")
    assert (tmp_path / "out" / "measured").is_dir()
    again, _ = run(base, tmp_path / "out", given(0.3, 0.6)[0], keep="best")
    assert again.best_step == whole.best_step
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(tmp_path / "whole")


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="metric_rows needs validation rows and a metric"):
        train(user_plan(metric_rows=4), make_rows(4), make_rows(2, seed=5), base=base, out=tmp_path)
    with pytest.raises(ConfigError, match="metric_rows is -1"):
        check(Plan(metric_rows=-1))
    with pytest.raises(ConfigError, match="metric_rows and method text exclude each other"):
        check(Plan(method="text", metric_rows=4))


@pytest.mark.slow
def test_a_project_trains_by_its_first_metric(tmp_path):
    folder = project(tmp_path, tiny.model(tmp_path / "base"))
    words = ("--train.metric_rows", "6", "--train.keep", "best", "--train.epochs", "2", "--split.semantic.action", "off")
    _, found, _ = tunesmith(folder, "train", *words, check=0)
    assert found["metric"] == "exact_match"
    events = [json.loads(line) for line in (Path(found["artifact"]).parent / "events.jsonl").read_text().splitlines()]
    values = [e["valid_exact_match"] for e in events if e["event"] == "evaluation"]
    assert len(values) == 3
    assert found["valid_metric"] == max(values[1:])
    assert all(round(6 * value) == pytest.approx(6 * value) for value in values)
    _, other, _ = tunesmith(folder, "train", *words, "--evaluate.metrics", "[includes]", check=0)
    assert not other["cached"]
