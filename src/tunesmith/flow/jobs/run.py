"""One fine-tuning job from its files to a model: validation, the plan, training, results. Knows nothing about queues or processes.

Everything is told through the job's lease, so a job that was paused, cancelled or taken over ends at its next step; a paused one with a
checkpoint of that step, from which a later worker continues.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tunesmith.core import types
from tunesmith.core.atomic import atomic_file
from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import DataError, NotFound, TrainingError, UsageError
from tunesmith.core.model_ref import artifact_ref
from tunesmith.core.rows import Row as DataRow
from tunesmith.core.rows import read_lines
from tunesmith.data.formats.objects import load_object
from tunesmith.data.formats.registry import FORMATS, parse_line
from tunesmith.flow.jobs.report import Reporter, model_name, result_csv, weight_files
from tunesmith.flow.jobs.request import PLAN_METHODS, epochs, plan
from tunesmith.flow.runner import only_one
from tunesmith.models.catalog import Catalog
from tunesmith.store.files import Files
from tunesmith.store.jobs import Lease, Stopped
from tunesmith.store.paging import Missing, Row
from tunesmith.store.store import Store
from tunesmith.train.facts import gather
from tunesmith.train.items import as_items
from tunesmith.train.plan import Plan, Preference, ResolvedPlan, resolve
from tunesmith.train.run import Paused, told

TrainRow = Rendered | tuple[Rendered, Rendered]
FEWEST = 10
_ROWS = {"supervised": "chat", "dpo": "dpo", "reinforcement": "rft"}
_SHOWN_FAULTS = 5


class BadFile(Exception):
    """A training or validation file that cannot be used; the words and the code are for the client."""

    def __init__(self, code: str, message: str, param: str) -> None:
        self.code, self.message, self.param = code, message, param
        super().__init__(message)


def folder_of(store: Store, job: str) -> Path:
    """Where the run of a job lies."""
    return store.folder / "jobs" / job


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


def read_rows(store: Store, job: Row, param: str) -> list[DataRow]:
    """The rows of a job's file. Raises BadFile as OpenAI words it: which lines are wrong, which format it is in, how many there must be."""
    kind, number, code = job["method"]["type"], job[param], f"invalid_{param}"
    name, rows, faults, seen = _ROWS[kind], [], [], 0
    try:
        for line in read_lines(_local(store, job, param)):
            seen += 1
            found = parse_line(line.data, name, origin=f"{number}:{line.number}")
            if found.row is None:
                faults.append(f"line {line.number}: {found.faults[0][1]}{_format_of(line.data, name)}")
                if len(faults) > 1000:
                    break
            else:
                rows.append(found.row)
    except DataError as error:
        raise BadFile(code, f"The file cannot be read: {error.what}", param) from error
    if faults:
        shown = "; ".join(faults[:_SHOWN_FAULTS])
        raise BadFile(code, f"The job failed due to an invalid {param.replace('_', ' ')}: {len(faults)} lines. {shown}", param)
    if param == "training_file" and seen < FEWEST:
        raise BadFile("invalid_n_examples", f"Training file has {seen} example(s), but must have at least {FEWEST} examples", param)
    return rows


def _local(store: Store, job: Row, param: str) -> Path:
    """The job's own copy of a file, made when it began: deleting the file does not break a job that is under way."""
    path, source = folder_of(store, job["id"]) / f"{param}.jsonl", Files(store)
    if path.is_file():
        return path
    try:
        source.find(job[param], job["project"])
    except Missing as error:
        raise BadFile(f"invalid_{param}", f"The file {job[param]} does not exist any more", param) from error
    with source.open(job[param]) as stream, atomic_file(path) as local:
        shutil.copyfileobj(stream, local, 1 << 20)
    return path


def _format_of(data: bytes, name: str) -> str:
    row, fault = load_object(data)
    if fault is not None or not isinstance(row, dict):
        return ""
    others = [known for known, form in FORMATS.items() if known != name and form.matches(row)]
    return f" (the line is in the format '{others[0]}', expected '{name}')" if others else ""


def _train(lease: Lease, job: Row, rows: Sequence[DataRow], validation: Sequence[DataRow], out: Path, threads: int | None) -> None:
    from tunesmith.flow.pipeline.rewards import reward_of, tasks_of
    from tunesmith.train.grpo import reinforce
    from tunesmith.train.loop import train

    try:
        base = Catalog().model(job["base"])
    except NotFound as error:
        lease.fail("model_not_available", str(error), "model")
        return
    renderer, wanted = Renderer.load(base), _begun(out)
    render = tasks_of if job["method"]["type"] == "reinforcement" else _render
    ready, held_out, notes = _apart(render(renderer, rows), render(renderer, validation))
    if wanted is None:
        wanted, shown, more = _planned(job, ready, base, threads)
        lease.write(notes + more, method=shown)
    tell = Reporter(lease, job, out)
    work: Callable[..., Any] = train
    if wanted.method == "grpo":
        work = partial(reinforce, reward=reward_of(wanted.reinforcement.grader or {}, Catalog().model))
    result = work(wanted, ready, validation=held_out, base=base, out=out, on_event=tell, should_stop=lease.pausing)
    tell.close()
    _finish(lease, job, out, Path(result.artifact), result.trained_tokens)


