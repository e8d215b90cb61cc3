"""Events as trackers want them; the trackers themselves are used where they are installed, and missed with a remedy where not."""

from __future__ import annotations

import importlib.util

import pytest

import tiny
from test_run import project, tunesmith
from train_parts import make_rows, tiny_base, user_plan
from tunesmith.core.errors import MissingExtra
from tunesmith.train import sinks
from tunesmith.train.loop import train


def test_a_tracker_that_is_not_installed_is_named_with_its_remedy(tmp_path):
    absent = 0
    for name, sink in (
        ("tensorboard", lambda: sinks.tensorboard(tmp_path)),
        ("mlflow", lambda: sinks.mlflow("x")),
        ("wandb", lambda: sinks.wandb("x", mode="disabled")),
    ):
        if importlib.util.find_spec(name) is None:
            absent += 1
            with pytest.raises(MissingExtra, match=f"pip install {name}"):
                sink()
    if not absent:
        pytest.skip("all three trackers are installed")


@pytest.mark.slow
def test_several_sinks_see_every_step_as_numbers(tmp_path):
    seen: list[dict] = []
    steps: dict[int, dict[str, float]] = {}
    settings: list[dict] = []

    def numbers(event):
        if event["event"] == "start":
            settings.append(sinks.settings(event))
        if found := sinks.figures(event):
            steps.setdefault(event["step"], {}).update(found)

    base = tiny_base(tmp_path / "base")
    result = train(
        user_plan(epochs=1),
        make_rows(8),
        make_rows(2, seed=4),
        base=base,
        out=tmp_path / "out",
        on_event=sinks.several(seen.append, numbers),
    )
    assert [e["event"] for e in seen][-1] == "finished"
    assert sorted(steps) == [0, 1, 2]
    assert steps[2]["valid_loss"] == result.valid_loss
    assert {"train_loss", "learning_rate", "grad_norm", "tokens_per_s"} <= steps[1].keys()
    assert all(isinstance(value, float) for found in steps.values() for value in found.values())
    assert settings[0]["learning_rate"] == 5e-3


@pytest.mark.slow
def test_tensorboard_reads_back_what_was_reported(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sink = sinks.tensorboard(tmp_path)
    sink({"event": "step", "step": 3, "total_steps": 9, "train_loss": 1.5})
    sink({"event": "finished", "step": 3})
    stored = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in stored.Scalars("train_loss")] == [(3, 1.5)]


def report_to(sink):
    sink({"event": "start", "step": 0, "plan": {"learning_rate": 0.25, "adapter": {"r": 4}}})
    sink({"event": "step", "step": 3, "total_steps": 9, "train_loss": 1.5})
    sink({"event": "finished", "step": 3})


@pytest.mark.slow
def test_mlflow_reads_back_what_was_reported(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    address = f"sqlite:///{tmp_path}/runs.db"
    report_to(sinks.mlflow("tried", address=address))
    client = mlflow.MlflowClient(address)
    (run,) = client.search_runs([client.get_experiment_by_name("tried").experiment_id])
    assert run.data.metrics == {"train_loss": 1.5}
    assert run.data.params["learning_rate"] == "0.25"
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_wandb_keeps_what_was_reported(tmp_path):
    pytest.importorskip("wandb")
    report_to(sinks.wandb("tried", mode="offline", dir=str(tmp_path)))
    (stored,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train_loss" in stored.read_bytes()


@pytest.mark.slow
def test_a_project_names_its_trackers_and_they_change_nothing(tmp_path):
    folder = project(tmp_path, tiny.model(tmp_path / "base"))
    apart = ("--split.semantic.action", "off")
    code, _, said = tunesmith(folder, "train", "--trackers", "[tensorbord]", *apart)
    assert code == 2
    assert "tensorbord" in said
    code, _, said = tunesmith(folder, "train", "--trackers", "[tensorboard]", *apart)
    if importlib.util.find_spec("tensorboard") is None:
        assert code == 2
        assert "pip install tensorboard" in said
    else:
        assert code == 0
        assert [*folder.glob(".tunesmith/trackers/tensorboard/*.tfevents.*")]
    _, plain, _ = tunesmith(folder, "train", *apart, check=0)
    assert plain["cached"] == (code == 0)
