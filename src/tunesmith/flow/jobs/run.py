"""One fine-tuning job from its files to a model: validation, the plan, training, results. Knows nothing about queues or processes.

Everything is told through the job's lease, so a job that was paused, cancelled or taken over ends at its next step; a paused one with a
checkpoint of that step, from which a later worker continues.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core.chat import Renderer
from tunesmith.core.errors import DataError, NotFound, TrainingError, UsageError
from tunesmith.core.model_ref import ModelRef, artifact_ref
from tunesmith.core.rows import Row as DataRow
from tunesmith.flow.jobs.reading import BadFile, folder_of, read_rows
from tunesmith.flow.jobs.report import Reporter, model_name, result_csv, weight_files
from tunesmith.flow.jobs.request import option_of, plan
from tunesmith.flow.jobs.start import anchored
from tunesmith.flow.jobs.trackers import tracked
from tunesmith.flow.pipeline.training_stage import with_teacher
from tunesmith.flow.runner import only_one
from tunesmith.models.catalog import Catalog
from tunesmith.models.resolve import Models
from tunesmith.store.files import Files
from tunesmith.store.jobs import Lease, Stopped
from tunesmith.store.paging import Row
from tunesmith.train.facts import gather
from tunesmith.train.items import Item, apart
from tunesmith.train.methods import JOB_METHODS, METHODS, ready
from tunesmith.train.methods.base import Method
from tunesmith.train.plan import Plan, ResolvedPlan
from tunesmith.train.resolve import resolve
from tunesmith.train.run import Paused, reported
from tunesmith.train.sinks import several


def run_job(lease: Lease, *, threads: int | None = None) -> None:
    """Work on a leased job until it ends. Raises Stopped when it is no longer ours, any other error when the process is at fault."""
    job = lease.read()
    folder = folder_of(lease.store, job["id"])
    with only_one(folder):
        try:
            rows = read_rows(lease.store, job, "training_file")
            validation = read_rows(lease.store, job, "validation_file") if job["validation_file"] else []
        except BadFile as error:
            lease.fail(error.code, error.message, error.param)
            _tidy(folder)
            return
        if job["status"] == "validating_files":
            lease.write([{"key": "validated", "message": "Files validated, moving job to queued state"}], status="queued")
        lease.begin()
        try:
            _train(lease, lease.read(), rows, validation, folder / "run", threads)
        except Paused as paused:
            raise Stopped(str(paused)) from paused
        except (DataError, UsageError, TrainingError) as error:
            lease.fail("training_failed", str(error))
        _tidy(folder)


def _tidy(folder: Path) -> None:
    """Remove the copies of the files once the job has ended."""
    for name in ("training_file", "validation_file"):
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
        (folder / f"{name}.sha256").unlink(missing_ok=True)


def _train(lease: Lease, job: Row, rows: Sequence[DataRow], validation: Sequence[DataRow], out: Path, threads: int | None) -> None:
    from tunesmith.flow.pipeline.rewards import reward_of, tasks_of
    from tunesmith.train.grpo import reinforce
    from tunesmith.train.loop import train

    models = Models(lease.store, Catalog(), project=job["project"])
    try:
        base, _ = models.folders(ModelRef(base=job["base"]))
    except NotFound as error:
        lease.fail("model_not_available", str(error), "model")
        return
    method, renderer, wanted = JOB_METHODS[job["method"]["type"]], Renderer.load(base), _begun(out)
    (asked, converted), (held_out, _) = (ready(method.name, some, renderer) for some in (rows, validation))
    items, valid = method.render(renderer, asked), method.render(renderer, held_out)
    valid, shared = apart(items, valid)
    if wanted is None:
        wanted, shown, more = _planned(job, method, items, base, threads, models)
        wanted = with_teacher(wanted, models.whole)
        lease.write([*_notes(converted, len(shared), len(held_out)), *more], method=shown)
    tell = Reporter(lease, job, out)
    sinks = tracked(job, out.parent / "trackers", lambda words: lease.write([{"key": words[:200], "message": words, "level": "warn"}]))
    work: Callable[..., Any] = partial(train, wanted, items, valid)
    if method.graded:
        reward = reward_of(wanted.reinforcement.grader or {}, models.resolve)
        work = partial(reinforce, wanted, tasks_of(asked, items), reward, tasks_of(held_out, valid))
    result = work(base=base, out=out, on_event=several(tell, *sinks), should_stop=lease.pausing)
    tell.close()
    _finish(lease, job, out, Path(result.artifact), result.trained_tokens)


def _planned(
    job: Row, method: Method, items: Sequence[Item], base: Path, threads: int | None, models: Models
) -> tuple[Plan, dict[str, Any], list[dict[str, Any]]]:
    """The plan of a job that begins, its method with every "auto" as the number that it became, and what is to be said about both."""
    kind = method.job.type
    shown = dict(job["method"][kind]["hyperparameters"])
    fixed: dict[str, Any] = {"seed": job["seed"]}
    fixed |= {name: shown[key] for name, key in (("epochs", "n_epochs"), ("batch_size", "batch_size")) if shown[key] != "auto"}
    if threads is not None:
        fixed["threads"] = threads
    wanted = anchored(plan(method, job["extras"], shown, **fixed), models)
    resolved, _ = resolve(wanted, gather(wanted, method.items(items), base))
    factor = 1.0 if shown["learning_rate_multiplier"] == "auto" else float(shown["learning_rate_multiplier"])
    rate = {"learning_rate": resolved.learning_rate * factor}
    wanted = msgspec.structs.replace(wanted, epochs=resolved.epochs, batch_size=resolved.batch_size, **rate)
    became = {key: option_of(resolved, path) for key, path in method.job.options.items() if key in method.job.shown}
    if method.graded:
        every = resolved.eval_every or -(-len(items) // resolved.batch_size)
        became |= {"compute_multiplier": 1, "eval_interval": every, "eval_samples": resolved.reinforcement.eval_samples}
    shown |= {key: value for key, value in became.items() if shown[key] == "auto"}
    shown |= {"n_epochs": resolved.epochs, "batch_size": resolved.batch_size, "learning_rate_multiplier": factor}
    return wanted, {**job["method"], kind: {**job["method"][kind], "hyperparameters": shown}}, _long_rows(items, resolved)


def _begun(out: Path) -> Plan | None:
    """The plan of a run that began already: it holds, whatever this worker may use."""
    if not (out / "run.json").is_file():
        return None
    return msgspec.convert(json.loads((out / "run.json").read_text("utf-8"))["plan"], Plan)


def _notes(converted: str, shared: int, validation: int) -> list[dict[str, Any]]:
    """What is to be said about the rows: how they were converted; validation rows that are training rows too are left out."""
    notes = [{"key": "converted", "message": converted, "level": "info"}] if converted else []
    if shared:
        message = f"{shared} of {validation} validation rows are training rows too and are left out of validation"
        notes.append({"key": "overlap", "message": message, "level": "warn"})
    return notes


_BECOMES = {"drop": "are left out", "truncate": "are cut", "split": "are split"}


def _long_rows(items: Sequence[Item], resolved: ResolvedPlan) -> list[dict[str, Any]]:
    room = resolved.max_length - METHODS[resolved.method].drawn_tokens(resolved, resolved.max_length)
    long = sum(any(len(row.ids) > room for row in item.rows) for item in items)
    message = f"{long} of {len(items)} training rows are longer than {room} tokens and {_BECOMES[resolved.over_length]}"
    return [{"key": "long", "message": message, "level": "warn"}] if long else []


def _finish(lease: Lease, job: Row, out: Path, artifact: Path, trained_tokens: int) -> None:
    name = model_name(job)
    text = result_csv(reported(out)).encode()
    result = Files(lease.store).prepare(io.BytesIO(text), project=job["project"], filename="step_metrics.csv", purpose="fine-tune-results")
    weights = weight_files(lease.store, job, artifact, "")
    model = artifact_ref(job["base"], artifact, lease.store.folder, made_by=f"job:{job['id']}")
    lease.succeed(name, model, trained_tokens=trained_tokens, results=[result, *weights])