def _planned(job: Row, rows: Sequence[Any], base: Path, threads: int | None) -> tuple[Plan, dict[str, Any], list[dict[str, Any]]]:
    """The plan of a job that begins, its method with every "auto" as the number that it became, and what is to be said about both."""
    kind = job["method"]["type"]
    shown = dict(job["method"][kind]["hyperparameters"])
    fixed: dict[str, Any] = {"method": PLAN_METHODS[kind], "seed": job["seed"], "epochs": epochs(shown["n_epochs"], len(rows))}
    if shown["batch_size"] != "auto":
        fixed["batch_size"] = shown["batch_size"]
    if threads is not None:
        fixed["threads"] = threads
    if kind == "dpo":
        shown["beta"] = Preference().beta if shown["beta"] == "auto" else shown["beta"]
        fixed["preference"] = Preference(beta=shown["beta"])
    wanted = plan(job["extras"], **fixed)
    given = [_first(row) for row in rows] if kind == "reinforcement" else rows
    resolved, _ = resolve(wanted, gather(wanted, as_items(wanted.method, given), base))
    factor = 1.0 if shown["learning_rate_multiplier"] == "auto" else float(shown["learning_rate_multiplier"])
    wanted = msgspec.structs.replace(wanted, learning_rate=resolved.learning_rate * factor, batch_size=resolved.batch_size)
    if kind == "reinforcement":
        every = resolved.eval_every or -(-len(rows) // resolved.batch_size)
        found = {"compute_multiplier": 1, "eval_interval": every, "eval_samples": resolved.reinforcement.eval_samples}
        shown |= {key: value for key, value in found.items() if shown[key] == "auto"}
    shown |= {"n_epochs": fixed["epochs"], "batch_size": resolved.batch_size, "learning_rate_multiplier": factor}
    return wanted, {**job["method"], kind: {**job["method"][kind], "hyperparameters": shown}}, _cut_note(rows, resolved)


def _begun(out: Path) -> Plan | None:
    """The plan of a run that began already: it holds, whatever this worker may use."""
    if not (out / "run.json").is_file():
        return None
    return msgspec.convert(json.loads((out / "run.json").read_text("utf-8"))["plan"], Plan)


def _render(renderer: Renderer, rows: Sequence[DataRow]) -> list[TrainRow]:
    """Token ids and masks of rows or pairs."""
    pairs = [renderer.pair(row) for row in rows if isinstance(row, types.Preference)]
    return [*pairs, *renderer.examples([row for row in rows if isinstance(row, types.Example)])]


def _apart(rows: list[Any], validation: list[Any]) -> tuple[list[Any], list[Any], list[dict[str, Any]]]:
    """Both, and what is to be said about them: validation rows that are training rows too are left out."""
    seen = {_first(row).ids.tobytes() for row in rows}
    fresh = [row for row in validation if _first(row).ids.tobytes() not in seen]
    notes = []
    if len(fresh) < len(validation):
        both = len(validation) - len(fresh)
        message = f"{both} of {len(validation)} validation rows are training rows too and are left out of validation"
        notes.append({"key": "overlap", "message": message, "level": "warn"})
    return rows, fresh, notes


def _first(row: Any) -> Rendered:
    """What a row begins with: the row itself, a pair's preferred one, a task's prompt."""
    first: Rendered = row[0] if isinstance(row, tuple) else row
    return first


def _cut_note(rows: Sequence[Any], resolved: ResolvedPlan) -> list[dict[str, Any]]:
    room = resolved.max_length - (resolved.reinforcement.max_tokens if resolved.method == "grpo" else 0)
    cut = sum(len(_first(row).ids) > room for row in rows)
    message = f"{cut} of {len(rows)} training rows are longer than {room} tokens"
    return [{"key": "long", "message": message, "level": "warn"}] if cut else []


def _finish(lease: Lease, job: Row, out: Path, artifact: Path, trained_tokens: int) -> None:
    name = model_name(job)
    text = result_csv(told(out)).encode()
    result = Files(lease.store).prepare(io.BytesIO(text), project=job["project"], filename="step_metrics.csv", purpose="fine-tune-results")
    weights = weight_files(lease.store, job, artifact, "")
    model = artifact_ref(job["base"], artifact, lease.store.folder, made_by=f"job:{job['id']}")
    lease.succeed(name, model, trained_tokens=trained_tokens, results=[result, *weights])
