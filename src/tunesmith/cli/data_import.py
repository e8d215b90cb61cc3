"""The command that reads rows of any known format into a version; three rows are shown before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.data import CONFIG, NoteOption, app, datasets, pairs, previewed, share, version_text
from tunesmith.cli.shared import Json, emit, file_option, shown

if TYPE_CHECKING:
    from tunesmith.data.collect import Source


def read_as(source: Source, words: Sequence[str]) -> Source:
    """The source with what `--read KEY=VALUE` says of it. Raises UsageError for another key."""
    import msgspec

    from tunesmith.core.config import convert
    from tunesmith.core.errors import UsageError, nearest

    keys: dict[str, list[str]] = {"encoding": [], "ignore": [], "unique_ids": []}
    for word in words:
        key, mark, value = word.partition("=")
        if not mark or key not in keys:
            raise UsageError(f"--read {word}", allowed=", ".join(f"{name}=…" for name in keys), remedy=nearest(key, keys))
        keys[key].append(value)
    given = {"ignore": tuple(keys["ignore"]), **{key: values[-1] for key, values in keys.items() if values and key != "ignore"}}
    unique = {"unique_ids": given["unique_ids"] == "true"} if given.get("unique_ids") in ("true", "false") else {}
    return convert({**msgspec.structs.asdict(source), **given, **unique}, type(source))


@app.command("import")
def import_(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE…", help="Files, folders, patterns, URLs, catalog:NAME or a database URL.")
    ],
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="The format's key = the file's column, such as prompt=question.")
    ] = None,
    format: Annotated[str, typer.Option(help="The format, where it is not to be detected.")] = "auto",
    reading: Annotated[
        list[str] | None,
        typer.Option("--read", help="How files are read: encoding=cp1252, ignore=KEY (of turns, to be left out), unique_ids=false."),
    ] = None,
    max_invalid: Annotated[
        str | None, typer.Option(help="The share of rows with faults that is tolerated, such as 1% (default: the project's).")
    ] = None,
    name: NoteOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")] = False,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Read rows of any known format into an immutable version; three rows are shown before anything is written.

    Example: tunesmith data import support.csv --map prompt=question --map response=answer
    """
    import msgspec

    from tunesmith.core.errors import UsageError
    from tunesmith.data.collect import Source

    read = []
    for word in sources:  # a database: sqlite:///rows.db#SELECT question AS prompt, answer AS response FROM tickets
        path, mark, query = word.partition("#")
        is_query = bool(mark) and "://" in path and query.lstrip().lower().startswith(("select", "with"))
        source = Source(path=path if is_query else word, format=format, map=pairs(mapping or ()), query=query if is_query else "")
        read.append(read_as(source, reading or ()))
    with datasets(config, as_json) as desk:
        tolerated = share(max_invalid) if max_invalid is not None else desk.settings.max_invalid
        preview = desk.preview(read)
        words = previewed(preview)
        if not yes and (as_json or not sys.stdin.isatty()):
            intake = desk.survey(read, max_invalid=tolerated)
            emit({"preview": preview, "version": None, "inputs": intake.inputs, "invalid": intake.invalid}, as_json, "\n".join(words))
            shown(f"nothing was written: {intake.rows} of {intake.inputs} rows can be; look them over, then say --yes", err=True)
            raise typer.Exit(2)
        if not yes:
            shown("\n".join(words), err=True)
            if not typer.confirm("Write all rows as a new version?", default=True, err=True):
                raise UsageError("nothing was written, as you said", remedy="--map, --format and --max-invalid change what is read")
        version, intake = desk.keep(read, max_invalid=tolerated, note=name)
        result = {"preview": preview, "version": msgspec.to_builtins(version), "inputs": intake.inputs, "invalid": intake.invalid}
        left = [f"{intake.inputs} rows came in, {intake.invalid} of them with faults", version_text(version), "next: tunesmith data check"]
        emit(result, as_json, "\n".join([*(words if yes else []), *left]))


app.registered_commands.insert(0, app.registered_commands.pop())  # it comes first in the help, as it does in use
