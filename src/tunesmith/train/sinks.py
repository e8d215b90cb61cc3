"""Events to TensorBoard, MLflow or Weights & Biases, where those are installed. Knows nothing about training, and needs none of them.

Each function gives a callable for `on_event`; `several` joins them. A run that fell back reports its repeated steps again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.errors import MissingExtra
from tunesmith.train.run import OnEvent

_SETTINGS = ("method", "epochs", "learning_rate", "batch_size", "max_length", "schedule", "seed", "dtype")


def figures(event: dict[str, Any]) -> dict[str, float]:
    """The numbers of a step or an evaluation by name; nothing for any other event."""
    if event["event"] not in ("step", "evaluation"):
        return {}
    return {key: float(value) for key, value in event.items() if isinstance(value, int | float) and key not in ("step", "total_steps")}


def settings(event: dict[str, Any]) -> dict[str, Any]:
    """The main settings of the plan that a start reports, with the adapter's rank."""
    plan = event["plan"]
    return {key: plan[key] for key in _SETTINGS if key in plan} | {"adapter": str(plan.get("adapter", {}))}


def several(*sinks: OnEvent) -> OnEvent:
    """One callable that passes each event to all."""

    def on_event(event: dict[str, Any]) -> None:
        for sink in sinks:
            sink(event)

    return on_event


def trackers(names: Sequence[str], *, project: str, folder: Path) -> OnEvent:
    """The trackers of those names as one callable; their files go to `folder`, their runs under the project's name. Raises MissingExtra."""
    known: dict[str, Callable[[], OnEvent]] = {
        "tensorboard": lambda: tensorboard(folder / "tensorboard"),
        "mlflow": lambda: mlflow(project),
        "wandb": lambda: wandb(project, dir=str(folder)),
    }
    for name in names:
        _installed(name)  # all of them before the first one opens anything
        folder.mkdir(parents=True, exist_ok=True)
    return several(*(known[name]() for name in names))


def tensorboard(folder: Path) -> OnEvent:
    """Scalars under their own names, written to `folder`. Raises MissingExtra."""
    _installed("tensorboard")
    writer = _installed("torch.utils.tensorboard").SummaryWriter(str(folder))

    def on_event(event: dict[str, Any]) -> None:
        for name, value in figures(event).items():
            writer.add_scalar(name, value, event["step"])
        if event["event"] in ("finished", "paused"):
            writer.close()

    return on_event


def mlflow(experiment: str, *, address: str | None = None) -> OnEvent:
    """Metrics and the plan's settings in a new MLflow run; `address` as `set_tracking_uri` takes it. Raises MissingExtra."""
    client = _installed("mlflow")
    if address is not None:
        client.set_tracking_uri(address)
    client.set_experiment(experiment)
    client.start_run()

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            client.log_params(settings(event))
        if numbers := figures(event):
            client.log_metrics(numbers, step=event["step"])
        if event["event"] in ("finished", "paused"):
            client.end_run()

    return on_event


def wandb(project: str, **options: Any) -> OnEvent:
    """Metrics and the plan's settings in a new W&B run; `options` go to `wandb.init` (mode, dir, name). Raises MissingExtra."""
    run = _installed("wandb").init(project=project, **options)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            run.config.update(settings(event), allow_val_change=True)
        if numbers := figures(event):
            run.log(numbers, step=event["step"])
        if event["event"] in ("finished", "paused"):
            run.finish()

    return on_event


def _installed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"the package '{error.name}' is not installed", remedy=f"pip install {error.name}") from error
