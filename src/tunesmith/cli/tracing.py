"""`tunesmith trace`: from an answer back to its rows, and from rows to what was made of them; knows nothing about how that is found."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.shared import Json, emit, file_option


def trace(
    name: Annotated[str, typer.Argument(metavar="ID", help="A request, deployment, job, file, run, stage, model, data version or row.")],
    rows: Annotated[int, typer.Option(min=0, help="How many rows of a data set are shown.")] = 5,
    nearest: Annotated[bool, typer.Option("--nearest", help="Of a request: the training rows that are most like it, first.")] = False,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Where something comes from, and what was made of it.

    Example: tunesmith trace chatcmpl-3f2a9c41d07e --nearest
    """
    import msgspec

    from tunesmith.flow.project import load_project, open_store
    from tunesmith.flow.trace import trace as walk

    with closing(open_store(load_project(config), config.resolve().parent)) as store:
        walked = walk(store, name, rows=rows, nearest_first=nearest)
    links = {"came_from": list(walked.came_from), "led_to": list(walked.led_to)}
    emit(msgspec.to_builtins({"asked": walked.asked, **links}), as_json, walked.text())
