"""Moves fine-tunes out before their provider switches them off: what there is, what they answer, a local replacement, how alike it is.
Works against any server that speaks the fine-tuning API. Knows nothing about how the replacement is trained."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import DataError, Fault, NotFound, SourceUnavailable, UsageError
from tunesmith.core.load import need
from tunesmith.core.progress import Silent
from tunesmith.core.row_kinds import as_examples
from tunesmith.core.rows import Row, read_jsonl, write_jsonl
from tunesmith.core.tokens import OpenAITokens
from tunesmith.core.types import Answer, Document, Example, Message, Prompt, Record, Sampling, example_id
from tunesmith.data.collect import IncomingRow, Source, faults_of, stream_all
from tunesmith.data.formats.registry import parse_row
from tunesmith.flow.datasets.tokens import price_of
from tunesmith.train.methods import JOB_METHODS, METHODS
from tunesmith.train.openai_job import plain_text

if TYPE_CHECKING:
    from tunesmith.evaluate.run import Evaluation
    from tunesmith.models.base import Model


class Shutdown(Record, frozen=True):
    """A dated end of a hosted base; `sure` is False where only secondary sources name it."""

    date: datetime.date
    sure: bool


class Shutdowns(Record, frozen=True):
    """The dated table that is used where the API itself carries no date."""

    collected: datetime.date
    new_jobs_until: datetime.date
    models: dict[str, Shutdown]


class FineTune(Record, frozen=True):
    """One fine-tuned model at the provider, with what is left of its making. `days_left` counts from today; negative: it is off."""

    model: str
    base: str
    job: str | None = None
    created: float | None = None
    method: str = "supervised"
    training_file: str | None = None
    validation_file: str | None = None
    hyperparameters: dict[str, Any] = {}
    shutdown: datetime.date | None = None
    shutdown_source: str = "unknown"
    days_left: int | None = None


class Recording(Record, frozen=True):
    """How the old model is asked: the longest answer in tokens, and how many requests at a time."""

    max_tokens: int = 1024
    concurrency: int = 4


def shutdowns() -> Shutdowns:
    """The dated table that ships with Tunesmith."""
    return msgspec.yaml.decode(resources.files("tunesmith.flow").joinpath("shutdowns.yaml").read_bytes(), type=Shutdowns)


def client_for(base_url: str | None, api_key: str | None = None) -> Any:
    """An `openai.OpenAI` for that server (None: OpenAI, or OPENAI_BASE_URL). Raises UsageError when no key is known."""
    openai = need("openai", extra="openai")
    try:
        return openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=5)
    except openai.OpenAIError as error:
        raise UsageError(f"no client: {error}", remedy="set OPENAI_API_KEY, or give --api-key") from error


def inventory(client: Any, today: datetime.date) -> list[FineTune]:
    """Every fine-tuned model that succeeded, the most urgent first.

    Raises SourceUnavailable when the server cannot be asked.
    """
    openai = need("openai", extra="openai")
    try:
        jobs = [job for job in client.fine_tuning.jobs.list(limit=100) if job.fine_tuned_model]
        listed = {model.id: model for model in client.models.list()}
    except openai.OpenAIError as error:
        raise SourceUnavailable(f"the models and jobs could not be listed: {error}", where=str(client.base_url)) from error
    fine_tunes = [_fine_tune(job, listed.get(job.fine_tuned_model), today) for job in jobs]
    known = {fine_tune.model for fine_tune in fine_tunes}
    orphans = [model for name, model in listed.items() if name.startswith("ft:") and name not in known and ":ckpt-step-" not in name]
    fine_tunes += [_ended(FineTune(model=model.id, base=model.id.split(":")[1]), model, today) for model in orphans]
    return sorted(fine_tunes, key=lambda fine_tune: (fine_tune.days_left is None, fine_tune.days_left, fine_tune.model))


def _fine_tune(job: Any, model: Any, today: datetime.date) -> FineTune:
    method = job.method.type if job.method else "supervised"
    settings = getattr(job.method, method, None) if job.method else None
    hyperparameters = (settings.hyperparameters if settings else None) or job.hyperparameters
    fine_tune = FineTune(
        model=job.fine_tuned_model,
        base=job.model,
        job=job.id,
        created=float(job.created_at),
        method=method,
        training_file=job.training_file,
        validation_file=job.validation_file,
        hyperparameters={key: value for key, value in hyperparameters.model_dump().items() if value is not None} if hyperparameters else {},
    )
    return _ended(fine_tune, model, today)


def _ended(fine_tune: FineTune, model: Any, today: datetime.date) -> FineTune:
    shutdown = getattr(model, "shutdown_date", None)
    if shutdown:
        date, source = datetime.date.fromisoformat(shutdown), "the provider's API"
    else:
        table = shutdowns()
        known = [name for name in table.models if fine_tune.base.startswith(name)]
        if not known:
            return fine_tune
        entry = table.models[max(known, key=len)]
        date, source = entry.date, f"table of {table.collected}{'' if entry.sure else ', secondary sources'}"
    return msgspec.structs.replace(fine_tune, shutdown=date, shutdown_source=source, days_left=(date - today).days)


def most_usd(model: str, rows: Sequence[Example], max_tokens: int) -> float | None:
    """The most that asking `model` for an answer to every row costs by the shipped price list, in US dollars; None without a price."""
    price = price_of(model)
    if price is None:
        return None
    asked = int(OpenAITokens(model.removeprefix("ft:")).rows(rows).sum())
    return (asked * price.input + len(rows) * max_tokens * price.output) / 1e6


def record(model: Any, rows: Sequence[Example], out: Path, sampling: Sampling) -> dict[str, Any]:
    """Ask the old model every row and keep its answers as a golden set: rows whose reference is what it said. Resumable: what was answered
    is never asked (or paid) again."""
    from tunesmith.evaluate.run import ask_all

    prompts = [Prompt(messages=row.prompt, tools=row.tools) for row in rows]
    answers = ask_all(model, prompts, sampling, out.with_suffix(".answers.jsonl"))
    golden = []
    for row, answer in zip(rows, answers, strict=True):
        if answer.finish_reason == "error":
            continue
        messages = (*row.prompt, Message(role="assistant", content=answer.text or None, tool_calls=answer.tool_calls))
        meta = {"recorded_from": model.name, "total_s": answer.total_s}
        meta |= {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        golden.append(Example(id=example_id(messages, row.tools), messages=messages, tools=row.tools, meta=meta, origin=row.origin))
    write_jsonl(out, golden)
    tokens = sum(answer.prompt_tokens for answer in answers), sum(answer.completion_tokens for answer in answers)
    return {
        "rows": len(golden),
        "failed": len(rows) - len(golden),
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "file": str(out),
    }


def golden_rows(path: Path) -> list[Example]:
    """The rows that `record` wrote. Raises NotFound."""
    return list(read_jsonl(path, Example))


def prompts_of(path: str, config: Path = Path("tunesmith.yaml")) -> list[Example]:
    """The rows of any file that the data room reads, or of another data word, as things to ask; a row of messages that ends in a question
    is asked whole.

    Raises DataError with the rows that cannot be asked.
    """
    if not Path(path).exists():
        from tunesmith.flow.datasets.versions import Datasets

        return as_examples(Datasets.open(config, Silent()).find(path).rows)
    rows, faults = [], []
    for incoming in stream_all(Source(path=path, unique_ids=False), {}):
        row = _unanswered(incoming) or incoming.row
        if row is not None and not isinstance(row, Document):
            rows += as_examples([row])
        else:
            faults += faults_of(incoming) or [Fault(incoming.origin, "document", "a document, not a question")]
    if faults:
        raise DataError("these rows cannot be asked", faults=faults, where=path, remedy="mend them, or leave them out; nothing was asked")
    return rows


def _unanswered(incoming: IncomingRow) -> Row | None:
    """A row of messages whose last turn nobody answered yet, with all of its turns; None for others."""
    if [code for code, _ in incoming.faults] != ["no_assistant"] and "trailing_turns" not in incoming.mends:
        return None
    row = incoming.raw if isinstance(incoming.raw, dict) else msgspec.json.decode(incoming.raw)
    return parse_row({"unanswered": True, **row}, "rft", origin=incoming.origin).row


def download(client: Any, fine_tune: FineTune, folder: Path) -> dict[str, Path]:
    """The files that the fine-tune was made from. Raises NotFound when the provider no longer has the training file."""
    openai = need("openai", extra="openai")
    files = {}
    for part, name in (("training", fine_tune.training_file), ("validation", fine_tune.validation_file)):
        if name is None:
            continue
        try:
            data = client.files.content(name).read()
        except openai.NotFoundError as error:
            if part == "validation":
                continue
            raise NotFound(
                f"the provider no longer has file '{name}'",
                where=str(client.base_url),
                remedy="give your own copy with --data, or train on recorded answers (tunesmith migrate record)",
            ) from error
        files[part] = folder / f"{part}.jsonl"
        write_atomic(files[part], plain_text(data))
    if "training" not in files:
        raise NotFound(f"'{fine_tune.model}' names no training file", remedy="give your own copy with --data")
    return files


def local_name(fine_tune: FineTune) -> str:
    """What the replacement is called here."""
    return fine_tune.model.removeprefix("ft:").replace(":", "-").replace("/", "-").strip("-")


def translated(fine_tune: FineTune, *, base: str, data: Path, golden: Path | None) -> str:
    """The `tunesmith.yaml` that trains a local replacement; what could not be carried over is said in it."""
    method, notes = JOB_METHODS.get(fine_tune.method, METHODS["sft"]), []
    if method.graded:
        notes.append(f"the original was trained with a grader ({fine_tune.method}); this starts from supervised training on the same rows")
        method = METHODS["sft"]
    train: dict[str, Any] = {"method": method.name}
    settings = fine_tune.hyperparameters
    for theirs, ours in (("n_epochs", "epochs"), ("batch_size", "batch_size")):
        if isinstance(settings.get(theirs), int):
            train[ours] = settings[theirs]
    if settings.get("learning_rate_multiplier", "auto") not in ("auto", None):
        notes.append(
            f"learning_rate_multiplier {settings['learning_rate_multiplier']} is relative to a rate that is not published: auto is used"
        )
    if fine_tune.validation_file is not None:
        notes.append("the provider's validation rows are not trained on: they are good prompts to record")
    if golden is not None:
        notes.append(f"then: tunesmith migrate compare {golden} --model <alias>")
    name = local_name(fine_tune)
    project = {
        "name": name,
        "sources": [{"path": str(data)}],
        "base": base,
        "train": train,
        "evaluate": {"metrics": ["normalized_match", "rougeL"]},
        "deploy": {"alias": name},
    }
    head = [f"# A local replacement of {fine_tune.model} (base {fine_tune.base}, job {fine_tune.job or 'unknown'})."]
    return "\n".join([*head, *(f"# {note}" for note in notes), msgspec.yaml.encode(project).decode()])


def likeness(
    golden: Sequence[Example], model: Model, out: Path, sampling: Sampling, metrics: Sequence[str], judge: Model | None = None
) -> dict[str, Any]:
    """How alike the new model's answers are to the recorded ones: each metric with its interval, latency and tokens of both, what the
    old ones cost, and, with a `judge`, which of the two answers it prefers, each pair in both orders."""
    from tunesmith.evaluate.compare import estimate
    from tunesmith.evaluate.metrics import metric
    from tunesmith.evaluate.run import evaluate

    evaluation = evaluate(model, golden, [metric(name) for name in metrics], sampling=sampling, out=out)
    agreement = {}
    for name in metrics:
        scores = evaluation.scores(name)
        interval = estimate(metric(name), scores)  # none for too few rows
        there = {"estimate": evaluation.values[name], "low": None, "high": None} if interval is None else msgspec.structs.asdict(interval)
        agreement[name] = there | {"missing": sum(score.value is None for score in scores)}
    old = [float(row.meta["total_s"]) for row in golden if row.meta.get("total_s") is not None]
    new = [row.answer.total_s for row in evaluation.rows if row.answer.total_s is not None]
    differing = [
        {"asked": row.prompt[-1].text, "old": row.answer, "new": answered.answer.text}
        for row, answered in zip(golden, evaluation.rows, strict=True)
        if answered.scores[0].value is not None and answered.scores[0].value < 1.0
    ]
    return {
        "rows": len(golden),
        "agreement": agreement,
        "median_seconds": {"old": _median(old), "new": _median(new)},
        "completion_tokens": {"old": sum(row.meta.get("completion_tokens", 0) for row in golden), "new": evaluation.completion_tokens},
        "usd_before": _usd_before(golden),
        "judged": _judged(judge, golden, evaluation, out) if judge is not None else None,
        "differing": differing,
    }


def _usd_before(golden: Sequence[Example]) -> float | None:
    """What the recorded answers cost by the shipped price list; None without a price or without the tokens."""
    price = price_of(str(golden[0].meta.get("recorded_from"))) if golden else None
    if price is None or any("prompt_tokens" not in row.meta for row in golden):
        return None
    return float(sum(row.meta["prompt_tokens"] * price.input + row.meta["completion_tokens"] * price.output for row in golden) / 1e6)


def _judged(judge: Model, golden: Sequence[Example], evaluation: Evaluation, out: Path) -> dict[str, Any]:
    """The new model's share of the win; the judge sees the questions alone, since the recorded answer is one of the two."""
    from tunesmith.core.stats import mean_interval
    from tunesmith.evaluate.judge import bias, pairwise

    asked = [Example(id=row.id, messages=row.prompt, tools=row.tools) for row in golden]
    old, new = [Answer(text=row.answer) for row in golden], [row.answer for row in evaluation.rows]
    verdicts = pairwise(judge, asked, old, new, cache=out / "judge.jsonl")
    lean = bias(judge, verdicts, old, new, (str(golden[0].meta.get("recorded_from")), evaluation.model))
    share = mean_interval([verdict.value for verdict in verdicts if verdict.value is not None])
    return {"judge": judge.name, "share": msgspec.to_builtins(share), "bias": msgspec.to_builtins(lean)}


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None


