"""What a job's run reports, as the job's events, checkpoints and result files. Knows nothing about plans, queues or training.

The run's own folder is the truth: what it holds is repeated into the store under the same keys, which changes nothing.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.atomic import atomic_folder
from tunesmith.core.counted import counted
from tunesmith.core.model_ref import ADAPTER_SETTINGS, MODEL_FOLDER, artifact_ref
from tunesmith.core.seal import checked, seal
from tunesmith.store.files import Files
from tunesmith.store.jobs import Lease
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.train.run import reported

KEPT = 3
_WEIGHTS = (ADAPTER_SETTINGS, "adapter_model.safetensors", "weights.safetensors")  # the last of a run that an earlier version began
_QUIET_S = 0.2  # steps that follow each other faster are written together


class Reporter:
    """Brings what training reports to the store. Raises Stopped when the job is no longer ours."""

    def __init__(self, lease: Lease, job: Row, out: Path) -> None:
        self._lease, self._job, self._out = lease, job, out
        self._waiting: list[dict[str, Any]] = []
        self._written = 0.0
        self._values: dict[str, Any] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start" or event.get("cached"):
            for known in reported(self._out):  # reports that a killed process could not bring to the store
                self._take(known)
        self._take(event)
        if kind != "step" or time.monotonic() - self._written >= _QUIET_S:
            self._flush()
        if kind in ("checkpoint", "start", "paused"):
            self._keep_checkpoints()

    def _take(self, event: dict[str, Any]) -> None:
        kind, step, total = event["event"], event.get("step", 0), event.get("total_steps", 0)
        place = {"step": step, "total_steps": total}
        if kind == "step":
            self._say(f"step:{step}", f"Step {step}/{total}: training {_headline(event, 'train_')}", data=place | _trained(event))
            self._values = {"step": step, "tries": 0, "estimated_finish": time.time() + event["seconds_left"]}
        elif kind == "evaluation":
            self._say(f"valid:{step}", f"Step {step}/{total}: full validation {_headline(event, 'valid_')}", data=place | _valid(event))
        elif kind == "checkpoint_failed":
            self._say(f"no checkpoint:{step}", f"No checkpoint: {event['error']}", level="warn")
        elif kind == "grading_failed":
            message = f"Step {step}: {counted(event['count'], 'answer')} could not be graded and are left out: {event['why']}"
            self._say(f"ungraded:{step}", message, level="warn")
        elif kind == "paused":
            self._values = {"step": step, "estimated_finish": None}

    def _say(self, key: str, message: str, *, data: dict[str, Any] | None = None, level: str = "info") -> None:
        kind = "message" if data is None else "metrics"
        self._waiting.append({"key": key, "message": message, "level": level, "type": kind, "data": data})

    def _flush(self) -> None:
        self._lease.write(self._waiting, pausing=True, **self._values)
        self._waiting, self._values, self._written = [], {}, time.monotonic()

    def close(self) -> None:
        """Write what waits."""
        self._flush()

    def _keep_checkpoints(self) -> None:
        """Register the checkpoints that end an epoch (the last three; where rewards were measured, the best three) and the last pause's."""
        events = reported(self._out)
        steps = {event["step"]: event for event in events if event["event"] == "step"}
        valid = {event["step"]: event for event in events if event["event"] == "evaluation"}
        folders = {int(path.name.rpartition("-")[2]): path for path in (self._out / "checkpoints").glob("checkpoint-*")}
        ends = [step for step in steps.keys() & folders.keys() if float(steps[step]["epoch"]).is_integer()]
        wanted = set(sorted(ends, key=lambda step: (valid.get(step, {}).get("valid_reward", -math.inf), step))[-KEPT:])
        paused = [event["step"] for event in events if event["event"] == "paused"][-1:]
        known = self._lease.checkpoint_steps()
        for step in sorted((wanted | {*paused} & folders.keys()) - known):
            folder = folders[step] if step in wanted else self._apart(folders[step])
            self._keep(step, folder, {"step": step} | _trained(steps[step]) | _valid(valid.get(step)))
        for step in sorted(known - wanted - {*paused}):
            self._forget(step)

    def _apart(self, folder: Path) -> Path:
        """A copy of the weights of a checkpoint that the run will remove as it goes on."""
        copy = self._out.parent / "paused" / folder.name
        if not copy.is_dir():
            with atomic_folder(copy) as work:
                if (folder / MODEL_FOLDER).is_dir():
                    shutil.copytree(folder / MODEL_FOLDER, work / MODEL_FOLDER, copy_function=_copy_checked)
                for name in _WEIGHTS:
                    if (folder / name).is_file():
                        shutil.copyfile(checked(folder / name), work / name)
                seal(work)
        return copy

    def _keep(self, step: int, folder: Path, metrics: dict[str, Any]) -> None:
        store, job = self._lease.store, self._job
        place = folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder
        model = artifact_ref(job["base"], place, store.folder, made_by=f"job:{job['id']}")
        copies, name = weight_files(store, job, place, f"step-{step}-"), f"{model_name(job)}:ckpt-step-{step}"
        answers = model.adapter is not None or place.name == MODEL_FOLDER
        self._lease.keep_checkpoint(step, name, metrics, copies, model if answers else None)

    def _forget(self, step: int) -> None:
        self._lease.forget_checkpoint(step)
        shutil.rmtree(self._out.parent / "paused" / f"checkpoint-{step}", ignore_errors=True)


