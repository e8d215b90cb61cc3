"""Commands about what models look up: documents and solved rows as an index, and what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tunesmith.cli.data import CONFIG, app, datasets
from tunesmith.cli.shared import Json, emit, file_option
from tunesmith.core.counted import counted

if TYPE_CHECKING:
    from tunesmith.models.passage_index import Hit

_SHOWN = 400  # characters of a passage that a person is shown


@app.command()
def documents(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH…", help="Text, Markdown, HTML, PDF, Word, workbooks, CSV; folders of them.")
    ] = None,
    rows: Annotated[list[str] | None, typer.Option(help="DATA whose solved rows are looked up too, by their questions.")] = None,
    name: Annotated[str, typer.Option(help="What the index is called: MODEL?NAME is a model that looks things up in it.")] = "",
    encoder: Annotated[str, typer.Option(help="Whose vectors are compared; none: words alone.")] = "minilm-l6-v2",
    size: Annotated[int, typer.Option(help="The most tokens of a passage.")] = 200,
    overlap: Annotated[int, typer.Option(help="The most tokens that two passages share.")] = 32,
    skip: Annotated[list[str] | None, typer.Option(help="Leave out a document, a pattern (*.doc) or a page (a.pdf#page=3).")] = None,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Make documents an index that models look up before they answer; what cannot be read is told before any work. Without PATH: the
    indexes that there are.

    Example: tunesmith data documents manuals/ --name manuals
    """
    import msgspec

    from tunesmith.flow.retrieval import IndexRequest, built, listed

    with datasets(config, as_json) as desk:
        if not paths and not rows:
            known = listed(desk)
            words = [
                f"{index['name']:<20} {index['digest'][:12]}  {', '.join(map(str, index['recipe'].get('documents', [])))}"
                for index in known
            ]
            emit({"indexes": known}, as_json, "\n".join(words) or "no index yet: tunesmith data documents FOLDER --name NAME")
            return
        made = tuple(tuple(each or ()) for each in (paths, rows, skip))
        request = IndexRequest(documents=made[0], rows=made[1], skip=made[2], name=name, encoder=encoder, size=size, overlap=overlap)
        result = built(request, desk)
    facts = result.facts
    lines = [
        f"{counted(result.files, 'document')} read, {counted(facts.passages, 'passage')} of {counted(facts.sources, 'source')}",
        f"index {facts.digest[:12]}" + (" (it was there already)" if result.cached else ""),
    ]
    lines += [f"no documents, left aside: {', '.join(result.aside[:8])}{', …' if len(result.aside) > 8 else ''}"] if result.aside else []
    if facts.longer:
        lines.append(f"{counted(facts.longer, 'passage')} longer than the encoder reads: their ends are found by their words only")
    lines.append(f"next: tunesmith data passages {result.name} 'a question'")
    emit({"name": result.name, **msgspec.to_builtins(result)}, as_json, "\n".join(lines))


@app.command()
def passages(
    index: Annotated[str, typer.Argument(metavar="INDEX", help="An index by its name or digest.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION…", help="What is asked.")],
    k: Annotated[int, typer.Option("-k", help="How many passages.")] = 4,
    how: Annotated[Literal["words", "vectors", "fused"] | None, typer.Option(help="Found by what (default: all that it has).")] = None,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """What a model would be given for a question.

    Example: tunesmith data passages manuals 'How is the pump mounted?'
    """
    import msgspec

    from tunesmith.flow.retrieval import looked_up

    with datasets(config, as_json) as desk:
        facts, hits_of = looked_up(index, questions, k, how, desk)
    lines = []
    for question, hits in zip(questions, hits_of, strict=True):
        lines += [*([question] if len(questions) > 1 else []), *map(_line, hits), *([] if hits else ["nothing has a word of it"])]
    answers: list[dict[str, Any]] = [
        {"question": question, "hits": msgspec.to_builtins(hits)} for question, hits in zip(questions, hits_of, strict=True)
    ]
    emit({"index": msgspec.to_builtins(facts), "answers": answers}, as_json, "\n".join(lines))


def _line(hit: Hit) -> str:
    passage = hit.passage
    text = " ".join(passage.text.split())
    heading = f" ({passage.heading})" if passage.heading else ""
    return f"{hit.score:7.4f}  {passage.place}{heading}\n         {text[:_SHOWN]}{'…' if len(text) > _SHOWN else ''}"
