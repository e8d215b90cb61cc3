"""`tunesmith metrics`: what every metric counts; knows nothing about how."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.shared import Json, emit


def metrics(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One metric, with its options.")] = None,
    as_json: Json = False,
) -> None:
    """What every metric counts, or all about one: repeats, case, articles, brackets, and its options.

    Example: tunesmith metrics entity_f1
    """
    import msgspec

    from tunesmith.evaluate.metrics import described, names

    entries = [described(each) for each in ([name] if name else names())]
    if name:
        (entry,) = entries
        options = "".join(f"\n  --options.{entry.name}.{key}: {given}" for key, given in entry.options.items())
        text = f"{entry.name}: {entry.about}{options}"
    else:
        width = max(len(entry.name) for entry in entries)
        text = "\n".join(f"{entry.name:<{width}}  {entry.summary}" for entry in entries)
    emit({"metrics": [msgspec.to_builtins(entry) for entry in entries]}, as_json, text)
