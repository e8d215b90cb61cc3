"""The command line: one command = one flow function; the only place that turns errors into exit codes. Nothing heavy is imported
before a command runs.

Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 3 a gate said no, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith._version import __version__
from tunesmith.cli import (
    data_import,  # noqa: F401 adds its command to those of `data`
    data_work,  # noqa: F401 as it does
    evaluating,
    monitoring,  # noqa: F401 as it does
    retrieval,  # noqa: F401 as it does
    rollouts,  # noqa: F401 as it does, those of `deploy`
    watching,  # noqa: F401 as it does, those of `monitor`
)
from tunesmith.cli.data import app as data_app
from tunesmith.cli.data import previewed
from tunesmith.cli.deciding import decide, taken
from tunesmith.cli.deploying import deploy_app
from tunesmith.cli.experiments import ab_app
from tunesmith.cli.exporting import export, parity
from tunesmith.cli.feedback import feedback_app
from tunesmith.cli.identity import identity
from tunesmith.cli.jobs import jobs_app, keys_app
from tunesmith.cli.metrics import metrics
from tunesmith.cli.migrate import migrate_app
from tunesmith.cli.serving import monitor_app, serve
from tunesmith.cli.shared import OVERRIDES, AsWritten, Json, data_option, emit, file_option, instead, plan_option, planned, told
from tunesmith.cli.tracing import trace
from tunesmith.cli.training import estimate, train
from tunesmith.cli.tuning import tune_app

if TYPE_CHECKING:
    from tunesmith.core.progress import Progress
    from tunesmith.core.rows import Row

app = typer.Typer(
    name="tunesmith",
    help="Custom language models from raw data to a watched deployment, each step proven.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    # --max_length is --max-length, everywhere
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda word: word.replace("_", "-")},
)
app.add_typer(monitor_app, name="monitor")
app.add_typer(feedback_app, name="feedback")
app.add_typer(jobs_app, name="jobs")
app.add_typer(keys_app, name="keys")
app.add_typer(data_app, name="data")
app.add_typer(migrate_app, name="migrate")
app.add_typer(tune_app, name="tune")
app.add_typer(deploy_app, name="deploy")
app.add_typer(ab_app, name="ab")
app.command()(export)
app.command()(parity)
app.command()(identity)
app.command()(serve)
app.command()(trace)
app.command()(metrics)
evaluating.register(app)
app.command(context_settings=OVERRIDES)(decide)
app.command(context_settings=OVERRIDES)(estimate)
app.command(context_settings=OVERRIDES)(train)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(f"tunesmith {__version__}")
        raise typer.Exit


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="Your rows: a file, a folder or a pattern.")] = "data.jsonl",
    base: Annotated[str, typer.Option(help="A catalogue name, a folder or a hub id.")] = "smollm2-135m",
    metric: Annotated[str | None, typer.Option(help="The metric that decides (default: what fits the rows).")] = None,
    name: Annotated[str, typer.Option(help="What the model will be called.")] = "my-model",
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Write a commented tunesmith.yaml with the method and metrics that fit the first rows, and look at one.

    Example: tunesmith init support.jsonl --metric exact_match
    """
    from tunesmith.core.errors import ConfigError
    from tunesmith.flow.project import write_template
    from tunesmith.flow.propose import proposal

    with told(as_json) as progress:
        seen, rows, fault = _first_look(config, data, progress)
    if config.exists():
        besides = f"; and {fault}" if fault else ""
        raise ConfigError(f"'{config}' is already there{besides}", remedy="edit it, or give another name with --config")
    proposed = proposal(rows)
    write_template(config, path=data, base=base, metric=metric, name=name, proposed=proposed)
    last = f"its rows cannot be read yet:\n{fault}\nmend that, then: tunesmith run" if fault else "look it over, then: tunesmith run"
    words = [*([] if fault else previewed(seen)), *proposed.hints]
    result = {"written": str(config), "preview": seen, "fault": fault or None, "method": proposed.method, "hints": proposed.hints}
    emit(result, as_json, "\n".join([*words, f"wrote {config}; {last}"]))


