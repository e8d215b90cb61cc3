"""Commands about what people say of answers: take in what other tools export, write it out; knows nothing about how it is read."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.shared import Json, emit, file_option

feedback_app = typer.Typer(help="What people say of answers: import it, and make rows of it.", no_args_is_help=True, rich_markup_mode=None)


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
    import msgspec

    from tunesmith.flow.feedback import import_feedback
    from tunesmith.flow.project import load_project, open_store

    with closing(open_store(load_project(config), config.resolve().parent)) as store:
        done = import_feedback(store, file, project=project)
    emit(msgspec.structs.asdict(done), as_json, done.text())


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
