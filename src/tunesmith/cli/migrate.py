"""Commands that move fine-tunes out before their provider switches them off."""

from __future__ import annotations

import datetime
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from tunesmith.cli.shared import OVERRIDES, Json, emit, shown, told
from tunesmith.core.counted import counted

migrate_app = typer.Typer(help="Move fine-tunes here before their provider switches them off.", no_args_is_help=True, rich_markup_mode=None)

BaseURL = Annotated[str | None, typer.Option("--base-url", help="A server that speaks the API (default: OpenAI, or OPENAI_BASE_URL).")]
Key = Annotated[str | None, typer.Option("--api-key", help="Its key (default: OPENAI_API_KEY).")]
Today = Annotated[str | None, typer.Option("--today", help="Count days from this date, as YYYY-MM-DD (default: today).")]


def _date(text: str | None) -> datetime.date:
    from tunesmith.core.errors import UsageError

    try:
        return datetime.date.fromisoformat(text) if text else datetime.datetime.now().astimezone().date()
    except ValueError as error:
        raise UsageError(f"'{text}' is no date", where="--today", allowed="YYYY-MM-DD") from error


@migrate_app.command("inventory")
def inventory(base_url: BaseURL = None, api_key: Key = None, today: Today = None, as_json: Json = False) -> None:
    """Every fine-tuned model with its job, its files and the days that it has left.

    Example: tunesmith migrate inventory
    """
    import msgspec

    from tunesmith.flow import migrate

    fine_tunes = migrate.inventory(migrate.client_for(base_url, api_key), _date(today))
    lines = [
        f"{'off' if (tune.days_left or 0) < 0 else f'{tune.days_left} days' if tune.days_left is not None else 'no date':>9}  "
        f"{tune.model}  (job {tune.job or 'unknown'}, {tune.method}; {tune.shutdown or 'no date'}: {tune.shutdown_source})"
        for tune in fine_tunes
    ]
    lines.append(f"{len(fine_tunes)} fine-tuned models; new jobs at OpenAI end on {migrate.shutdowns().new_jobs_until}")
    emit({"models": msgspec.to_builtins(fine_tunes)}, as_json, "\n".join(lines))


