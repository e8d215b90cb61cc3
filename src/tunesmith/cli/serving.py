"""Commands about the running model: serve it, and see what monitoring saw."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.cli.shared import AsWritten, Json, emit, file_option
from tunesmith.core.counted import counted

monitor_app = typer.Typer(help="What the log of requests says.", no_args_is_help=True, rich_markup_mode=None)


def serve(
    config: file_option = Path("tunesmith.yaml"),
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: the project's).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Another name for a base, NAME=BASE; may be given several times.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that work on fine-tuning jobs.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any key of 'serve:', KEY=VALUE; several times.")] = None,
    as_written: AsWritten = False,
    as_json: Json = False,
) -> None:
    """Answer OpenAI's API: the project's base, its deployed models, files and fine-tuning jobs, as 'serve:' in its file says; and show
    the project under '/' to people.

    Example: tunesmith serve --name gpt-4o-mini-2024-07-18=smollm2-135m --set requests_per_minute=600
    """
    from tunesmith.api.serve import serve_project
    from tunesmith.core.errors import UsageError
    from tunesmith.web.site import PageSite

    names = dict(pair.split("=", 1) for pair in name or () if "=" in pair)
    if len(names) < len(name or ()):
        raise UsageError(f"--name {' --name '.join(name or ())}", allowed="NAME=BASE, each NAME once")
    given = [("host", host), ("port", port), ("workers", workers), *(pair.partition("=")[::2] for pair in settings or ())]
    overrides = [f"--serve.{key}={value}" for key, value in given if value is not None]

    def say(text: str) -> None:
        emit({"serving": text}, as_json, text)

    serve_project(config, overrides, say, names=names, as_written=as_written, pages=PageSite)


@monitor_app.callback()
def _monitor() -> None:
    pass


@monitor_app.command("status")
def monitor_status(
    config: file_option = Path("tunesmith.yaml"),
    hours: Annotated[float, typer.Option(help="How far back to look.")] = 24.0,
    as_json: Json = False,
) -> None:
    """Requests, errors, tokens and latency by alias and variant.

    Example: tunesmith monitor status --hours 1
    """
    from tunesmith.flow.project import load_project, open_store
    from tunesmith.monitor.status import status

    store = open_store(load_project(config), config.resolve().parent)
    numbers = status(store, since=time.time() - 3600 * hours)
    store.close()
    lines = [f"{counted(numbers['requests'], 'request')}, {counted(numbers['errors'], 'error')} in {hours:g} h"]
    lines += [
        f"  {_who(variant):<28} {variant['requests']:>6} requests  {_seconds(variant, 'p50')} p50  {_seconds(variant, 'p95')} p95"
        for variant in numbers["variants"]
    ]
    emit(numbers, as_json, "\n".join(lines))


def _who(variant: dict[str, Any]) -> str:
    return variant["alias"] if variant["variant"] in ("", variant["alias"]) else f"{variant['alias']} ({variant['variant']})"


def _seconds(variant: dict[str, Any], name: str) -> str:
    value = variant["total_s"].get(name, {}).get("value")
    return f"{value:7.2f} s" if value is not None else "      –  "
