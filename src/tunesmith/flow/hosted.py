"""Training at a provider from the same project: the data stages here, the files checked, counted and priced, one job there, its results
kept. Knows nothing about HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.progress import Progress
from tunesmith.core.rows import read_parquet
from tunesmith.core.tokens import OpenAITokens, openai_encoding
from tunesmith.core.types import Example, digest
from tunesmith.data.export import export
from tunesmith.flow.datasets.tokens import training_cost
from tunesmith.flow.pipeline.run import opened
from tunesmith.flow.project import Project
from tunesmith.flow.runner import only_one
from tunesmith.train.openai_job import Driver, HostedJob, Order

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

    Raises UsageError when `confirm` says no, DataError for rows the provider would refuse, TrainingError when the job fails.
    """
    with opened(project, folder, progress) as context, only_one(context.store.folder):
        context.runner.run("split")
        split, method = context.runner.folder("split"), "dpo" if project.train.method == "dpo" else "supervised"
        rows = {part: list(read_parquet(split / f"{part}.parquet")) for part in ("train", "validation")}
        if len(rows["train"]) < LEAST_ROWS:
            raise DataError(f"{len(rows['train'])} rows to train", allowed=f"at least {LEAST_ROWS} at OpenAI", remedy="add rows")
        order = Order(
            model=provider.model, method={"type": method, method: {"hyperparameters": _hyperparameters(project)}}, suffix=provider.suffix
        )
        work = context.store.folder / "hosted" / digest(order, context.runner.digests["split"], str(provider.client.base_url), size=8)
        driver = Driver(provider.client, work, lambda event: _tell(progress, event))
        bill = _bill(rows["train"], provider.model, order)
        if driver.known() is None and not confirm(bill):
            raise UsageError("nothing was sent", remedy="--yes goes on without asking")
        files = {part: work / f"{part}.jsonl" for part in rows}
        for part, path in files.items():
            if not path.exists():
                export(rows[part], path, "dpo" if method == "dpo" else "chat", extras=False)
        job = driver.run(order, files["train"], files["validation"] if rows["validation"] else None, poll_s=provider.poll_s)
        results = driver.results(job)
        for number, text in enumerate(results):
            write_atomic(work / f"results-{number}.csv", text)
        return _found(job, bill, work, len(results))


def _hyperparameters(project: Project) -> dict[str, Any]:
    plan = project.train
    found: dict[str, Any] = {"n_epochs": plan.epochs, "batch_size": plan.batch_size, "learning_rate_multiplier": "auto"}
    return {key: value for key, value in found.items() if isinstance(value, int | str)}


def _bill(rows: list[Any], model: str, order: Order) -> dict[str, Any]:
    """Rows, tokens and price, as far as they can be known here; and how many rows the provider would cut."""
    examples = [row if isinstance(row, Example) else Example(id=row.id, messages=(*row.messages, row.preferred)) for row in rows]
    bill: dict[str, Any] = {"model": model, "rows": len(rows)}
    if openai_encoding(model) is None:
        return bill | {"tokens": None, "usd": None, "cut": None}
    counts = OpenAITokens(model).rows(examples)
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
