"""Commands that hand a model to other programs, and that show that each of them computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.shared import Json, emit, file_option, told
from tunesmith.core.counted import counted


def export(
    model: Annotated[str, typer.Argument(help="run, an alias, ft:…, BASE+ADAPTER, a folder or a base.")],
    to: Annotated[str, typer.Option(help="adapter, merged.")],
    out: Annotated[Path, typer.Option(help="The folder to make; it must not be there yet.")],
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Write a model as other programs load it, with a card and the digest of every file; whole or not at all.

    Example: tunesmith export run --to merged --out my-model
    """
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.exporting import export as write

    with told(as_json) as progress, bench(config, progress) as at:
        files = write(model, to, out, at)
    emit({"model": model, "to": to, "out": str(out), "files": files}, as_json, f"{out}: {counted(len(files), 'file')} ({', '.join(files)})")
