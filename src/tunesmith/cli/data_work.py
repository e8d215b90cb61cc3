"""Commands about people's work on data: labels, what to label next, review, new rows from a teacher, leaks and personal data."""

from __future__ import annotations

import getpass
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.data import CONFIG, DataArgument, DataOption, app, datasets
from tunesmith.cli.shared import OVERRIDES, Json, emit, file_option, shown
from tunesmith.core.counted import counted
from tunesmith.core.terminal import printable

if TYPE_CHECKING:
    from tunesmith.flow.datasets.versions import Datasets
    from tunesmith.flow.rows import Rows

AnnotatorOption = Annotated[str, typer.Option("--as", help="Who judges (default: the user's name).")]
EncoderOption = Annotated[str, typer.Option(help="Use sentence embeddings too, such as minilm-l6-v2.")]


@app.command()
def labels(
    data: DataArgument = "latest",
    encoder: EncoderOption = "",
    base: Annotated[str, typer.Option(help="Also compare each answer's loss with and without its question under this base (slow).")] = "",
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many are shown.")] = 20,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Rows whose label or answer is probably wrong, surest first, with the reason; `data review` shows them first.

    Example: tunesmith data labels --encoder minilm-l6-v2
    """
    from tunesmith.flow.datasets import people

    with datasets(config, as_json) as desk:
        suspects = people.suspects(desk, desk.find(data), encoder=encoder, base=base)
    words = [
        f"{suspect['origin']}  {suspect['row']}  [{suspect['method']} {suspect['score']:.2f}]\n    {suspect['reason']}"
        for suspect in suspects[:rows]
    ]
    counts: dict[str, int] = {}
    for suspect in suspects:
        counts[suspect["method"]] = counts.get(suspect["method"], 0) + 1
    summary = ", ".join(f"{n} by {method}" for method, n in counts.items()) or "none"
    emit({"suspects": suspects, "methods": counts}, as_json, "\n".join([f"suspects: {summary}", *words, "next: tunesmith data review"]))


@app.command("next")
def next_(
    pool: Annotated[str, typer.Argument(help="Rows without labels: a file or other DATA.")],
    number: Annotated[int, typer.Option("--rows", "-n", help="How many to label next.")] = 20,
    known: Annotated[str, typer.Option(help="What is labelled already; 'none' for nothing.")] = "latest",
    model: Annotated[str, typer.Option(help="Take its uncertainty into account (it answers the whole pool).")] = "",
    encoder: EncoderOption = "",
    failures: Annotated[Path | None, typer.Option(help="A report's failures.jsonl: rows like what went wrong first.")] = None,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Which rows to label next: those that a model is unsure of, that are like its failures, and unlike what is known and each other.

    Example: tunesmith data next pool.jsonl --rows 50
    Example: tunesmith data next pool.jsonl --failures evaluation-report/failures.jsonl
    """
    from tunesmith.flow.datasets import people, synth

    with datasets(config, as_json) as desk, synth.Teachers(desk) as models:
        have = None if known == "none" else desk.find(known)
        asked = models.resolve(model) if model else None
        choices = people.choose_next(desk, desk.find(pool), have, number, model=asked, encoder=encoder, failures=failures)
    words = [f"{choice['origin']}  {_why(choice)}\n    {_asked(choice)[:160]}" for choice in choices]
    emit({"rows": choices}, as_json, "\n".join(words))


def _why(choice: dict[str, Any]) -> str:
    return f"uncertain {choice['uncertainty']:.2f}, wanted {choice['wanted']:.2f}, far {choice['distance']:.2f}"


def _asked(entry: dict[str, Any]) -> str:
    return " ".join(turn["text"] for turn in entry["turns"] if turn["role"] == "user") or entry["turns"][0]["text"]


@app.command()
def review(
    data: DataArgument = "latest",
    annotator: AnnotatorOption = "",
    agreement: Annotated[bool, typer.Option("--agreement", help="How far the annotators agree, with intervals.")] = False,
    write: Annotated[bool, typer.Option("--apply", help="Put the verdicts into a new version: majority decides.")] = False,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many rows are listed or asked.")] = 20,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Accept, edit or reject rows at the terminal, suspects first; in a pipe and with --json the waiting rows are listed.

    Example: tunesmith data review --as maria
    """
    import msgspec

    from tunesmith.flow.datasets import people

    name = annotator or getpass.getuser()
    with datasets(config, as_json) as desk:
        if agreement:
            agreed = people.agreement(desk)
            emit(agreed, as_json, _agreement_text(agreed))
            return
        have = desk.find(data)
        if write:
            version, changed = people.reviewed(desk, have)
            result = {"version": msgspec.to_builtins(version), "changed": changed}
            emit(result, as_json, f"{counted(changed, 'row')} changed or taken out; version {version.id}")
        elif as_json or not sys.stdin.isatty():
            waiting = people.queue(desk, have, name, rows)
            emit({"annotator": name, "rows": waiting}, as_json, "\n".join(_asking(row) for row in waiting) or "nothing is waiting")
        else:
            _interview(desk, have, name, rows)


@app.command()
def verdict(
    row: Annotated[str, typer.Argument(help="The row: its id, file:line or number.")],
    action: Annotated[str, typer.Argument(help="accept, reject or edit.")],
    answer: Annotated[str | None, typer.Argument(help="The better answer, with edit.")] = None,
    data: DataOption = "latest",
    annotator: AnnotatorOption = "",
    comment: Annotated[str, typer.Option(help="Why.")] = "",
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """What one annotator says of one row; it is on disk when the command returns.

    Example: tunesmith data verdict support.jsonl:17 edit "Open from nine." --as maria
    """
    from tunesmith.core.errors import UsageError, nearest

    actions = ("accept", "reject", "edit")
    if action not in actions:
        raise UsageError(f"no action '{action}'", allowed=", ".join(actions), remedy=nearest(action, actions))
    with datasets(config, as_json) as desk:
        stored = _verdict(desk, desk.find(data).find(row).id, annotator or getpass.getuser(), action, answer, comment)
    emit(stored, as_json, f"{stored['action']}: {stored['row']} by {stored['annotator']}")


def _verdict(desk: Datasets, row: str, name: str, action: str, answer: str | None, comment: str) -> dict[str, Any]:
    import msgspec

    from tunesmith.data.review import Verdict, append
    from tunesmith.flow.datasets.people import verdicts_file

    given = Verdict(row=row, annotator=name, action=action, answer=answer, comment=comment)  # type: ignore[arg-type]
    stored: dict[str, Any] = msgspec.structs.asdict(append(verdicts_file(desk), given))
    return stored


def _asking(entry: dict[str, Any]) -> str:
    from tunesmith.flow.datasets.versions import text_of

    return text_of(entry) + (f"\n  suspect: {entry['why']}" if entry["why"] else "")


def _interview(desk: Datasets, have: Rows, name: str, rows: int) -> None:
    """One row after the other at the terminal; each verdict is on disk before the next row is shown."""
    from tunesmith.flow.datasets import people

    waiting = people.queue(desk, have, name, rows)
    for number, entry in enumerate(waiting, start=1):
        shown(f"\n--- {number} of {len(waiting)} ---\n{_asking(entry)}")
        action, comment = _said()
        if action == "quit":
            break
        if action != "skip":
            answer = _better(entry["answer"]) if action == "edit" else None
            _verdict(desk, entry["id"], name, action, answer, comment)
    shown(f"{len(waiting)} rows were shown; tunesmith data review --apply puts the verdicts into a version")


def _said() -> tuple[str, str]:
    """What the annotator does with a row, asked until it is one of the actions, and the comment after it."""
    actions = ("accept", "edit", "reject", "skip", "quit")
    while True:
        word, _, comment = str(typer.prompt("[a]ccept, [e]dit, [r]eject, [s]kip, [q]uit; a comment may follow", default="a")).partition(" ")
        for action in actions:
            if word and action.startswith(word.lower()):
                return action, comment.strip()
        shown(f"'{word}' is none of {', '.join(actions)}", err=True)


def _better(answer: str) -> str:
    """The better answer, typed at the terminal; one of several lines is edited in $EDITOR."""
    if "\n" not in answer and printable(answer) == answer:
        return str(typer.prompt("the better answer", default=answer)).strip()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.txt"
        file.write_text(answer, "utf-8")
        subprocess.run([*shlex.split(os.environ.get("EDITOR", "vi")), str(file)], check=False)
        return file.read_text("utf-8").strip("\n")


def _agreement_text(agreed: dict[str, Any]) -> str:
    lines = [f"{agreed['verdicts']} verdicts by {', '.join(agreed['annotators'])}"]
    for name, interval in agreed["agreement"].items():
        lines.append(f"  {name.replace('_', ' ')}: {interval['estimate']:.2f} ({interval['low']:.2f} … {interval['high']:.2f})")
    return "\n".join(lines)


@app.command(context_settings=OVERRIDES)
def synth(
    context: typer.Context,
    method: Annotated[str, typer.Argument(help="seeds, documents, topics, evolve or preferences.")],
    teacher: Annotated[str, typer.Option(help="A catalogue name, URL#MODEL, openai:MODEL, a deployed alias, or echo.")],
    data: Annotated[str, typer.Option(help="Seeds, and what must not be repeated; 'none' for nothing.")] = "latest",
    add: Annotated[bool, typer.Option("--add", help="Add the new rows to the training rows of DATA.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask the teacher without asking you first.")] = False,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Make new rows with a teacher; the most that it can cost is said before, what it costs while it works.

    More: --count 20 (documents: for each part) · --of FOLDER or TOPIC · --system PROMPT · --judge MODEL · --criterion TEXT ·
    --grader module:function · --against '[test.jsonl]' · --temperature 0.8 · --max_tokens 1024 · --near 0.7 · --min_score 0.5 ·
    --seed 0 · --usd_in 0.3 --usd_out 1.2 (US dollars a million tokens, where the price list does not know the teacher).

    Example: tunesmith data synth seeds --teacher openai:gpt-4.1-mini --count 100 --yes
    """
    import msgspec

    from tunesmith.core.errors import UsageError
    from tunesmith.flow.datasets import synth
    from tunesmith.flow.datasets.versions import evaluation_rows

    wish = synth.wished(method, teacher, context.args)
    with datasets(config, as_json) as desk, synth.Teachers(desk) as models:
        have = None if data == "none" else desk.find(data)
        if wish.method == "preferences":
            if have is None:
                raise UsageError("preference pairs need rows with good answers", allowed="--data DATA")
            rows, refused = synth.pairs(desk, wish, have, models)
            cost: dict[str, float] = {}
        else:
            asked = synth.requests(wish, have, models.teacher(teacher))
            cost = synth.estimate(asked, wish)
            _ask_first(cost, yes, as_json, teacher)
            made = synth.make(desk, wish, have, asked, evaluation_rows(desk, wish.against), models)
            rows, refused, cost = list(made.rows), made.refused, {**cost, "usd_spent": made.usd}
        version = synth.keep(desk, wish, rows, have, add=add and method != "preferences") if rows else None
    reasons: dict[str, int] = {}
    for reason, _ in refused:
        reasons[reason] = reasons.get(reason, 0) + 1
    words = [
        f"{len(rows)} new rows" + (f": version {version.id}, now the latest" if version else "; nothing was written"),
        *_not_kept(reasons),
    ]
    spent = [f"it cost ${cost['usd_spent']:.4f}"] if cost.get("usd_spent") else []
    stored = msgspec.to_builtins(version) if version else None
    emit({"version": stored, "rows": len(rows), "refused": reasons, "cost": cost}, as_json, "\n".join([*words, *spent]))


def _not_kept(reasons: dict[str, int]) -> list[str]:
    return [f"  not kept: {n} × {reason}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1])[:8]]


def _ask_first(cost: dict[str, float], yes: bool, as_json: bool, teacher: str) -> None:
    from tunesmith.core.errors import UsageError

    price = f"{cost['requests']:.0f} requests to {teacher}, about {cost['prompt_tokens']:,.0f} tokens in and at most "
    price += f"{cost['completion_tokens']:,.0f} out" + (f": at most ${cost['usd']:.4f}" if cost["usd"] else "; no price is known for it")
    if not as_json:
        shown(price, err=True)
    if yes or not cost["usd"]:
        return
    if as_json or not sys.stdin.isatty():
        raise UsageError(f"nothing was asked: {price}", remedy="say --yes to spend it")
    if not typer.confirm("Ask the teacher?", err=True):
        raise UsageError("nothing was asked, as you said")


@app.command()
def contamination(
    evaluation: Annotated[list[str], typer.Argument(help="Evaluation sets: files or other DATA.")],
    data: DataOption = "latest",
    threshold: Annotated[float, typer.Option(help="Jaccard similarity from which wholes count as the same.")] = 0.8,
    containment: Annotated[float, typer.Option(help="Share of an item's word pairs from which a row holds it.")] = 0.5,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many are shown.")] = 10,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Training rows that hold evaluation items, whole, in part or edited. Exit 3 when there are any; `data clean --against` drops them.

    Example: tunesmith data contamination test.jsonl
    """
    from tunesmith.data.contamination import Contamination
    from tunesmith.flow.datasets import people
    from tunesmith.flow.datasets.versions import evaluation_rows

    with datasets(config, as_json) as desk:
        have = desk.find(data)
        asked = evaluation_rows(desk, evaluation)
        matches = people.leaks(have, asked, Contamination(threshold=threshold, containment=containment))
    words = [f"{len(matches)} of {counted(len(have.rows), 'row')} hold one of {len(asked)} evaluation items"]
    for match in matches[:rows]:
        how = f"Jaccard {match['jaccard']:.2f}" if match["jaccard"] else f"{match['containment']:.0%} of its word pairs"
        words.append(f"{match['row']} holds {match['item']} ({how})\n    {match['text'][:160]}\n    {match['item_text'][:160]}")
    emit({"rows": len(have.rows), "items": len(asked), "found": matches}, as_json, "\n".join(words))
    if matches:
        raise typer.Exit(3)


@app.command()
def pii(
    data: DataArgument = "latest",
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="Only these kinds.")] = None,
    samples: Annotated[int, typer.Option("--samples", "-n", help="How many places of each kind are shown.")] = 3,
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Personal data and secrets that patterns find, with the words around them; `data clean` can redact or pseudonymise them.

    Example: tunesmith data pii support.jsonl --kind email
    """
    from tunesmith.data.pii import KINDS
    from tunesmith.flow.datasets import people

    with datasets(config, as_json) as desk:
        counts = people.personal(desk.find(data), tuple(kinds) if kinds else KINDS, samples=samples)
    words = [f"{counts['with_any']} of {counts['rows']} rows hold personal data or secrets (persons and addresses are not looked for)"]
    for kind, n in counts["kinds"].items():
        words.append(f"  {kind}: {counted(n, 'row')}")
        words += [
            f"    {place['origin']}  …{place['before']}>>{place['found']}<<{place['after']}…".replace("\n", " ")
            for place in counts["samples"][kind]
        ]
    emit(counts, as_json, "\n".join(words))
