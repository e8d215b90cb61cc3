"""One fine-tuning job from its files to a model: validation, the plan, training, results. Knows nothing about queues or processes.

Everything is told through the job's lease, so a job that was paused, cancelled or taken over ends at its next step. The run's own folder
is the truth that a later worker continues from; what it reported is repeated into the store under the same keys, which changes nothing.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from tunesmith.core import types
from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import DataError, NotFound, TrainingError, UsageError
from tunesmith.core.rows import Row as DataRow
from tunesmith.core.rows import atomic, read_lines
from tunesmith.core.store import Store
from tunesmith.core.tables import checkpoints, files, tuned_models
from tunesmith.data.format import FORMATS, parse_line
from tunesmith.data.objects import load_object
from tunesmith.flow.jobs.queue import Lease, keep_model
from tunesmith.flow.jobs.request import PLAN_METHODS, epochs, plan
from tunesmith.flow.server.files import Files, remove_blob
from tunesmith.flow.server.paging import Missing, Row, new_id
from tunesmith.flow.stages import only_one
from tunesmith.models.catalog import Catalog
from tunesmith.train.plan import Plan, Preference

TrainRow = Rendered | tuple[Rendered, Rendered]
FEWEST, KEPT = 10, 3
_ROWS = {"supervised": "chat", "dpo": "dpo", "reinforcement": "rft"}
_WEIGHTS = ("adapter_config.json", "adapter_model.safetensors", "weights.safetensors")
_SHOWN_FAULTS = 5
_QUIET_S = 0.2  # steps that follow each other faster are written together


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
    with source.open(job[param]) as stream, atomic(path) as local:
        shutil.copyfileobj(stream, local, 1 << 20)
    return path


def _format_of(data: bytes, name: str) -> str:
    row, fault = load_object(data)
    if fault is not None or not isinstance(row, dict):
        return ""
    others = [known for known, form in FORMATS.items() if known != name and form.matches(row)]
    return f" (the line is in the format '{others[0]}', expected '{name}')" if others else ""


def _train(lease: Lease, job: Row, rows: Sequence[DataRow], validation: Sequence[DataRow], out: Path, threads: int | None) -> None:
    from tunesmith.train.facts import gather
    from tunesmith.train.items import as_items
    from tunesmith.train.loop import train
    from tunesmith.train.plan import resolve

    try:
        base = Catalog().model(job["base"])
    except NotFound as error:
        lease.fail("model_not_available", str(error), "model")
        return
    kind = job["method"]["type"]
    shown = dict(job["method"][kind]["hyperparameters"])
    rendered, held_out, notes = _rendered(base, rows, validation)
    fixed: dict[str, Any] = {"method": PLAN_METHODS[kind], "seed": job["seed"], "epochs": epochs(shown["n_epochs"], len(rendered))}
    if shown["batch_size"] != "auto":
        fixed["batch_size"] = shown["batch_size"]
    if threads is not None:
        fixed["threads"] = threads
    if kind == "dpo":
        shown["beta"] = Preference().beta if shown["beta"] == "auto" else shown["beta"]
        fixed["preference"] = Preference(beta=shown["beta"])
    wanted = _begun(out)
    if wanted is None:
        wanted = plan(job["extras"], **fixed)
        resolved, _ = resolve(wanted, gather(wanted, as_items(wanted.method, rendered), base))
        factor = 1.0 if shown["learning_rate_multiplier"] == "auto" else float(shown["learning_rate_multiplier"])
        wanted = msgspec.structs.replace(wanted, learning_rate=resolved.learning_rate * factor, batch_size=resolved.batch_size)
        shown |= {"n_epochs": fixed["epochs"], "batch_size": resolved.batch_size, "learning_rate_multiplier": factor}
        notes += _cut_note(rendered, resolved.max_length)
        lease.write(notes, method={**job["method"], kind: {**job["method"][kind], "hyperparameters": shown}})
    reporter = Reporter(lease, job, out)
    result = train(wanted, rendered, held_out, base=base, out=out, on_event=reporter)
    reporter.close()
    _finish(lease, job, out, Path(result.artifact), result.trained_tokens)


def _begun(out: Path) -> Plan | None:
    """The plan of a run that began already: it holds, whatever this worker may use."""
    if not (out / "run.json").is_file():
        return None
    return msgspec.convert(json.loads((out / "run.json").read_text("utf-8"))["plan"], Plan)


def _rendered(
    base: Path, rows: Sequence[DataRow], validation: Sequence[DataRow]
) -> tuple[list[TrainRow], list[TrainRow], list[dict[str, Any]]]:
    """Token ids and masks of both files, and what is to be said about them. Validation rows that are training rows are left out."""
    renderer = Renderer.load(base)
    rendered, held_out = _render(renderer, rows), _render(renderer, validation)
    seen = {_first(row).ids.tobytes() for row in rendered}
    fresh = [row for row in held_out if _first(row).ids.tobytes() not in seen]
    notes = []
    if len(fresh) < len(held_out):
        message = f"{len(held_out) - len(fresh)} of {len(held_out)} validation rows are training rows too and are left out of validation"
        notes.append({"key": "overlap", "message": message, "level": "warn"})
    return rendered, fresh, notes


def _render(renderer: Renderer, rows: Sequence[DataRow]) -> list[TrainRow]:
    pairs = [renderer.pair(row) for row in rows if isinstance(row, types.Preference)]
    return [*pairs, *renderer.examples([row for row in rows if isinstance(row, types.Example)])]


def _first(row: TrainRow) -> Rendered:
    return row[0] if isinstance(row, tuple) else row


def _cut_note(rows: Sequence[TrainRow], max_length: int) -> list[dict[str, Any]]:
    cut = sum(len(_first(row).ids) > max_length for row in rows)
    message = f"{cut} of {len(rows)} training rows are longer than {max_length} tokens"
    return [{"key": "long", "message": message, "level": "warn"}] if cut else []


class Reporter:
    """What training reports, as the job's events and checkpoints. Raises Stopped at the step at which the job is no longer ours."""

    def __init__(self, lease: Lease, job: Row, out: Path) -> None:
        self._lease, self._job, self._out = lease, job, out
        self._waiting: list[dict[str, Any]] = []
        self._written = 0.0
        self._step: dict[str, Any] = {}
        self._evaluation: dict[str, Any] = {}
        self._values: dict[str, Any] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start" or event.get("cached"):
            self._repeat()
        self._take(event)
        if kind != "step" or time.monotonic() - self._written >= _QUIET_S:
            self._flush()
        else:
            self._lease.read()
        if kind in ("checkpoint", "start"):
            self._keep_checkpoints()

    def close(self) -> None:
        """Write what waits."""
        self._flush()

    def _repeat(self) -> None:
        """What the run's folder remembers: reports that a killed process could not bring to the store."""
        for event in read_events(self._out):
            self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        kind, step, total = event["event"], event.get("step", 0), event.get("total_steps", 0)
        place = {"step": step, "total_steps": total}
        if kind == "step":
            self._step = event
            message = f"Step {step}/{total}: training loss={event['train_loss']:.2f}"
            self._waiting.append({"key": f"step:{step}", "type": "metrics", "message": message, "data": place | _trained(event)})
            self._values = {"step": step, "tries": 0, "estimated_finish": time.time() + event["seconds_left"]}
        elif kind == "evaluation":
            self._evaluation = event
            message = f"Step {step}/{total}: full validation loss={event['valid_loss']:.2f}"
            self._waiting.append({"key": f"valid:{step}", "type": "metrics", "message": message, "data": place | _valid(event)})
        elif kind == "checkpoint_failed":
            self._waiting.append({"key": f"no checkpoint:{step}", "message": f"No checkpoint: {event['error']}", "level": "warn"})

    def _flush(self) -> None:
        self._lease.write(self._waiting, **self._values)
        self._waiting, self._values, self._written = [], {}, time.monotonic()

    def _keep_checkpoints(self) -> None:
        """Register the checkpoints that end an epoch; of those the last three are kept."""
        ends = {event["step"]: event for event in read_events(self._out) if event["event"] == "step" and float(event["epoch"]).is_integer()}
        valid = {event["step"]: event for event in read_events(self._out) if event["event"] == "evaluation"}
        found = {int(path.name.rpartition("-")[2]): path for path in (self._out / "checkpoints").glob("checkpoint-*")}
        for step in sorted(ends.keys() & found.keys())[-KEPT:]:
            self._keep(step, found[step], {"step": step} | _trained(ends[step]) | _valid(valid.get(step)))

    def _keep(self, step: int, folder: Path, metrics: dict[str, Any]) -> None:
        store, job = self._lease.store, self._job
        with store.engine.connect() as connection:
            kept = connection.execute(sa.select(checkpoints.c.step).where(checkpoints.c.job == job["id"])).scalars().all()
        if step in kept or (len(kept) >= KEPT and step < min(kept)):
            return
        copies = _copies(store, job, folder, f"step-{step}-")
        name, gone = f"{model_name(job)}:ckpt-step-{step}", sorted([*kept, step])[:-KEPT]

        def also(connection: sa.Connection) -> None:
            connection.execute(sa.insert(files), copies)
            row = {"id": new_id("ftckpt_"), "created": time.time(), "project": job["project"], "job": job["id"], "step": step}
            ids = [copy["id"] for copy in copies]
            connection.execute(sa.insert(checkpoints).values(**row, model=name, metrics=metrics, files=ids))
            if (folder / "adapter_config.json").is_file():
                keep_model(connection, job, name, str(folder.relative_to(store.folder)), checkpoint=True)

        self._lease.write([], also)
        for old in gone:
            self._forget(old)

    def _forget(self, step: int) -> None:
        store, mine = self._lease.store, [checkpoints.c.job == self._job["id"], checkpoints.c.step == step]
        with store.writing() as connection:
            row = connection.execute(sa.select(checkpoints).where(*mine)).mappings().one()
            connection.execute(sa.delete(files).where(files.c.id.in_(row["files"])))
            connection.execute(sa.delete(tuned_models).where(tuned_models.c.id == row["model"]))
            connection.execute(sa.delete(checkpoints).where(*mine))
        for number in row["files"]:
            remove_blob(store, f"files/{number}")


