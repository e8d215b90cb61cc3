"""Commands about data: check, clean, split, look at every token and every fate.

DATA is `latest` (the default), the beginning of a version's id, or `run`, each also with a part (`latest:train`); `train`, `validation` or
`test` of the project; `catalog:NAME`, `suite:general`; or a file, folder, pattern or URL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.shared import OVERRIDES, Json, emit, file_option, told
from tunesmith.core.counted import counted
from tunesmith.core.terminal import printable

if TYPE_CHECKING:
    from tunesmith.flow.datasets.versions import Datasets

app = typer.Typer(help="Data that can be trusted: a fate and a reason for every row.", no_args_is_help=True, rich_markup_mode=None)

CONFIG = Path("tunesmith.yaml")
_WORDS = "latest, a version or run, each also :PART; train, validation, test; catalog:NAME; a file or a URL."
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help=_WORDS)]
DataOption = Annotated[str, typer.Option("--data", help=_WORDS)]
NoteOption = Annotated[str, typer.Option("--name", help="A name or note kept with the version.")]
Against = Annotated[list[str] | None, typer.Option("--against", help="Evaluation rows that must not be trained on.")]


@contextmanager
def datasets(config: Path, as_json: bool, overrides: Sequence[str] = ()) -> Iterator[Datasets]:
    """The data of the project beside `config`, with progress for people."""
    from tunesmith.flow.datasets.versions import Datasets

    with told(as_json) as progress:
        yield Datasets.open(config, progress, overrides)


def pairs(words: Sequence[str]) -> dict[str, str]:
    """`prompt=question` words as a mapping. Raises UsageError for a word without `=`."""
    from tunesmith.core.errors import UsageError

    columns = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise UsageError(f"--map {word}", allowed="--map prompt=question --map response=answer: the format's key = the file's column")
        columns[key] = value
    return columns


def share(text: str) -> float:
    """`5%` or `0.05` as a share. Raises UsageError for what is neither."""
    from decimal import InvalidOperation

    from tunesmith.core.config import percent
    from tunesmith.core.errors import UsageError

    text = text.strip()
    try:
        value = percent(text) if text.endswith("%") else float(text)
    except (ValueError, InvalidOperation):
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"'{text}' is no share", allowed="a share such as 0.05 or 5%")
    return value


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> str:
    """Columns as aligned text."""
    cells = [[str(cell) for cell in row] for row in ([header, *rows] if header else rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))] if cells else []
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def words_of(arguments: Sequence[str], data: str) -> tuple[str, list[str]]:
    """DATA and the overrides among the words that a command does not know: DATA may stand first."""
    words = list(arguments)
    return (words.pop(0), words) if words and not words[0].startswith("-") else (data, words)


def previewed(preview: Sequence[Any]) -> list[str]:
    """What `Datasets.preview` found, for people."""
    from tunesmith.flow.datasets.versions import text_of

    words = []
    for source in preview:
        words.append(f"{source['path']}: format {source['format']}" + "".join(f"\n  fault: {fault}" for fault in source["faults"]))
        words += [text_of(row, 400) for row in source["rows"]]
    return words


def version_text(version: Any) -> str:
    """A version for people: its id and how many rows each part has."""
    counts = ", ".join(f"{name} {n}" for name, n in version.counts.items())
    return f"version {version.id}: {counts}"


@app.callback()
def _data() -> None:
    pass


@app.command()
def check(
    data: DataArgument = "latest",
    base: Annotated[str, typer.Option(help="Count tokens for this base (default: the project's); OpenAI's names too.")] = "",
    max_length: Annotated[int | None, typer.Option(help="The longest row in tokens that training would take.")] = None,
    wanted: Annotated[
        list[str] | None, typer.Option(help="Rows of the kind that will be asked, such as logs: what is missing is told.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the HTML report is written.")] = Path("data-check.html"),
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Is it enough, and is it the right data? A list of things to do, most valuable first, and an HTML report.

    Example: tunesmith data check support.jsonl --base smollm2-135m
    """
    from tunesmith.flow.datasets import check
    from tunesmith.flow.datasets.versions import evaluation_rows

    with datasets(config, as_json) as desk:
        dataset = desk.find(data)
        result = check.checked(desk, dataset, base=base, max_length=max_length, wanted=evaluation_rows(desk, wanted or ()))
        check.write_html(result, dataset.rows, out)
        result["report"] = str(out)
        emit(result, as_json, f"{check.text_of(result)}\nreport: {out}")
        if not result["usable"]:
            raise typer.Exit(3)


