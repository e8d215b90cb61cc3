"""The training stage of the circle: rendered rows in, a tested adapter out, told as it goes. Knows nothing about arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.flow.datasets.prepare import load_rendered
from tunesmith.flow.stages import Output

if TYPE_CHECKING:
    from tunesmith.flow.circle import Circle


def train_rows(circle: Circle, work: Path) -> Output:
    """Train as the plan says; an interrupted run in `work` continues. Returns the result, the resolved plan and its reasons."""
    from tunesmith.train.loop import train

    tokens = circle.runner.folder("tokens")
    rows, validation = load_rendered(tokens / "train.npz"), load_rendered(tokens / "validation.npz")
    result = train(circle.project.train, rows, validation, base=circle.base, out=work, on_event=lambda event: _tell(circle, event))
    manifest = json.loads((work / "run.json").read_text("utf-8"))
    return {
        **{key: value for key, value in msgspec.to_builtins(result).items() if key != "artifact"},
        "plan": manifest["resolved"],
        "reasons": manifest["reasons"],
        "environment": manifest["environment"],
    }


def _tell(circle: Circle, event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind == "step":
        circle.progress.bar("train", event["step"], event["total_steps"])
    elif kind == "evaluation":
        circle.progress.say(f"  step {event['step']}: validation loss {event['valid_loss']:.3f} nats per trained token")
    elif kind == "start" and event["step"]:
        circle.progress.say(f"  continuing at step {event['step']} of {event['total_steps']}")


def events(folder: Path) -> list[dict[str, Any]]:
    """Everything that a finished run reported."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