def sentences(compared: dict[str, Any]) -> list[str]:
    """What `likeness` found besides the metrics: latency, tokens, cost, and the judge's preference."""
    seconds, tokens, judged = compared["median_seconds"], compared["completion_tokens"], compared["judged"]
    lines = [
        f"Median answer: {_seconds(seconds['old'])} before, {_seconds(seconds['new'])} now. "
        f"Tokens written: {tokens['old']} before, {tokens['new']} now."
    ]
    if compared["usd_before"] is not None:
        lines.append(f"The recorded answers cost {compared['usd_before']:.4f} USD by the list; the new ones cost your own machine's time.")
    if judged is not None:
        share, lean = judged["share"], judged["bias"]
        lines.append(
            f"Judge {judged['judge']}, each pair in both orders: the new model's share of the win {share['estimate']:.3f} "
            f"({share['low']:.3f} … {share['high']:.3f}); {lean['flips']:.0%} of the verdicts change with the order, "
            f"{lean['missing']} unreadable."
        )
    return lines


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} s"


def _number(value: float | None) -> str:
    """Three places, or a dash for what the rows were too few for."""
    return "–" if value is None else f"{value:.3f}"


def report(fine_tunes: Sequence[FineTune], compared: dict[str, Any] | None) -> str:
    """One Markdown page: what there is, how long it lasts, how alike the replacement is."""
    lines = ["# Fine-tunes and their replacements", "", "| model | base | off on | days left | source |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {tune.model} | {tune.base} | {tune.shutdown or '–'} | {'–' if tune.days_left is None else tune.days_left} "
        f"| {tune.shutdown_source} |"
        for tune in fine_tunes
    ]
    if compared is not None:
        lines += [
            "",
            f"## New against old on {compared['rows']} recorded answers",
            "",
            "| metric | agreement | 95 % interval |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {name} | {_number(interval['estimate'])} | {_number(interval['low'])} … {_number(interval['high'])} |"
            for name, interval in compared["agreement"].items()
        ]
        for sentence in sentences(compared):
            lines += ["", sentence]
        for answer in compared["differing"][:10]:
            lines += ["", f"- **asked** {answer['asked']}", f"  - old: {answer['old']}", f"  - new: {answer['new']}"]
    return "\n".join(lines) + "\n"
