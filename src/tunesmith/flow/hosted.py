"""Training at a provider from the same project: the data stages here, the files checked, counted and priced, one job there, its results
kept. Knows nothing about HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.progress import Progress
from tunesmith.core.rows import Row
from tunesmith.core.tokens import OpenAITokens, openai_encoding
from tunesmith.core.types import Example, digest
from tunesmith.data.export import export
from tunesmith.flow.datasets.tokens import as_example, training_cost
from tunesmith.flow.jobs.request import option_of
from tunesmith.flow.pipeline.rewards import item_of
from tunesmith.flow.pipeline.run import opened
from tunesmith.flow.project import Project
from tunesmith.flow.runner import only_one
from tunesmith.flow.sources import rows as rows_of
from tunesmith.train.methods import METHODS, taken
from tunesmith.train.methods.base import Method
from tunesmith.train.openai_job import Driver, HostedJob, Order
from tunesmith.train.plan import Plan

# Settings of how this machine computes: elsewhere they mean nothing.
_MACHINE = (
    "dtype",
    "threads",
    "lanes",
    "device",
    "pack",
    "share_prefix",
    "micro_batch_tokens",
    "activation_checkpointing",
    "checkpoint_every",
)
LEAST_ROWS = 10
TOKEN_LIMIT = 65_536  # longer rows are cut at their end by the provider, without a word

# Tells what the job will take and returns whether to go on.
Confirm = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Provider:
    """Where to train: an `openai.OpenAI` client and the provider's own base name."""

    client: Any
    model: str
    suffix: str | None = None
    poll_s: float = 10.0


def train_hosted(project: Project, folder: Path, progress: Progress, provider: Provider, confirm: Confirm) -> dict[str, Any]:
    """Prepare, check, price, ask, upload, create exactly one job, follow it, keep its results; a crash continues where it was.

    Raises UsageError for a method or an option that the provider does not have and when `confirm` says no, DataError for rows the provider
    would refuse, TrainingError when the job fails.
    """
    method = _offered(project.train)
    with opened(project, folder, progress) as context, only_one(context.store.folder):
        context.runner.run("split")
        split = context.runner.folder("split")
        rows = {part: taken(project.train.method, rows_of(split, part))[0] for part in ("train", "validation")}
        if len(rows["train"]) < LEAST_ROWS:
            raise DataError(f"{counted(len(rows['train']), 'row')} to train", allowed=f"at least {LEAST_ROWS} at OpenAI", remedy="add rows")
        order = Order(model=provider.model, method=_method(project, method), suffix=provider.suffix)
        work = context.store.layout.hosted(digest(order, context.runner.digests["split"], str(provider.client.base_url), size=8))
        driver = Driver(provider.client, work, lambda event: _tell(progress, event))
        bill = _bill(rows["train"], provider.model, order, method) | {"not_sent": _unsent(project.train, method)}
        if driver.known() is None and not confirm(bill):
            raise UsageError("nothing was sent", remedy="--yes goes on without asking")
        files = {part: work / f"{part}.jsonl" for part in rows}
        for part, path in files.items():
            if not path.exists():
                _write(rows[part], path, method)
        job = driver.run(order, files["train"], files["validation"] if rows["validation"] else None, poll_s=provider.poll_s)
        results = driver.results(job)
        for number, text in enumerate(results):
            write_atomic(work / f"results-{number}.csv", text)
        return _found(job, bill, work, len(results))


def _offered(plan: Plan) -> Method:
    """The plan's method, if it can be asked of a provider. Raises UsageError with the reason why not."""
    method = METHODS[plan.method]
    offered = ", ".join(name for name, known in METHODS.items() if known.job.openai)
    if not method.job.openai:
        what = f"OpenAI's fine-tuning API has no {method.name}"
        raise UsageError(what, where="--backend", allowed=f"method {offered}", remedy="train it here: --backend local")
    there = {path.partition(".")[2] for name, path in method.job.options.items() if name in method.job.shown} | {"grader"}
    given = getattr(plan, method.section) if method.section else None
    plain = getattr(Plan(), method.section) if method.section else None
    own = [name for name in (given.__struct_fields__ if given else ()) if getattr(given, name) != getattr(plain, name)]
    if missing := [name for name in own if name not in there]:
        what = f"OpenAI's {method.job.type} has no {', '.join(missing)}"
        raise UsageError(what, where=f"train.{method.section}", allowed=", ".join(sorted(there)), remedy="train it here: --backend local")
    if method.graded and plan.reinforcement.grader is None:
        raise UsageError(f"method {method.name} has no grader", where="train.reinforcement.grader", remedy="docs/training.md, Rewards")
    return method


def _method(project: Project, method: Method) -> dict[str, Any]:
    """The API's own object for the job's method."""
    kind, plan = method.job.type, project.train
    settings: dict[str, Any] = {"n_epochs": plan.epochs, "batch_size": plan.batch_size, "learning_rate_multiplier": "auto"}
    settings |= {name: option_of(plan, path) for name, path in method.job.options.items() if name in method.job.shown}
    grader = {"grader": plan.reinforcement.grader} if method.graded else {}
    return {"type": kind, kind: {"hyperparameters": settings, **grader}}


def _unsent(plan: Plan, method: Method) -> list[str]:
    """The settings that the plan says and the provider has no place for, besides those of this machine."""
    sent, plain = {"method", "epochs", "batch_size", method.section, *_MACHINE}, Plan()
    return [f"train.{name}" for name in plan.__struct_fields__ if name not in sent and getattr(plan, name) != getattr(plain, name)]


def _write(rows: list[Row], path: Path, method: Method) -> None:
    """The rows as the provider reads them; a grader's rows are prompts with what it may read beside them."""
    if not method.graded:
        export(rows, path, method.job.formats[0], extras=False)
        return
    lines = []
    for row in rows:
        if isinstance(row, Example):
            asked = [msgspec.to_builtins(turn) for turn in row.prompt]
            lines.append(msgspec.json.encode({**item_of(row), "messages": asked}))
    write_atomic(path, b"\n".join(lines) + b"\n")


def _bill(rows: list[Row], model: str, order: Order, method: Method) -> dict[str, Any]:
    """Rows, tokens and price, as far as they can be known here; and how many rows the provider would cut. Reinforcement is billed by the
    hour there."""
    bill: dict[str, Any] = {"model": model, "rows": len(rows)}
    if openai_encoding(model) is None or method.graded:
        return bill | {"tokens": None, "usd": None, "cut": None}
    counts = OpenAITokens(model).rows([as_example(row) for row in rows])
    epochs = order.method[order.method["type"]]["hyperparameters"]["n_epochs"]
    price = training_cost(counts.tolist(), model, epochs if isinstance(epochs, int) else 3)
    return bill | {
        "tokens": int(counts.sum()),
        "cut": int((counts > TOKEN_LIMIT).sum()),
        "usd": price["usd"] if price else None,
        "price": price,
    }


def _tell(progress: Progress, event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind in ("message", "created", "retry", "twin_cancelled"):
        progress.say(f"  {event.get('message') or event.get('error') or event}")
    elif kind == "metrics" and event.get("total_steps"):
        progress.bar("hosted training", event.get("step", 0), event["total_steps"])


def _found(job: HostedJob, bill: dict[str, Any], work: Path, results: int) -> dict[str, Any]:
    return {**msgspec.to_builtins(job), "bill": bill, "folder": str(work), "result_files": results}
