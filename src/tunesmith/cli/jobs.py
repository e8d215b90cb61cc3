"""Commands about fine-tuning jobs and API keys; they act on the store, so they work with and without a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.shared import Json, emit, file_option

if TYPE_CHECKING:
    from tunesmith.store.store import Store

jobs_app = typer.Typer(
    help="Fine-tuning jobs: create, clone, list, logs, pause, resume, cancel, work.", no_args_is_help=True, rich_markup_mode=None
)
keys_app = typer.Typer(help="API keys: create, list, revoke, rotate.", no_args_is_help=True, rich_markup_mode=None)
_Job = Annotated[str, typer.Argument(help="The job's id, ftjob-…")]
_Key = Annotated[str, typer.Argument(help="The key's id, key_…")]
_DEFAULT = Path("tunesmith.yaml")


@contextmanager
def _store(config: Path) -> Iterator[Store]:
    from tunesmith.flow.project import load_project, open_store

    store = open_store(load_project(config), config.resolve().parent)
    try:
        yield store
    finally:
        store.close()


def _when(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


@jobs_app.command("list")
def list_jobs(
    config: file_option = _DEFAULT, limit: Annotated[int, typer.Option(help="How many, newest first.")] = 20, as_json: Json = False
) -> None:
    """The newest jobs of all projects.

    Example: tunesmith jobs list --limit 5
    """
    from tunesmith.store.jobs import Jobs

    with _store(config) as store:
        rows, _ = Jobs(store).listed(None, limit=limit)
    shown = ("id", "project", "status", "model", "fine_tuned_model", "created", "step", "error")
    lines = [f"{row['id']}  {row['status']:<16} {_when(row['created'])}  {row['fine_tuned_model'] or row['model']}" for row in rows]
    emit({"jobs": [{key: row[key] for key in shown} for row in rows]}, as_json, "\n".join(lines) or "no jobs")


@jobs_app.command("logs")
def logs(job: _Job, config: file_option = _DEFAULT, as_json: Json = False) -> None:
    """What a job reported, oldest first, and the words of its process.

    Example: tunesmith jobs logs ftjob-abc123
    """
    from tunesmith.flow.jobs.reading import folder_of
    from tunesmith.store.jobs import Jobs

    with _store(config) as store:
        Jobs(store).find(job, None)
        rows, more, after = [], True, None
        while more:
            page, more = Jobs(store).events(job, after=after, limit=1000, oldest_first=True)
            rows += page
            after = rows[-1]["id"] if rows else None
        log = folder_of(store, job) / "log.txt"
        words = log.read_text("utf-8", "replace") if log.is_file() else ""
    shown = [{key: row[key] for key in ("created", "level", "message", "type", "data")} for row in rows]
    lines = [f"{_when(row['created'])} {row['level']:<5} {row['message']}" for row in rows]
    emit({"events": shown, "log": words}, as_json, "\n".join([*lines, *([f"--- {log}", words.rstrip()] if words.strip() else [])]))


@jobs_app.command("create")
def create_job(
    data: Annotated[str, typer.Argument(help="The rows to train on: latest:train, a version, VERSION:PART.")],
    model: Annotated[str, typer.Option(help="What is trained: a base, an alias, ft:… (default: the project's base).")] = "",
    validation: Annotated[str, typer.Option(help="Rows that the loss is measured on, too.")] = "",
    settings: Annotated[str, typer.Option("--set", help="Hyperparameters: 'n_epochs=2 learning_rate=1e-4'.")] = "",
    suffix: Annotated[str, typer.Option(help="A part of the model's name.")] = "",
    config: file_option = _DEFAULT,
    as_json: Json = False,
) -> None:
    """Order a fine-tuning job over rows of a data version; a server's workers, or jobs work, carry it out.

    Example: tunesmith jobs create latest:train --set 'n_epochs=2'
    """
    from tunesmith.core.progress import Silent
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.jobs.order import order, settings_of

    with bench(config, Silent()) as at:
        base = model or getattr(at.reader.settings, "base", "")
        held = at.reader.find(validation) if validation else None
        row = order(at.store, at.models, base, at.reader.find(data), validation=held, settings=settings_of(settings), suffix=suffix)
    emit({"id": row["id"], "status": row["status"]}, as_json, f"{row['id']}: {row['status']}")


@jobs_app.command("clone")
def clone(
    job: _Job,
    settings: Annotated[str, typer.Option("--set", help="Hyperparameters that differ: 'n_epochs=2 learning_rate=1e-4'.")] = "",
    config: file_option = _DEFAULT,
    as_json: Json = False,
) -> None:
    """Order a job once more, with a change where one is given.

    Example: tunesmith jobs clone ftjob-abc123 --set 'learning_rate=1e-4'
    """
    from tunesmith.core.progress import Silent
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.jobs.order import order_again, settings_of

    with bench(config, Silent()) as at:
        row = order_again(at.store, at.models, job, settings_of(settings))
    emit({"id": row["id"], "status": row["status"]}, as_json, f"{row['id']}: {row['status']}")


def _change(word: str, job: str, config: Path, as_json: bool) -> None:
    from tunesmith.store.jobs import Jobs

    with _store(config) as store:
        row = getattr(Jobs(store), word)(job, None)
    emit({"id": job, "status": row["status"]}, as_json, f"{job} is {row['status']}")


@jobs_app.command("pause")
def pause(job: _Job, config: file_option = _DEFAULT, as_json: Json = False) -> None:
    """Hold a job; it stops within a step.

    Example: tunesmith jobs pause ftjob-abc123
    """
    _change("pause", job, config, as_json)


@jobs_app.command("resume")
def resume(job: _Job, config: file_option = _DEFAULT, as_json: Json = False) -> None:
    """Let a paused job go on from its last checkpoint.

    Example: tunesmith jobs resume ftjob-abc123
    """
    _change("resume", job, config, as_json)


@jobs_app.command("cancel")
def cancel(job: _Job, config: file_option = _DEFAULT, as_json: Json = False) -> None:
    """End a job; it stops within a step.

    Example: tunesmith jobs cancel ftjob-abc123
    """
    _change("cancel", job, config, as_json)


@jobs_app.command("work")
def work(
    config: file_option = _DEFAULT,
    threads: Annotated[int | None, typer.Option(help="Threads that a job may use (default: every core).")] = None,
    gpu: Annotated[str | None, typer.Option(help="The one GPU that this worker's jobs see.")] = None,
    per_project: Annotated[int | None, typer.Option(help="Jobs of one project at once, over all workers.")] = None,
    as_json: Json = False,
) -> None:
    """Work on jobs until ctrl-C; start as many as there are GPUs, here or on other machines that see the same store.

    Example: tunesmith jobs work --gpu 1
    """
    from tunesmith.flow.jobs.worker import main, trusted

    with _store(config) as store:
        words = ["--store", str(store.folder), "--database", store.url, "--blobs", store.blobs.place, *trusted()]
    for name, value in (("--threads", threads), ("--gpu", gpu), ("--per-project", per_project)):
        words += [name, str(value)] if value is not None else []
    emit({"working": str(store.folder)}, as_json, f"working on the jobs of {store.folder} (ctrl-C stops)")
    main(words)


def _key(row: Any) -> dict[str, Any]:
    return {key: row[key] for key in ("id", "name", "project", "scopes", "hint", "created", "revoked")}


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    project: Annotated[str, typer.Option(help="The project whose files and jobs it sees.")] = "default",
    scopes: Annotated[str, typer.Option(help="Of read, train, serve, admin; with commas between.")] = "read,train,serve",
    config: file_option = _DEFAULT,
    as_json: Json = False,
) -> None:
    """Make an API key and show it, once. From the first key on every request needs one.

    Example: tunesmith keys create laptop --scopes serve
    """
    from tunesmith.store.keys import Keys

    with _store(config) as store:
        row, secret = Keys(store).create(name, project=project, scopes=[word.strip() for word in scopes.split(",") if word.strip()])
    emit({**_key(row), "key": secret}, as_json, f"{secret}\n(kept nowhere: copy it now; its id is {row['id']})")


@keys_app.command("list")
def list_keys(config: file_option = _DEFAULT, as_json: Json = False) -> None:
    """All keys, without their secrets.

    Example: tunesmith keys list
    """
    from tunesmith.store.keys import Keys

    with _store(config) as store:
        rows = Keys(store).listed()
    lines = [
        f"{row['id']}  …{row['hint']}  {row['project']:<12} {','.join(row['scopes']):<18} {_when(row['created'])}  {row['name']}"
        + (f"  revoked {_when(row['revoked'])}" if row["revoked"] else "")
        for row in rows
    ]
    emit({"keys": [_key(row) for row in rows]}, as_json, "\n".join(lines) or "no keys: requests from this machine need none")


@keys_app.command("revoke")
def revoke(key: _Key, config: file_option = _DEFAULT, as_json: Json = False) -> None:
    """End a key; a running server refuses it within seconds.

    Example: tunesmith keys revoke key_abc123
    """
    from tunesmith.store.keys import Keys

    with _store(config) as store:
        row = Keys(store).revoke(key)
    emit(_key(row), as_json, f"{key} is revoked")


@keys_app.command("rotate")
def rotate(
    key: _Key,
    grace_s: Annotated[float, typer.Option(help="Seconds for which the old key still works.")] = 0.0,
    config: file_option = _DEFAULT,
    as_json: Json = False,
) -> None:
    """Replace a key by a new one with the same rights.

    Example: tunesmith keys rotate key_abc123 --grace-s 3600
    """
    from tunesmith.store.keys import Keys

    with _store(config) as store:
        row, secret = Keys(store).rotate(key, grace_s=grace_s)
    emit({**_key(row), "key": secret}, as_json, f"{secret}\n(kept nowhere: copy it now; its id is {row['id']})")