def _copy_checked(source: str, target: str) -> str:
    return str(shutil.copyfile(checked(Path(source)), target))


# What the loop calls a figure → what the API calls it; the loop's other figures keep their names.
_NAMES = {"token_accuracy": "mean_token_accuracy", "reward": "mean_reward"}


def _headline(event: dict[str, Any], prefix: str) -> str:
    name = "reward" if f"{prefix}reward" in event else "loss"
    return f"{name}={event[prefix + name]:.2f}" if prefix + name in event else "without a reward"


def _figures(event: dict[str, Any], prefix: str) -> dict[str, Any]:
    figures = {key.removeprefix(prefix): value for key, value in event.items() if key.startswith(prefix)}
    return {prefix + _NAMES.get(key, key): value for key, value in figures.items()}


def _trained(event: dict[str, Any]) -> dict[str, Any]:
    return _figures(event, "train_")


def _valid(event: dict[str, Any] | None) -> dict[str, Any]:
    """An evaluation under the API's names. Validation is always over the whole file here, so both pairs have the same values."""
    figures = _figures(event, "valid_") if event else {}
    return figures | {f"full_{key}": value for key, value in figures.items()}


def weight_files(store: Store, job: Row, folder: Path, prefix: str) -> list[dict[str, Any]]:
    """The weights of a folder as files of the API; their rows are for the caller to insert."""
    rows = []
    for path in sorted(folder.iterdir()):
        if path.name in _WEIGHTS or path.name.startswith("model"):
            with path.open("rb") as stream:
                rows.append(Files(store).prepare(stream, project=job["project"], filename=prefix + path.name, purpose="fine-tune-results"))
    return rows


def model_name(job: Row) -> str:
    """`ft:BASE:PROJECT:SUFFIX:8 characters`; of the job alone, so a repeated run gives the same name. No `/` in it. A job that goes on from
    a fine-tuned model has that one's base in its name, as at OpenAI."""
    base = job["model"].split(":")[1] if job["model"].startswith("ft:") else job["model"]
    return f"ft:{base.replace('/', '-')}:{job['project']}:{job['suffix'] or ''}:{job['id'][-8:]}"


# The result file's column → the run's figure.
_COLUMNS = {
    "train_loss": "train_loss",
    "train_accuracy": "train_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_token_accuracy",
}
_REWARD_COLUMNS = {
    "train_reward_mean": "train_reward",
    "valid_reward_mean": "valid_reward",
    "train_loss": "train_loss",
    "train_entropy": "train_entropy",
    "train_kl": "train_kl",
    "train_degenerate": "train_degenerate",
    "train_failed": "train_failed",
}


def result_csv(events: Sequence[dict[str, Any]]) -> str:
    """The result file: one line a step, cells empty where nothing was measured."""
    table: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "step":
            table[event["step"]] = event
        elif event["event"] == "evaluation" and event["step"] in table:
            table[event["step"]] = table[event["step"]] | event
    columns = _REWARD_COLUMNS if any("train_degenerate" in event for event in table.values()) else _COLUMNS
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["step", *columns])
    writer.writerows([step, *(values.get(name, "") for name in columns.values())] for step, values in sorted(table.items()))
    return out.getvalue()
