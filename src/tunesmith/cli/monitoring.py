"""Commands about the log of requests and who is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.serving import monitor_app
from tunesmith.cli.shared import Json, emit, file_option
from tunesmith.core.counted import counted


@monitor_app.command("forget")
def forget(
    user: Annotated[str, typer.Argument(metavar="USER", help="What clients send as `safety_identifier`, or `user`.")],
    config: file_option = Path("tunesmith.yaml"),
    backup_days: Annotated[
        float | None, typer.Option(help="How long backups are kept; the receipt says when the last one is gone.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Erase a person: requests, feedback, stored chats and responses, lines of files, rows of data versions, results of runs; free pages
    and the write-ahead log too. The receipt names the models that saw their rows, and what a search of every file found afterwards.

    Exit code 1 where something still mentions them.

    Example: tunesmith monitor forget user-4711 --backup-days 30 --yes
    """
    import msgspec

    from tunesmith.flow.forgetting import forget as erase
    from tunesmith.flow.project import load_project, open_store

    folder = config.resolve().parent
    project = load_project(config)
    if not yes:
        typer.confirm(f"Erase everything that '{user}' has in the store of '{project.name}'? It cannot be undone", abort=True)
    store = open_store(project, folder)
    try:
        receipt = erase(store, user, around=folder, backup_days=backup_days)
    finally:
        store.close()
    emit(msgspec.to_builtins(receipt), as_json, receipt.text())
    if receipt.left:
        raise typer.Exit(1)


@monitor_app.command("dashboards")
def dashboards(
    to: Annotated[Path, typer.Option(help="The folder that they are written to.")] = Path("dashboards"),
    as_json: Json = False,
) -> None:
    """Write a dashboard for Grafana and alert rules for Prometheus over what /metrics shows; files that are there already stay.

    Example: tunesmith monitor dashboards --to grafana
    """
    from tunesmith.monitor.dashboards import write

    written = write(to)
    emit({"written": [str(path) for path in written]}, as_json, "\n".join(f"wrote {path}" for path in written))


@monitor_app.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="Where to: a .parquet or a .jsonl file.")],
    fitting: Annotated[
        str, typer.Option("--where", metavar="CONDITIONS", help="Which requests, as in log:CONDITIONS: alias=my-model,since=7d.")
    ] = "",
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Write the log of requests, a row a request however it ended, with the columns of the table.

    Example: tunesmith monitor export requests.parquet --where alias=my-model,since=7d
    """
    from tunesmith.flow.logged import export as write
    from tunesmith.flow.project import load_project, open_store

    store = open_store(load_project(config), config.resolve().parent)
    try:
        count = write(store, fitting, file)
    finally:
        store.close()
    emit({"written": str(file), "requests": count}, as_json, f"wrote {counted(count, 'request')} to {file}")