@migrate_app.command("record", context_settings=OVERRIDES)
def record(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="The old model's name.")],
    prompts: Annotated[str, typer.Argument(help="Rows to ask: any file that `data import` reads.")],
    out: Annotated[Path, typer.Option(help="Where the golden set is written.")] = Path("golden.jsonl"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before spending money.")] = False,
    base_url: BaseURL = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Keep the old model's answers as a golden set while it still answers. Interrupted, the next call continues. More options:
    --max_tokens (longest answer, 1024) --concurrency (requests at a time, 4).

    Example: tunesmith migrate record ft:gpt-4o-mini:acme::abc123 prompts.jsonl
    """
    from tunesmith.core.types import Sampling
    from tunesmith.flow import migrate
    from tunesmith.flow.evaluation.options import options
    from tunesmith.models.openai_api import OpenAIModel

    (asked,) = options(context.args, migrate.Recording)
    old = OpenAIModel(model, base_url=base_url, api_key=api_key, concurrency=asked.concurrency)
    rows = migrate.prompts_of(prompts, Path("tunesmith.yaml"))
    usd = migrate.most_usd(model, rows, asked.max_tokens)
    if usd is not None:
        shown(f"{counted(len(rows), 'row')}, at most {max(usd, 0.01):.2f} USD at OpenAI's prices", err=True)
        if not yes:
            typer.confirm("ask the old model?", abort=True, err=True)
    usage = migrate.record(old, rows, out, Sampling(max_tokens=asked.max_tokens))
    emit(
        usage,
        as_json,
        f"{counted(usage['rows'], 'answer')} in {out} ({usage['completion_tokens']} tokens written, {usage['failed']} without an answer)",
    )


@migrate_app.command("retrain")
def retrain(
    model: Annotated[str, typer.Argument(help="The old model's name, or its job id.")],
    base: Annotated[str, typer.Option(help="The local base to train.")] = "smollm2-135m",
    folder: Annotated[Path, typer.Option(help="Where the new project is written.")] = Path("migrated"),
    data: Annotated[Path | None, typer.Option(help="Your own copy of the training file.")] = None,
    golden: Annotated[Path | None, typer.Option(help="The golden set that the replacement will be compared on.")] = None,
    base_url: BaseURL = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Download the training files, translate the job's settings and write a project that trains the replacement here.

    Example: tunesmith migrate retrain ft:gpt-4o-mini:acme::abc123 --base Qwen/Qwen2.5-0.5B-Instruct
    """
    from tunesmith.core.atomic import write_atomic
    from tunesmith.core.errors import NotFound, nearest
    from tunesmith.flow import migrate

    client = migrate.client_for(base_url, api_key)
    fine_tunes = migrate.inventory(client, _date(None))
    chosen = next((fine_tune for fine_tune in fine_tunes if model in (fine_tune.model, fine_tune.job)), None)
    if chosen is None:
        names = [fine_tune.model for fine_tune in fine_tunes]
        raise NotFound(
            f"no fine-tune '{model}'", where=str(client.base_url), allowed=", ".join(names) or "none there", remedy=nearest(model, names)
        )
    folder.mkdir(parents=True, exist_ok=True)
    training = data.resolve() if data else migrate.download(client, chosen, folder)["training"].resolve()
    file = folder / "tunesmith.yaml"
    if file.exists():
        raise NotFound(f"'{file}' is already there", remedy="give another --folder")
    write_atomic(file, migrate.translated(chosen, base=base, data=training, golden=golden))
    name = migrate.local_name(chosen)
    text = f"wrote {file}; look it over, then: tunesmith run --config {file}\nthe replacement will answer as {name}"
    emit({"project": str(file), "alias": name}, as_json, text)


@migrate_app.command("compare")
def compare(
    golden: Annotated[Path, typer.Argument(help="The golden set that `record` wrote.")],
    model: Annotated[str, typer.Option(help="The new model's name at --base-url.")],
    base_url: BaseURL = "http://127.0.0.1:8000/v1",
    api_key: Key = "none",
    metrics: Annotated[str, typer.Option(help="Metrics of likeness, separated by commas.")] = "normalized_match,rougeL",
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 1024,
    judge: Annotated[str | None, typer.Option(help="A model that says which answer is better: a name, URL#MODEL, openai:MODEL.")] = None,
    as_json: Json = False,
) -> None:
    """How alike the replacement's answers are to the recorded ones, with intervals, latency, tokens and cost.

    Example: tunesmith migrate compare golden.jsonl --model my-model
    """
    from tunesmith.core.atomic import write_atomic
    from tunesmith.core.types import Sampling
    from tunesmith.flow import migrate
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.models.openai_api import OpenAIModel

    new = OpenAIModel(model, base_url=base_url, api_key=api_key)
    rows, out = migrate.golden_rows(golden), golden.with_suffix(".compare")
    with told(as_json) as progress, ExitStack() as stack:
        asked = stack.enter_context(bench(Path("tunesmith.yaml"), progress)).models.resolve(judge) if judge else None
        likeness = migrate.likeness(rows, new, out, Sampling(max_tokens=max_tokens), metrics.split(","), asked)
    write_atomic(out / "compare.json", json.dumps(likeness))
    lines = [
        f"{name}: {interval['estimate']:.3f} ({interval['low']:.3f} … {interval['high']:.3f})"
        for name, interval in likeness["agreement"].items()
    ]
    head = (
        f"{likeness['rows']} recorded answers, {len(likeness['differing'])} differ (tunesmith migrate report --golden {golden} shows them)"
    )
    emit(likeness, as_json, "\n".join([head, *lines, *migrate.sentences(likeness)]))


@migrate_app.command("report")
def report(
    golden: Annotated[Path | None, typer.Option(help="The golden set that `compare` was run on.")] = None,
    out: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("migration.md"),
    base_url: BaseURL = None,
    api_key: Key = None,
    today: Today = None,
    as_json: Json = False,
) -> None:
    """One Markdown page of the inventory and the comparison.

    Example: tunesmith migrate report --golden golden.jsonl
    """
    from tunesmith.core.atomic import write_atomic
    from tunesmith.core.errors import NotFound
    from tunesmith.flow import migrate

    file = golden.with_suffix(".compare") / "compare.json" if golden else None
    if file is not None and not file.is_file():
        raise NotFound(f"no comparison '{file}'", remedy=f"tunesmith migrate compare {golden} --model NAME")
    compared = json.loads(file.read_text("utf-8")) if file else None
    write_atomic(out, migrate.report(migrate.inventory(migrate.client_for(base_url, api_key), _date(today)), compared))
    emit({"written": str(out)}, as_json, f"wrote {out}")