# What the loop calls a figure → what the API calls it; the loop's other figures (of preferences) keep their names.
_NAMES = {"loss": "loss", "token_accuracy": "mean_token_accuracy"}


def _figures(event: dict[str, Any], prefix: str) -> dict[str, Any]:
    found = {key.removeprefix(prefix): value for key, value in event.items() if key.startswith(prefix)}
    return {prefix + _NAMES.get(key, key): value for key, value in found.items()}


def _trained(event: dict[str, Any]) -> dict[str, Any]:
    return _figures(event, "train_")


def _valid(event: dict[str, Any] | None) -> dict[str, Any]:
    """An evaluation under the API's names. Validation is always over the whole file here, so both pairs have the same values."""
    found = _figures(event, "valid_") if event else {}
    return found | {f"full_{key}": value for key, value in found.items()}


def _copies(store: Store, job: Row, folder: Path, prefix: str) -> list[dict[str, Any]]:
    """The weights of a folder as files of the API; their rows are for the caller to insert."""
    rows = []
    for path in sorted(folder.iterdir()):
        if path.name in _WEIGHTS or path.name.startswith("model"):
            with path.open("rb") as stream:
                rows.append(Files(store).prepare(stream, project=job["project"], filename=prefix + path.name, purpose="fine-tune-results"))
    return rows


