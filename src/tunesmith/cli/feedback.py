"""Commands about what people say of answers: take in what other tools export, write it out; knows nothing about how it is read."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tunesmith.cli.shared import OVERRIDES, Json, emit, file_option

feedback_app = typer.Typer(
    help="What people say of answers: say it, import it, and make rows of it.", no_args_is_help=True, rich_markup_mode=None
)


@feedback_app.callback()
def _feedback() -> None:
    pass


@feedback_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An export of Open WebUI, Dify, Langfuse, LangSmith, promptfoo, or our own.")],
    project: Annotated[str, typer.Option(help="Whose requests it is about: the project of an API key.")] = "default",
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Take in words about answers that another tool exported; the same file again changes nothing.

    Each word is put to the request of the log that it is about: by its id, else by the question and the answer. One that brings its own
    conversation is kept with it.

    Example: tunesmith feedback import feedback-export.json
    """
    from tunesmith.flow.feedback import import_feedback
    from tunesmith.flow.project import load_project, open_store

    with closing(open_store(load_project(config), config.resolve().parent)) as store:
        done = import_feedback(store, file, project=project)
    emit(msgspec.structs.asdict(done), as_json, done.text())


@feedback_app.command("add")
def add(
    request: Annotated[str, typer.Argument(help="The answer's id, as clients get it and the log has it.")],
    kind: Annotated[str, typer.Argument(help="thumbs, score, correction or outcome.")],
    value: Annotated[str, typer.Argument(help="up or down, a number, the answer that would have been right, what came of it.")],
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    by: Annotated[str | None, typer.Option(help="Who says so (default: the user of this machine).")] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Say something of one answer of the log.

    Example: tunesmith feedback add chatcmpl-4f2a correction "We open at nine."
    """
    import getpass

    from tunesmith.core.feedback import body_of
    from tunesmith.flow.feedback import said_of
    from tunesmith.flow.project import load_project, open_store

    with closing(open_store(load_project(config), config.resolve().parent)) as store:
        word = said_of(store, request, kind=kind, value=value, comment=comment, by=by if by is not None else getpass.getuser())
    emit(msgspec.to_builtins(body_of(word)), as_json, f"{word.id}: {word.kind} of {word.interaction}")


@feedback_app.command("export")
def export_(
    file: Annotated[Path, typer.Argument(help="Where to write it, one word a line.")],
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Write every word about answers of the log, as /v1/feedback takes it.

    Example: tunesmith feedback export feedback.jsonl
    """
    from tunesmith.core.counted import counted
    from tunesmith.flow.feedback import export_feedback
    from tunesmith.flow.project import load_project, open_store

    with closing(open_store(load_project(config), config.resolve().parent)) as store:
        count = export_feedback(store, file)
    emit({"written": str(file), "words": count}, as_json, f"wrote {counted(count, 'word')} to {file}")


@feedback_app.command("harvest", context_settings=OVERRIDES)
def harvest(
    context: typer.Context,
    since: Annotated[str | None, typer.Option(help="Only what was said since a date, or a time ago: 7d.")] = None,
    drifted: Annotated[str | None, typer.Option(help="Also questions that have moved: an alias whose drift is looked at.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be proposed; write nothing.")] = False,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Propose training rows out of what was said: corrections, answers that an outcome or a judge calls good too, questions to answer.

    Example: tunesmith feedback harvest --since 7d
    """
    from tunesmith.cli.shared import told
    from tunesmith.flow.datasets.versions import Datasets
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.harvest import harvested, proposals
    from tunesmith.flow.logged import seconds_of
    from tunesmith.flow.watching import moved_requests
    from tunesmith.monitor.settings import Monitor

    start = seconds_of(since) if since is not None else None
    with told(as_json) as progress, bench(config, progress) as at:
        desk = Datasets.open(config, progress, list(context.args))
        settings = getattr(desk.settings, "monitor", Monitor())
        moved = moved_requests(drifted, at, settings) if drifted is not None else []
        if dry_run:
            made = proposals(at.store, settings, since=start, drifted=moved)
            rows = [{"kind": each.kind, **msgspec.to_builtins(each.row)} for each in made.proposed]
            text = "\n".join(f"{row['kind']:<10} {row['messages'][-1].get('content', '')[:100]!r}" for row in rows)
            emit({"proposed": rows, "left": made.left}, as_json, text or "nothing is proposed")
            return
        done = harvested(desk, at.store, settings, since=start, drifted=moved)
    emit(msgspec.structs.asdict(done), as_json, done.text())


@feedback_app.command("govern", context_settings=OVERRIDES)
def govern(
    context: typer.Context,
    new: Annotated[str, typer.Argument(help="The new model: run, an alias, a folder.")],
    against: Annotated[str | None, typer.Option(help="The model in force (default: the project's alias).")] = None,
    data: Annotated[str, typer.Option(help="Sealed rows; each look is logged.")] = "test",
    metric: Annotated[list[str] | None, typer.Option(help="The metric that decides (default: the project's).")] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Hold a new model against the one in force on what feedback cannot touch; exit 3 when it may not be offered.

    Every earlier slice of sealed rows, the same rows asked by one who believes a wrong answer, praise, and length.

    Example: tunesmith feedback govern my-model-next
    """
    from tunesmith.cli.shared import told
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.governing import govern as ruling_of
    from tunesmith.flow.project import load_project

    project = load_project(config, list(context.args))
    with told(as_json) as progress, bench(config, progress) as at:
        old = against or project.deploy.alias
        ruling = ruling_of(old, new, at, project.retrain, data=data, metrics=metric or ())
    emit(msgspec.to_builtins(ruling) | {"promote": ruling.promote}, as_json, ruling.text())
    if not ruling.promote:
        raise typer.Exit(3)


@feedback_app.command("retrain", context_settings=OVERRIDES)
def retrain(
    context: typer.Context,
    rows: Annotated[str, typer.Option(help="Reviewed rows: a version that feedback harvest made and data review applied.")] = "",
    start: Annotated[bool, typer.Option("--start", help="Train now, if it is due; what passes is offered as a canary.")] = False,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Whether 'retrain:' says that a training is due, and the command that does it; with --start, do it. Exit 3 when a gate says no.

    Example: tunesmith feedback retrain --rows 3f2a91c04b7d
    """
    from tunesmith.cli.shared import told
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.governing import retrained, training_due
    from tunesmith.flow.project import load_project

    words = list(context.args)
    project = load_project(config, words)
    with told(as_json) as progress:
        with bench(config, progress) as at:
            look = training_due(project, at, harvested=rows)
        if not (start and look.due):
            emit(msgspec.to_builtins(look), as_json, look.text(rows))
            if start:
                raise typer.Exit(3)
            return
        from tunesmith.api.serve import temporary

        done = retrained(config, words, rows, progress, temporary)
    emit(msgspec.to_builtins(done), as_json, done.text)
    if done.offer is None:
        raise typer.Exit(3)
