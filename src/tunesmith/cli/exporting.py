"""Commands that hand a model to other programs, and that show that each of them computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.shared import Json, emit, file_option, told
from tunesmith.core.counted import counted


def export(
    model: Annotated[str, typer.Argument(help="run, an alias, ft:…, BASE+ADAPTER, a folder or a base.")],
    to: Annotated[
        str, typer.Option(help="adapter, merged, gguf, gguf-q8_0, gguf-q4_K_M, ollama, vllm, docker, kubernetes, kserve, ray-serve.")
    ],
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


def parity(
    model: Annotated[str, typer.Argument(help="run, an alias, ft:…, BASE+ADAPTER, a folder or a base.")],
    data: Annotated[str, typer.Option(help="Whose questions are asked: validation, a version, a file; no sealed rows.")] = "validation",
    limit: Annotated[int, typer.Option(help="How many rows.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="How many tokens of each answer are compared.")] = 48,
    gguf: Annotated[str, typer.Option(help="Precisions of llama.cpp's file to compare too: f32,f16,q8_0,q4_K_M.")] = "",
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Does training compute the same model as peft, a merged export and the server? Exit code 3 when one does not.

    Example: tunesmith parity run --data validation --limit 16
    """
    import msgspec

    from tunesmith.api.serve import temporary
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.parity import ParityAsk
    from tunesmith.flow.parity import parity as compare

    ask = ParityAsk(data=data, limit=limit, max_tokens=max_tokens, gguf=tuple(gguf.split(",")) if gguf else ())
    with told(as_json) as progress, bench(config, progress) as at:
        outcome = compare(model, ask, at, temporary)
    lines = [{**msgspec.to_builtins(line), "passed": line.passed} for line in outcome.lines]
    shown = {"model": model, "data": outcome.data, "passed": outcome.passed, "lines": lines, "left_out": outcome.left_out}
    emit(shown, as_json, outcome.text())
    if not outcome.passed:
        raise typer.Exit(3)
