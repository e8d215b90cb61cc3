"""How long, how much memory, how many tokens, at what price: said before the work, for this machine, a GPU by name, and providers.

Knows no stage's inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.counted import counted
from tunesmith.core.errors import MissingExtra
from tunesmith.flow.context import TUNED
from tunesmith.flow.datasets.tokens import lengths, prices, training_cost
from tunesmith.flow.pipeline.answering_time import answering_seconds
from tunesmith.flow.pipeline.timing import Speeds, in_words, speeds
from tunesmith.flow.pipeline.training_stage import taught
from tunesmith.train import gpus
from tunesmith.train.estimate import RUNTIME_BYTES, Estimate, answering_bytes
from tunesmith.train.estimate import estimate as estimate_training
from tunesmith.train.facts import base_shape
from tunesmith.train.fit import refuse_what_cannot_fit
from tunesmith.train.items import load_items
from tunesmith.train.methods import METHODS

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext

# With an adapter both take longer: its own products come on top, small ones.
_ADAPTER = 2.0
# How much of the allowed length an answer fills where none was seen: an untrained base runs on, one that was shown examples stops early.
_FILLED = {"zero": 0.5, "shots": 0.05}
_LOADING_S, _ASKING_S = 5.0, 40.0
# What the libraries of the data stages keep in the same process.
_DATA_BYTES = 200_000_000
# One row of each ability of the general suite, both models: 12 short answers.
_SUITE_FLOP = 1.05e12


@dataclass(frozen=True)
class OtherMachine:
    """Where a run might go instead: a GPU by name, and what an hour of it costs in US dollars, as far as they are given."""

    gpu: str | None = None
    usd_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.gpu is not None:
            gpus.gpu_of(self.gpu)  # an unknown one is said before any work


@dataclass(frozen=True)
class RunEstimate:
    """Seconds by stage, peak bytes by kind of stage, the training room's own estimate, what training alone takes elsewhere, notes on the
    rows, and what the seconds rest on."""

    seconds: dict[str, float]
    memory: dict[str, int]
    training: Estimate
    gpu: dict[str, Any] | None = None
    hosted: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    basis: str = ""

    def summary(self) -> dict[str, Any]:
        """As plain numbers."""
        training = self.training
        return {
            "seconds": self.seconds,
            "total_s": sum(self.seconds.values()),
            "basis": self.basis,
            "epochs": training.plan.epochs,
            "steps": training.steps,
            "tokens": training.tokens,
            "computed_tokens": training.computed_tokens,
            "trained_tokens": training.trained_tokens,
            "memory_bytes": max(self.memory.values()),
            "memory_by_stage": self.memory,
            "available_bytes": training.available_bytes,
            "route": training.route,
            "route_why": training.route_why,
            "trainable_parameters": training.trainable_parameters,
            "gpu": self.gpu,
            "hosted": list(self.hosted),
            "notes": list(self.notes),
            "plan": msgspec.to_builtins(training.plan),
            "reasons": msgspec.to_builtins(training.reasons),
        }

    def text(self) -> str:
        """In words."""
        training = self.training
        parts = [f"{name} {in_words(seconds)}" for name, seconds in self.seconds.items() if seconds >= 1]
        lines = [
            f"this will take about {in_words(sum(self.seconds.values()))} on this machine: {', '.join(parts) or 'nothing long'}",
            f"({self.basis})",
            f"training: {counted(training.steps, 'step')} in {counted(training.plan.epochs, 'epoch')}, {training.tokens:,} tokens "
            f"({training.computed_tokens:,} after packing, {training.trained_tokens:,} with loss)",
            f"route {training.route or 'not yet known, the fused one assumed'}: {training.route_why}",
            f"memory at the peak: about {', '.join(f'{size / 2**30:.1f} GiB to {name}' for name, size in self.memory.items())}",
        ]
        if self.gpu is not None:
            price = "" if self.gpu["usd"] is None else f", {self.gpu['usd']:.2f} USD"
            time, size = in_words(self.gpu["seconds"]), self.gpu["memory_bytes"] / 2**30
            lines.append(
                f"training on one {self.gpu['name']}: about {time}{price}, {size:.1f} GiB"
                f" (assumed, not measured: {self.gpu['assumed_share']:.0%} of the data sheet's rate)"
            )
        if self.hosted:
            offers = ", ".join(f"{offer['model']} {offer['usd']:.2f} USD" for offer in self.hosted)
            lines.append(f"training at OpenAI, list prices of {self.hosted[0]['as_of']}: {offers}")
        return "\n".join(lines)


def estimate(context: ProjectContext, waiting: Sequence[str], elsewhere: OtherMachine | None = None) -> RunEstimate:
    """The estimate for the stages that wait; the data stages must be done.

    Raises TrainingError with changes of the plan that would fit, when training cannot fit where it is asked for.
    """
    folder = context.runner.folder("tokens")
    rows, validation = load_items(folder / "train.npz"), load_items(folder / "validation.npz")
    training = estimate_training(taught(context), rows, validation, base=context.base)
    gpu = None
    if elsewhere is None or elsewhere.gpu is None:
        refuse_what_cannot_fit(training, base=context.base)
    else:
        gpu = _on_gpu(training, elsewhere.gpu, elsewhere.usd_per_hour, context.base)
    seconds = _by_stage(context, waiting, training, Speeds())
    timed = speeds(context, training, sum(seconds.values())) if gpu is None else Speeds()
    seconds = _by_stage(context, waiting, training, timed)
    offers = _offers(context, training.plan.epochs) if elsewhere is not None else ()
    return RunEstimate(seconds, _memory(context, training), training, gpu, offers, rows_notes(context), timed.basis)


def _by_stage(context: ProjectContext, waiting: Sequence[str], training: Estimate, speed: Speeds) -> dict[str, float]:
    """Seconds of each stage that waits and takes long."""
    seconds: dict[str, float] = {}
    if "train" in waiting:
        seconds["train"] = training.fixed_seconds + (training.seconds - training.fixed_seconds) * speed.train
    for name in waiting:
        if name.startswith("evaluate:"):
            arm = name.removeprefix("evaluate:")
            seconds[name] = _LOADING_S + _answering(context, arm, training.rate, speed.filled) * speed.answer
    if "regression" in waiting:
        seconds["regression"] = _LOADING_S + context.project.evaluate.general_rows * _SUITE_FLOP / training.rate * speed.answer
    if "ask" in waiting:
        seconds["ask"] = _ASKING_S
    if "live" in waiting:
        share = context.project.deploy.live_questions / max(1, len(context.rows("test")))
        base = context.project.baselines[0].name
        seconds["live"] = share * sum(_answering(context, arm, training.rate, speed.filled) for arm in (base, TUNED)) / 2 * speed.answer
    return seconds


def rows_notes(context: ProjectContext) -> tuple[str, ...]:
    """What became of the rows on their way to the method that is not plain: how they were converted."""
    converted = context.runner.run("tokens").output.get("converted")
    return (converted,) if converted else ()


def _memory(context: ProjectContext, training: Estimate) -> dict[str, int]:
    """Peak bytes of the process while it trains, and while it answers: one model at a time, over what the data stages leave behind."""
    size = 2 if training.plan.dtype == "bfloat16" else 4
    config, tokens = base_shape(context.base), context.runner.run("tokens").output
    length = tokens["train"]["longest"] + context.sampling().max_tokens
    answers = answering_bytes(config, size, context.project.evaluate.batch_size, length)
    evaluating = RUNTIME_BYTES["cpu"] + size * int(config["parameters"]) + answers
    left = _DATA_BYTES if training.plan.device == "cpu" else 0
    return {"train": training.memory.total + left, "evaluate": evaluating + left}


def _on_gpu(training: Estimate, name: str, usd_per_hour: float | None, base: Path) -> dict[str, Any]:
    there = gpus.on_gpu(training, name, base=base)
    gpus.refuse_what_cannot_fit(training, there, base=base)
    return {
        "name": there.name,
        "dtype": there.plan.dtype,
        "seconds": there.seconds,
        "usd": None if usd_per_hour is None else usd_per_hour * there.seconds / 3600,
        "memory_bytes": there.memory.total,
        "usable_bytes": there.usable_bytes,
        "assumed_share": there.assumed_share,
        "source": f"{there.source}, {there.collected}",
    }


def _offers(context: ProjectContext, epochs: int) -> tuple[dict[str, Any], ...]:
    """What the same rows cost at OpenAI, the cheapest first; nothing without the tokenizer or for a method that is not offered there."""
    method = METHODS[context.project.train.method]
    if not method.job.openai or method.graded:  # reinforcement is billed by the hour there
        return ()
    rows = context.rows("train")
    try:
        offers = [training_cost(lengths(rows, model, context.catalog.model)[0], model, epochs) for model in prices().models]
    except MissingExtra:
        return ()
    return tuple(sorted((offer for offer in offers if offer is not None), key=lambda offer: float(offer["usd"])))


def _answering(context: ProjectContext, arm: str, rate: float, filled: float | None) -> float:
    """Seconds to answer the held-out rows by formula. `filled`: what share of it the base's took."""
    tokens = context.runner.run("tokens").output
    rows, count = max(1, len(tokens["lengths"])), len(context.rows("test"))
    shots = next((baseline.shots for baseline in context.project.baselines if baseline.name == arm), 0)
    if arm == TUNED:
        written, factor = tokens["train"]["trained"] / rows or float(tokens["longest_answer"]), _ADAPTER
    else:
        usual = _FILLED["shots" if shots else "zero"]
        share = usual if filled is None else filled if not shots else min(usual, filled)
        written, factor = context.sampling().max_tokens * share, 1.0
    return factor * answering_seconds(context, rate, read=count * tokens["train"]["tokens"] / rows, rows=count, written=count * written)