def _finish(lease: Lease, job: Row, out: Path, artifact: Path, trained_tokens: int) -> None:
    name = model_name(job)
    text = result_csv(read_events(out)).encode()
    result = Files(lease.store).prepare(io.BytesIO(text), project=job["project"], filename="step_metrics.csv", purpose="fine-tune-results")
    weights = _copies(lease.store, job, artifact, "")

    def also(connection: sa.Connection) -> None:
        connection.execute(sa.insert(files), [result, *weights])

    ids = [row["id"] for row in (result, *weights)]
    folder = str(artifact.relative_to(lease.store.folder))
    lease.succeed(name, folder, trained_tokens=trained_tokens, result_files=ids, also=also)


def model_name(job: Row) -> str:
    """`ft:BASE:PROJECT:SUFFIX:8 characters`; of the job alone, so a repeated run gives the same name. No `/` in it."""
    return f"ft:{job['model'].replace('/', '-')}:{job['project']}:{job['suffix'] or ''}:{job['id'][-8:]}"


def read_events(out: Path) -> list[dict[str, Any]]:
    """What a run reported so far; a last line that was cut by a kill is left out."""
    path, events = out / "events.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events


def result_csv(events: Sequence[dict[str, Any]]) -> str:
    """The result file: one line a step, cells empty where nothing was measured."""
    table: dict[int, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "step":
            table[event["step"]] = {"train_loss": event["train_loss"], "train_accuracy": event.get("train_token_accuracy", "")}
        elif event["event"] == "evaluation" and event["step"] in table:
            table[event["step"]] |= _valid(event)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ("train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
    writer.writerow(["step", *columns])
    writer.writerows([step, *(values.get(name, "") for name in columns)] for step, values in sorted(table.items()))
    return out.getvalue()
