"""Commands about training alone: estimate it, run it, prove that it can learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.shared import Json, data_option, emit, file_option, instead, plan_option, planned, shown, told
from tunesmith.core.counted import counted

if TYPE_CHECKING:
    from tunesmith.flow.hosted import Provider
    from tunesmith.flow.project import Project


def estimate(
    context: typer.Context,
    config: file_option = Path("tunesmith.yaml"),
    data: data_option = None,
    plan: plan_option = None,
    gpu: Annotated[str | None, typer.Option(help="Training on one of these instead: H200, H100, A100, L40S, L4, T4, 4090.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(min=0, help="What an hour of that GPU costs.")] = None,
    as_json: Json = False,
) -> None:
    """Time, memory, tokens and price of a run here, on a GPU and at OpenAI; every `auto` as a number with its reason. Trains nothing.

    Example: tunesmith estimate --gpu H100 --usd-per-hour 2.5 --train.adapter.r 64
    """
    from tunesmith.flow.pipeline.estimate import OtherMachine
    from tunesmith.flow.pipeline.run import dry_run
    from tunesmith.flow.project import load_project

    with told(as_json) as progress:
        expected = dry_run(
            load_project(config, instead(data, config, [*planned(plan), *context.args])),
            config.resolve().parent,
            progress,
            OtherMachine(gpu, usd_per_hour),
        )
    reasons = [f"  {reason['field']} = {reason['value']}: {reason['why']} ({reason['source']})" for reason in expected["reasons"]]
    emit(expected, as_json, "\n".join([expected["text"], *reasons]))


def train(
    context: typer.Context,
    config: file_option = Path("tunesmith.yaml"),
    data: data_option = None,
    plan: plan_option = None,
    overfit: Annotated[int, typer.Option(min=0, help="Train on so many rows until they are known by heart: proves that it can learn.")] = 0,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Continue an interrupted run, or train anew.")] = True,
    backend: Annotated[str, typer.Option(help="local, openai:MODEL (or any server that speaks its API), azure:MODEL.")] = "local",
    base_url: Annotated[str | None, typer.Option(help="The provider's address (default: OpenAI, or OPENAI_BASE_URL).")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a job is paid for.")] = False,
    as_json: Json = False,
) -> None:
    """Prepare the data and train; interrupted, the next call continues to the same weights.

    Example: tunesmith train --backend openai:gpt-4.1-mini-2025-04-14
    """
    from tunesmith.flow.last_run import written_name
    from tunesmith.flow.pipeline import train_only
    from tunesmith.flow.pipeline.run import RunCommand
    from tunesmith.flow.project import load_project

    words = [*planned(plan), *context.args]
    project, folder = load_project(config, instead(data, config, words)), config.resolve().parent
    if backend != "local":
        _hosted(project, folder, _provider(backend, base_url), yes=yes, as_json=as_json)
        return
    with told(as_json) as progress:
        if overfit:
            result = train_only.overfit(project, folder, progress, overfit)
            emit(result, as_json, f"it can learn: {counted(result['rows'], 'row')} at {result['train_loss']:.4f} ({result['unit']})")
            return
        made = RunCommand("tunesmith train", tuple(words), written_name(config, words))
        result = train_only.train_project(project, folder, progress, fresh=not resume, made=made)
    loss = f", validation loss {result['valid_loss']:.3f}" if result["valid_loss"] is not None else ""
    done = "was already done" if result["cached"] else f"{counted(result['steps'], 'step')} in {result['seconds']:.0f} s"
    emit(result, as_json, f"training {done}{loss}\nmodel: {result['artifact']}")


def _provider(backend: str, base_url: str | None) -> Provider:
    from tunesmith.core.errors import UsageError
    from tunesmith.core.load import need
    from tunesmith.flow.hosted import Provider
    from tunesmith.flow.migrate import client_for

    name, _, model = backend.partition(":")
    if name not in ("openai", "azure") or not model:
        raise UsageError(f"no backend '{backend}'", where="--backend", allowed="local, openai:MODEL, azure:MODEL")
    if name == "openai":
        return Provider(client_for(base_url), model)
    openai = need("openai", extra="openai")
    try:
        return Provider(openai.AzureOpenAI(azure_endpoint=base_url), model)
    except (openai.OpenAIError, ValueError) as error:
        raise UsageError(f"no Azure client: {error}", remedy="set AZURE_OPENAI_API_KEY, OPENAI_API_VERSION and --base-url") from error


def _hosted(project: Project, folder: Path, provider: Provider, *, yes: bool, as_json: bool) -> None:
    from tunesmith.flow.hosted import train_hosted

    def confirm(bill: dict[str, Any]) -> bool:
        price = f"about {bill['usd']:.2f} USD" if bill["usd"] is not None else "at a price that is not known here"
        tokens = f"{bill['tokens']:,} tokens" if bill["tokens"] is not None else "an unknown number of tokens"
        cut = f"; {bill['cut']} rows are longer than the provider reads and would be cut" if bill["cut"] else ""
        shown(f"{counted(bill['rows'], 'row')}, {tokens}, {price}, model {bill['model']}{cut}", err=True)
        if bill["not_sent"]:
            shown(f"not sent, OpenAI chooses it itself: {', '.join(bill['not_sent'])}", err=True)
        return yes or typer.confirm("create the job?", err=True)

    with told(as_json) as progress:
        job = train_hosted(project, folder, progress, provider, confirm)
    emit(job, as_json, f"job {job['id']} {job['status']}: {job['fine_tuned_model']}\nresults: {job['folder']}")