@app.command(context_settings=OVERRIDES)
def clean(
    context: typer.Context,
    data: DataOption = "latest",
    max_dropped: Annotated[str | None, typer.Option(help="Refuse (exit 3) when more than this share is lost, such as 5%.")] = None,
    against: Against = None,
    name: NoteOption = "",
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Apply the `clean` section of tunesmith.yaml; every row's fate is in the ledger. Any setting can be given: --clean.refusals drop

    Example: tunesmith data clean --max-dropped 5% --clean.personal_data.action pseudonymise
    """
    import msgspec

    from tunesmith.flow.datasets.versions import evaluation_rows

    limit = ["--clean.max_dropped", str(share(max_dropped))] if max_dropped is not None else []
    data, overrides = words_of(context.args, data)
    with datasets(config, as_json, [*overrides, *limit]) as desk:
        before = desk.find(data)
        version, done, ledger = desk.cleaned(before, evaluation_rows(desk, against or ()), name)
        result = {
            "version": msgspec.to_builtins(version),
            "before": len(before.rows),
            "after": len(done.rows),
            "fates": ledger.counts(),
            "rules": ledger.rules(),
            "personal_data": done.personal_data,
            "near_duplicate_pairs": len(done.pairs.left),
            "contaminated": len(done.contaminated),
        }
        words = [f"{counted(len(before.rows), 'row')}, {len(done.rows)} left"]
        words += [f"  {rule:<18}{n:>7} rows" for rule, n in ledger.rules().items()]
        words += [f"  personal data: {kind} in {counted(n, 'row')}" for kind, n in done.personal_data.items()]
        clusters = len(done.rows) - len(set(done.clusters.tolist()))
        words += [f"  near-duplicates that stay: {counted(clusters, 'row')} beside the first of their cluster"] if clusters else []
        emit(result, as_json, "\n".join([*words, version_text(version), "next: tunesmith data split, tunesmith data ledger"]))


@app.command(context_settings=OVERRIDES)
def split(
    context: typer.Context, data: DataOption = "latest", name: NoteOption = "", config: file_option = CONFIG, as_json: Json = False
) -> None:
    """Divide by the `split` section: deterministic, near-duplicates and groups whole; leakage in words and in meaning is measured and
    refused above its limit (exit 3).

    Example: tunesmith data split --split.test 0.1 --split.by stratified
    """
    import msgspec

    from tunesmith.flow.datasets.leaks import as_plain, lines_of

    data, overrides = words_of(context.args, data)
    with datasets(config, as_json, overrides) as desk:
        version, parts = desk.divided(desk.find(data), name)
        leaks = {part: {**msgspec.to_builtins(leak), "share": leak.share} for part, leak in parts.leakage.items()}
        words = [
            f"{part}: {leak.exact} exact and {leak.near} near-duplicates of training rows among {leak.rows}"
            for part, leak in parts.leakage.items()
        ]
        overlap = as_plain(parts.meaning)
        result = {"version": msgspec.to_builtins(version), "leakage": leaks, "meaning": overlap, "notes": list(parts.notes)}
        emit(result, as_json, "\n".join([version_text(version), *words, *lines_of(parts.meaning), *parts.notes]))


@app.command()
def show(
    data: DataArgument = "latest",
    part: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many rows.")] = 5,
    row: Annotated[str | None, typer.Option(help="One row: its id, file:line or number.")] = None,
    grep: Annotated[str | None, typer.Option(help="Only rows with these words, case aside.")] = None,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """The rows themselves.

    Example: tunesmith data show --split test -n 3
    """
    from tunesmith.flow.datasets.versions import shown, text_of

    with datasets(config, as_json) as desk:
        dataset = desk.find(data)
        chosen = [dataset.find(row)] if row is not None else dataset.part(part)
        entries = (shown(item) for item in chosen)
        fits = [entry for entry in entries if grep is None or any(grep.lower() in turn["text"].lower() for turn in entry["turns"])]
        counts = {name: len(each) for name, each in dataset.splits.items()}
        result = {"data": dataset.name, "splits": counts, "fitting": len(fits), "rows": fits[:rows]}
        head = f"{dataset.name}: {', '.join(f'{name} {n}' for name, n in counts.items())}; {min(rows, len(fits))} of {len(fits)} shown"
        emit(result, as_json, "\n".join([head, *(text_of(entry) for entry in fits[:rows])]))


@app.command()
def mask(
    row: Annotated[str, typer.Argument(help="The row: its id, file:line or number.")],
    data: DataOption = "latest",
    base: Annotated[str, typer.Option(help="Whose tokens (default: the project's base).")] = "",
    max_length: Annotated[int | None, typer.Option(help="Tokens beyond this are cut.")] = None,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """A row's exact tokens as the base sees them: trained (green), read only (plain), cut (red, struck out).

    Example: tunesmith data mask support.jsonl:17 --base smollm2-135m
    """
    from tunesmith.core.chat import Renderer
    from tunesmith.core.errors import UsageError
    from tunesmith.flow.datasets import tokens

    with datasets(config, as_json) as desk:
        base = base or desk.settings.base
        if not base:
            raise UsageError(
                "whose tokens?",
                allowed="--base NAME, a folder, an alias, run",
                remedy="--base smollm2-135m, or put base: into tunesmith.yaml",
            )
        entry = desk.find(data).find(row)
        sides = tokens.mask(entry, Renderer.load(desk.tokens_of(base)), max_length)
    if as_json:
        emit({"row": entry.id, "origin": entry.origin, "base": base, "sides": sides}, True, "")
        return
    _print_mask(entry.origin, sides)


_STYLES = {"trained": "black on green", "context": "", "cut": "red strike"}
_SIGNS = {"trained": ("[[", "]]"), "context": ("", ""), "cut": ("~~", "~~")}


def _print_mask(origin: str, sides: Sequence[dict[str, Any]]) -> None:
    """Coloured on a terminal; in a pipe trained runs stand in [[ ]], what is cut in ~~ ~~."""
    from itertools import groupby

    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for side in sides:
        counts = side["counts"]
        lost = "" if side["trained_before_the_cut"] else "; NOTHING of it would be trained"
        console.print(
            f"{printable(origin)} ({side['side']}): {sum(counts.values())} tokens, {counts['trained']} trained, {counts['cut']} cut{lost}",
            markup=False,
        )
        text = Text()
        for state, tokens in groupby(side["tokens"], key=lambda token: str(token["state"])):
            if console.is_terminal:
                for number, token in enumerate(tokens):
                    text.append(printable(token["text"]), style=f"{_STYLES[state]} {'underline' if number % 2 else ''}")
            else:
                before, after = _SIGNS[state]
                text.append(before + "".join(printable(token["text"]) for token in tokens) + after)
        console.print(text)


@app.command()
def why(
    row: Annotated[str, typer.Argument(help="The row: its id, file:line or line number.")],
    data: DataOption = "latest",
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """What became of an input row, by which rule and why; its text before and after.

    Example: tunesmith data why support.jsonl:17
    """
    from tunesmith.flow.datasets.versions import text_of

    with datasets(config, as_json) as desk:
        dataset = desk.find(data)
        lines = desk.why(dataset, row)
        words = []
        for line in lines:
            how = f" by {line['rule']}" if line["rule"] else ""
            words.append(f"{line['origin']}: {line['fate']}{how}" + (f" (in {line['split']})" if line["split"] else ""))
            words += [f"  reason: {line['reason']}"] if line["reason"] else []
            for title, key in (("it came in as", "came_in"), ("it is now", "now"), ("it repeats", "repeats")):
                words += [f"{title}:", text_of(line[key], 600)] if line[key] else []
        emit({"data": dataset.name, "rows": lines}, as_json, "\n".join(words))


@app.command()
def ledger(
    data: DataArgument = "latest",
    rule: Annotated[str | None, typer.Option(help="Only rows that this rule decided, such as near_duplicate.")] = None,
    fate: Annotated[str | None, typer.Option(help="kept, mended, dropped, truncated or duplicate_of.")] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many lines are shown.")] = 20,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """The fate of every input row; the counts add up, or the command fails.

    Example: tunesmith data ledger --rule near_duplicate
    """
    from typing import get_args

    import msgspec

    from tunesmith.core.errors import NotFound, UsageError, nearest
    from tunesmith.core.types import Fate

    with datasets(config, as_json) as desk:
        dataset = desk.find(data)
        dataset.ledger.check(len(dataset.ledger), len(dataset.rows))
        fates, rules = dataset.fates.counts(), dataset.fates.rules()
        known = sorted({name for line in dataset.fates for name in line.rule.split(", ") if name})
        if rule is not None and rule not in known:
            raise NotFound(
                f"no row was decided by '{rule}'", allowed=", ".join(known) or "no rule did anything", remedy=nearest(rule, known)
            )
        if fate is not None and fate not in get_args(Fate):
            raise UsageError(f"no fate '{fate}'", allowed=", ".join(get_args(Fate)), remedy=nearest(fate, get_args(Fate)))
        lines = [line for line in dataset.fates if (rule is None or rule in line.rule.split(", ")) and (fate is None or line.fate == fate)]
        head = [f"{dataset.name}: {counted(len(dataset.fates), 'row')} came in; " + ", ".join(f"{name} {n}" for name, n in fates.items())]
        head += [f"  {name:<18}{n:>7} rows" for name, n in rules.items()]
        body = [
            f"{line.origin}  {line.fate}" + (f" {line.other}" if line.other else "") + f"  {line.rule}  {line.reason}".rstrip()
            for line in lines[:rows]
        ]
        more = [f"… and {len(lines) - rows} more"] if len(lines) > rows else []
        listed = [msgspec.structs.asdict(line) for line in lines[:rows]]
        result = {
            "data": dataset.name,
            "inputs": len(dataset.fates),
            "fates": fates,
            "rules": rules,
            "fitting": len(lines),
            "lines": listed,
        }
        emit(result, as_json, "\n".join([*head, *(body if rule or fate else []), *(more if rule or fate else [])]))


@app.command()
def log(config: file_option = CONFIG, as_json: Json = False) -> None:
    """The versions and the splits that runs made, newest first, each with the one that it came from.

    Example: tunesmith data log
    """
    import datetime

    import msgspec

    with datasets(config, as_json) as desk:
        versions = desk.log()
    rows = [
        (
            version.id[:12],
            datetime.datetime.fromtimestamp(version.created).strftime("%Y-%m-%d %H:%M"),
            version.recipe.get("step", "?"),
            (version.parent or "–")[:12],
            ", ".join(f"{name} {n}" for name, n in version.counts.items()),
            version.note,
        )
        for version in versions
    ]
    text = table(rows, ("version", "created", "step", "from", "rows", "note")) if rows else "no versions yet: tunesmith data import FILE"
    emit({"versions": msgspec.to_builtins(versions)}, as_json, text)


@app.command()
def fetch(config: file_option = CONFIG, as_json: Json = False) -> None:
    """Read the project's URLs and queries anew; until then runs use what they gave when they were read first.

    Example: tunesmith data fetch
    """
    with datasets(config, as_json) as desk:
        read = desk.fetch()
    emit({"read": read}, as_json, "\n".join(f"read anew: {name}" for name in read) or "the project has no URLs and no queries")


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A version, or other DATA.")],
    new: Annotated[str, typer.Argument(help="A version, or other DATA.")] = "latest",
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many rows of each kind are shown.")] = 3,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Rows that were added, removed, changed, or moved to another split.

    Example: tunesmith data diff 3f2a 9c01
    """
    from tunesmith.flow.datasets.versions import differences, text_of

    with datasets(config, as_json) as desk:
        changes = differences(desk, old, new)
    words = [f"{changes['old']} → {changes['new']}: " + ", ".join(f"{n} {kind}" for kind, n in changes["counts"].items())]
    for kind in ("added", "removed", "changed"):
        for change in changes[kind][:rows]:
            words += [f"{kind}: ", *(text_of(change[side], 400) for side in ("before", "after") if change[side])]
    words += [f"moved: {move['origin']} from {move['from']} to {move['to']}" for move in changes["moved"][:rows]]
    emit(changes, as_json, "\n".join(words))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The file: .jsonl, .jsonl.gz, .json, .csv, .tsv or .parquet.")],
    data: DataOption = "latest",
    format: Annotated[
        str,
        typer.Option(
            help="tunesmith, chat, rft, dpo, evals, trl, trl_preference, trl_kto, labelled_chat, alpaca, sharegpt, columns, text, kiln or "
            "label_studio."
        ),
    ] = "chat",
    part: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    extras: Annotated[bool, typer.Option("--extras/--strict", help="Strict leaves out all that is not the format's own.")] = True,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Write rows in another format; importing the file again gives the same rows.

    Example: tunesmith data export train.jsonl --split train --format chat --strict
    """
    from tunesmith.data.export import export as write

    with datasets(config, as_json) as desk:
        rows = desk.find(data).part(part)
        n = write(rows, out, format, extras=extras)
    emit({"written": str(out), "rows": n, "format": format}, as_json, f"wrote {counted(n, 'row')} as {format}: {out}")