def _first_look(config: Path, data: str, progress: Progress) -> tuple[list[dict[str, Any]], list[Row], str]:
    """The first row for people, the first rows themselves, and why they cannot be read, beside a project file that is not there yet."""
    from tunesmith.core.errors import TunesmithError
    from tunesmith.data.collect import Source
    from tunesmith.flow.datasets.versions import Datasets

    desk = Datasets.beside(config, progress)
    try:
        seen = desk.preview([Source(path=data)], most=1)
        fault = "\n".join(line for source in seen for line in source["faults"] if not source["rows"])
        return seen, [] if fault else desk.first([Source(path=data)]), fault
    except TunesmithError as error:  # what is written is right; the rows are mended in it or beside it
        return [], [], str(error)


@app.command(context_settings=OVERRIDES)
def run(
    context: typer.Context,
    config: file_option = Path("tunesmith.yaml"),
    data: data_option = None,
    plan: plan_option = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Prepare the data, then print the plan with time, memory and tokens.")] = False,
    arm: Annotated[
        str | None,
        typer.Option(help="Put this arm of the last `tunesmith decide` in force (decided: the one it chose); a fine-tuned one is run."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Walk the circle that tunesmith.yaml describes; what is already done is not done again.

    Any key of the file can be overridden for this run: --SECTION.KEY VALUE, as often as needed, with - or _ in its words; shares may be 5%,
    lists are YAML. The keys: tunesmith schema. What a run was made with is remembered; a changed value redoes only what follows from it.

    Example: tunesmith run --train.epochs 2
    Example: tunesmith run --base smollm2-360m --train.learning-rate 1e-4 --evaluate.metrics '[exact_match, token_f1]'
    """
    from tunesmith.flow.last_run import written_name
    from tunesmith.flow.pipeline.run import RunCommand, run_pipeline
    from tunesmith.flow.pipeline.run import dry_run as plan_only
    from tunesmith.flow.project import DEFAULT_FILE, load_project

    words = [*planned(plan), *context.args]
    project = load_project(config, instead(data, config, words))
    if dry_run:
        with told(as_json) as progress:
            result = plan_only(project, config.resolve().parent, progress)
        emit(result, as_json, result["text"])
        return
    if arm is not None and taken(project, config.resolve().parent, arm, as_json=as_json):
        return
    from tunesmith.api.serve import temporary  # before any work, so that a missing package is said at once

    command = "tunesmith run" if config == DEFAULT_FILE else f"tunesmith run --config {shlex.quote(str(config))}"
    made = RunCommand(command, tuple(words), written_name(config, words))
    with told(as_json) as progress:
        outcome = run_pipeline(project, config.resolve().parent, progress, temporary, made=made)
    emit(outcome.summary(), as_json, outcome.text())
    if not outcome.passed:
        raise typer.Exit(3)


@app.command()
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer rows and one epoch, four to six minutes; the report says what it left out.")
    ] = False,
    up: Annotated[bool, typer.Option("--serve", help="Leave the server up at the end.")] = False,
    folder: Annotated[Path, typer.Option(help="Where the demo's project is written.")] = Path("tunesmith-demo"),
    as_json: Json = False,
) -> None:
    """The whole circle on real data: named entities in credit agreements, from a raw file to a served, measured model.

    Example: tunesmith demo --quick
    """
    from tunesmith.api.serve import serve_project, temporary
    from tunesmith.flow.demo import run_demo

    began = time.monotonic()
    with told(as_json) as progress:
        outcome = run_demo(folder, quick=quick, progress=progress, server=temporary)
    lines = [outcome.text()]
    if outcome.times:
        minutes = (time.monotonic() - began) / 60  # with what comes before the estimate
        lines += [f"ratio demo_minutes {minutes:.2f}", f"ratio demo_estimate_error {outcome.times['error']:.2f}"]
    emit(outcome.summary(), as_json, "\n".join(lines))
    if up:
        from tunesmith.web.site import PageSite

        serve_project(folder / "tunesmith.yaml", pages=PageSite)
    if not outcome.passed:
        raise typer.Exit(3)


@app.command(context_settings=OVERRIDES)
def status(
    context: typer.Context,
    config: file_option = Path("tunesmith.yaml"),
    as_written: AsWritten = False,
    whole: Annotated[bool, typer.Option("--circle", help="Where the project stands from data to traffic, and what comes next.")] = False,
    as_json: Json = False,
) -> None:
    """The stages of the last run as it was made: done or waiting. With --KEY VALUE, or --as-written: those of the file.

    Example: tunesmith status --circle
    """
    from tunesmith.flow.last_run import view
    from tunesmith.flow.pipeline.run import stage_states

    if whole:
        from msgspec import to_builtins

        from tunesmith.flow.circle import circle_of

        stands = circle_of(view(config, context.args, as_written=as_written))
        emit(to_builtins(stands), as_json, stands.text())
        return
    states = stage_states(view(config, context.args, as_written=as_written))
    rows = states["stages"]
    width = max(len(row["name"]) for row in rows)
    lines = [f"{row['name']:<{width}}  {row['state']:<8} {row['seconds'] or '':>8}  {row['digest'][:12]}" for row in rows]
    again = [f"what waits is done by: {states['next']}"] if states["next"] else []
    emit(states, as_json, "\n".join([states["plan"]["text"], *lines, *again]))


@app.command("set")
def set_(
    key: Annotated[str, typer.Argument(help="A key of tunesmith.yaml, such as serve.log.retention_days.")],
    value: Annotated[str, typer.Argument(help="Its value as YAML writes it: 30, null, [email].")],
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Write one setting into tunesmith.yaml; comments and layout stay, and nothing is written that the project cannot be.

    Example: tunesmith set serve.log.retention_days 30
    """
    from tunesmith.flow.settings import set_word

    set_word(config, key, value)
    emit({"key": key, "value": value}, as_json, f"{config}: {key}: {value}")


@app.command()
def schema(as_json: Json = False) -> None:
    """The JSON Schema of tunesmith.yaml, for editors.

    Example: tunesmith schema > tunesmith.schema.json
    """
    from tunesmith.core.config import schema as schema_of
    from tunesmith.flow.project import Project

    typer.echo(json.dumps(schema_of(Project), indent=None if as_json else 2))


@app.command()
def models(as_json: Json = False) -> None:
    """Bases, encoders and data sets that the catalogue knows, with licences: those that packages have, and families of the hub.

    Example: tunesmith models
    """
    import msgspec

    from tunesmith.models.catalog import Catalog, families

    result: dict[str, Any] = msgspec.to_builtins(Catalog().listing)
    lines = []
    for kind, part in result.items():
        for entry in part.values():
            entry["offline"] = any("package" in source for source in entry["sources"])
        lines += [f"{kind} (* from a package index, no hub needed)"]
        lines += [f"{'*' if e['offline'] else ' '} {name:<16} {e['license']:<12} {e['about']}" for name, e in part.items()]
    result["families"] = {name: {**msgspec.to_builtins(family), "offline": False} for name, family in families().items()}
    lines += ["families on the Hugging Face hub, each model by its id (a network is needed)"]
    for name, family in result["families"].items():
        ids = ", ".join(f"{hub} ({size:g} B)" for hub, size in family["hub"].items())
        checked = "; ".join(filter(None, [f"tiny random models {', '.join(family['variants'])}", family.get("real")]))
        lines += [f"  {name:<18} {family['license']}", f"    {ids}", f"    template: {family['template']}; checked: {checked}"]
    emit(result, as_json, "\n".join(lines))


@app.command()
def doctor(config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Look at this machine: packages, processor, memory, disk, store, and what servers could not load; says what would hold work up.

    Example: tunesmith doctor
    """
    from tunesmith.flow.doctor import examine

    checks = examine(config)
    emit({"checks": checks}, as_json, "\n".join(f"{'ok ' if item['ok'] else '!! '} {item['name']:<12} {item['said']}" for item in checks))
    if not all(item["ok"] for item in checks):
        raise typer.Exit(1)


# Servers and workers end by their own rules: what is open may be answered first.
_DRAINING = {"serve", "work", "--serve"}


def main() -> None:
    """Entry point of the `tunesmith` command."""
    from tunesmith.cli.interrupt import watch
    from tunesmith.cli.shared import guarded
    from tunesmith.core.progress import hush

    hush()
    if not _DRAINING.intersection(sys.argv[1:]):
        watch()
    sys.exit(guarded(app, sys.argv[1:]))
