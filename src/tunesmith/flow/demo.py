"""The capstone: an ordinary project on real data, written down and run; knows nothing that `tunesmith run` does not."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.core.progress import Progress
from tunesmith.flow.pipeline.run import RunCommand, RunOutcome, run_pipeline
from tunesmith.flow.project import load_project
from tunesmith.flow.temporary_server import Server

# What --quick changes, and how the report says so.
QUICK = (
    ("--split.test", "0.6", "rows to train: about 360 instead of 750"),
    ("--split.at_least_train", "300", ""),
    ("--train.epochs", "1", "one training epoch instead of the plan's own number"),
    ("--evaluate.limit", "48", "48 of the held-out rows, so intervals are wider"),
    ("--evaluate.max_tokens", "64", "answers of at most 64 tokens"),
    ("--evaluate.general_rows", "8", "8 rows of each general ability instead of 20"),
    ("--deploy.questions", "1", "one question through the server instead of five"),
    ("--deploy.live_questions", "64", "64 questions asked while the model goes live instead of 96"),
)


def run_demo(folder: Path, *, quick: bool, progress: Progress, server: Server) -> RunOutcome:
    """Write `tunesmith.yaml` into `folder` (kept when it is there) and walk its circle."""
    file = folder / "tunesmith.yaml"
    if not file.exists():
        write_atomic(file, resources.files("tunesmith.flow").joinpath("demo.yaml").read_text("utf-8"))
    overrides = [word for key, value, _ in QUICK for word in (key, value)] if quick else []
    progress.say(f"the demo is an ordinary project: {file}")
    left_out = tuple(words for _, _, words in QUICK if words) if quick else ()
    made = RunCommand("tunesmith demo --quick" if quick else "tunesmith demo", tuple(overrides))
    return run_pipeline(load_project(file, overrides), folder.resolve(), progress, server, made=made, left_out=left_out)
