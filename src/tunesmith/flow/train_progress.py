"""What training reports, in words for a person: a bar for the steps, a line for whatever should stay. Knows nothing about arithmetic."""

from __future__ import annotations

from typing import Any

from tunesmith.core.counted import counted
from tunesmith.core.progress import Progress

# What methods that compare answers measure besides the loss.
_COMPARED = ("reward_accuracy", "reward_margin")


class TrainProgress:
    """An `on_event` that tells a person; it remembers the last step, of which an evaluation's line speaks too."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.step: dict[str, Any] | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        """Tell one event, or nothing where it is of no interest."""
        if event["event"] == "step":
            self.step = event
            self.progress.bar("train", event["step"], event["total_steps"])
        elif line := self._line(event):
            self.progress.say(f"  {line}")

    def _line(self, event: dict[str, Any]) -> str:
        match event["event"]:
            case "start":
                return "\n  ".join(_start(event))
            case "evaluation":
                return f"step {event['step']} of {event['total_steps']}: " + "; ".join(
                    filter(None, (_trained(self.step), _held_out(event)))
                )
            case "fell_back":
                where = f"back to step {event['step']}, at {event['rate_factor']:g} of the learning rate"
                return f"step {event['failed_step']} went wrong ({event['why']}): {where}"
            case "spike":
                return f"step {event['step']}: the loss jumped to {event['train_loss']:.3f}, and no recovery is left"
            case "grading_failed":
                return f"step {event['step']}: {counted(event['count'], 'answer')} could not be graded: {event['why']}"
            case "checkpoint_failed":
                return f"step {event['step']}: {event['error']}; the run goes on"
            case "early_stopped":
                return f"stopped at step {event['step']} of {event['total_steps']}: no better since step {event['best_step']}"
            case "best_restored":
                return f"the weights of step {event['best_step']} are kept, the best of this run"
        return ""


def _start(event: dict[str, Any]) -> list[str]:
    """Where a run begins, on which route and why, and what of the model its adapter leaves out."""
    lines = [f"continuing at step {event['step']} of {event['total_steps']}"] if event["step"] else []
    if event.get("route"):
        lines.append(f"route {event['route']}: {event['route_why']}")
    return lines + [event[key] for key in ("unreached", "untried") if event.get(key)]


def _trained(step: dict[str, Any] | None) -> str:
    """The last step: loss, accuracy, speed, time left; as far as the method reports them."""
    if step is None:
        return ""
    parts = [f"training loss {step['train_loss']:.3f}"] if "train_loss" in step else []
    if "train_token_accuracy" in step:
        parts.append(f"{step['train_token_accuracy']:.0%} of the tokens right")
    if "train_reward_accuracy" in step:
        parts.append(f"{step['train_reward_accuracy']:.0%} of the pairs right")
    if "tokens_per_s" in step:
        share = f" ({step['limit_share']:.0%} of the machine's limit)" if "limit_share" in step else ""
        parts.append(f"{step['tokens_per_s']:,.0f} tokens/s{share}")
    if left := step.get("seconds_left"):
        parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
    return ", ".join(parts)


def _held_out(event: dict[str, Any]) -> str:
    """What the evaluation found: reward, or loss with what else the method measures, and the task's metric where it was measured."""
    if "valid_loss" not in event:
        return f"held-out reward {event['valid_reward']:.3f}" if "valid_reward" in event else "no held-out reward"
    value = event.get(f"valid_{event.get('metric')}")
    parts = [f"validation loss {event['valid_loss']:.3f}"]
    parts += [f"{name.replace('_', ' ')} {event[f'valid_{name}']:.3f}" for name in _COMPARED if f"valid_{name}" in event]
    return ", ".join(parts if value is None else [*parts, f"{event['metric']} {value:.3f}"])
