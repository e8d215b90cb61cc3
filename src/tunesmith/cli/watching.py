"""Commands about what is watched: drift and quality; knows nothing about how it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunesmith.cli.serving import monitor_app
from tunesmith.cli.shared import OVERRIDES, Json, emit, file_option, told

if TYPE_CHECKING:
    from tunesmith.flow.alerting import Alerting

_Alias = Annotated[str | None, typer.Argument(help="The name that clients ask for (default: the project's).")]

_Variant = Annotated[str, typer.Option(help="Only what this variant answered (default: every one).")]


def _named(alias: str | None, context: typer.Context) -> tuple[str | None, list[str]]:
    """(the alias, the overrides): where no alias is given, the first override stands in its place."""
    return (None, [alias, *context.args]) if alias is not None and alias.startswith("--") else (alias, list(context.args))


@monitor_app.command("drift", context_settings=OVERRIDES)
def drift(
    context: typer.Context,
    alias: _Alias = None,
    against: Annotated[str | None, typer.Option(help="The reference: latest:train, a version, a file (default: its first chats).")] = None,
    since: Annotated[str | None, typer.Option(help="A date, or a time ago: 7d, 12h.")] = None,
    variant: _Variant = "",
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Whether questions and answers have moved from a fixed reference, window by window; exit 3 when they have.

    Example: tunesmith monitor drift my-model --against latest:train
    """
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.logged import seconds_of
    from tunesmith.flow.project import load_project
    from tunesmith.flow.watching import drift_of, plain

    name, words = _named(alias, context)
    project = load_project(config, words)
    with told(as_json) as progress, bench(config, progress) as at:
        start = seconds_of(since) if since is not None else None
        report = drift_of(name or project.deploy.alias, at, project.monitor, against=against or "", since=start, variant=variant)
    emit(plain(report), as_json, report.text())
    if report.alarm:
        raise typer.Exit(3)


@monitor_app.command("quality", context_settings=OVERRIDES)
def quality(
    context: typer.Context,
    alias: _Alias = None,
    look: Annotated[bool, typer.Option("--look", help="Only look: score nothing, ask no judge.")] = False,
    variant: _Variant = "",
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Score the day's sample of answers by the metrics of 'monitor:' and show their charts; exit 3 when one has fallen.

    Example: tunesmith monitor quality my-model --monitor.sample 20
    """
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.project import load_project
    from tunesmith.flow.watching import plain, quality_of

    name, words = _named(alias, context)
    project = load_project(config, words)
    with told(as_json) as progress, bench(config, progress) as at:
        report = quality_of(name or project.deploy.alias, at, project.monitor, score=not look, variant=variant)
    emit(plain(report), as_json, report.text())
    if report.alarm:
        raise typer.Exit(3)


alerts_app = typer.Typer(help="Look at the rules of 'alerts:', test the channels, silence.", rich_markup_mode=None)
monitor_app.add_typer(alerts_app, name="alerts")


@contextmanager
def _alerting(config: Path) -> Iterator[Alerting]:
    from tunesmith.flow.alerting import Alerting
    from tunesmith.flow.project import load_project, open_store

    project = load_project(config)
    with closing(open_store(project, config.resolve().parent)) as store:
        yield Alerting(store, project.alerts, project.monitor, project.deploy.alias, config)


@alerts_app.callback(invoke_without_command=True)
def alerts(context: typer.Context, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Look at every rule now, tell what changed, and show which alerts are firing; exit 3 when one is.

    Example: tunesmith monitor alerts
    """
    if context.invoked_subcommand is not None:
        return
    import time

    from tunesmith.store.alerts import AlertLog

    with _alerting(config) as alerting:
        changes = alerting.look()
        log = AlertLog(alerting.store)
        states = [dict(row) for row in log.states().values()]
        events = [{key: row[key] for key in ("id", "created", "rule", "alias", "kind", "channel", "outcome")} for row in log.events()]
        silences: list[dict[str, Any]] = [{"labels": labels, "until": until} for labels, until in log.silences()]
    lines = [f"{row['state']:<8} {row['rule']}{' of ' + row['alias'] if row['alias'] else ''}: {row['value']}" for row in states]
    lines += [f"{change.kind}: {change.rule}" for change in changes]
    lines += [f"silenced for {(silence['until'] - time.time()) / 60:.0f} min: {silence['labels']}" for silence in silences]
    changed = [change._asdict() for change in changes]
    emit(
        {"changes": changed, "alerts": states, "events": events, "silences": silences}, as_json, "\n".join(lines) or "no rules in 'alerts:'"
    )
    if any(row["state"] == "firing" for row in states):
        raise typer.Exit(3)


@alerts_app.command("test")
def alerts_test(config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Send a test to every channel; exit 1 when one cannot be reached.

    Example: tunesmith monitor alerts test
    """
    with _alerting(config) as alerting:
        problems = alerting.test()
    emit({"channels": problems}, as_json, "\n".join(f"{name}: {problem or 'told'}" for name, problem in problems.items()))
    if any(problems.values()):
        raise typer.Exit(1)


@alerts_app.command("silence")
def alerts_silence(
    label: Annotated[list[str], typer.Option("--label", help="KEY=VALUE that an alert must have: rule, alias, or one of its labels.")],
    span: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 1d.")] = "1h",
    end: Annotated[bool, typer.Option("--end", help="End the silence with these labels.")] = False,
    reason: Annotated[str, typer.Option(help="Why.")] = "",
    by: Annotated[str | None, typer.Option(help="Who (default: the user of this machine).")] = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Tell nobody of alerts with all of these labels for a time; what still fires afterwards is told then.

    Example: tunesmith monitor alerts silence --label rule=errors --for 2h --reason 'the provider is down'
    """
    import getpass
    import time

    from tunesmith.core.errors import UsageError
    from tunesmith.monitor.alerts import span_s
    from tunesmith.store.alerts import AlertLog

    pairs = dict(pair.split("=", 1) for pair in label if "=" in pair)
    if len(pairs) < len(label):
        raise UsageError(f"--label {' --label '.join(label)}", allowed="KEY=VALUE, each KEY once")
    until = time.time() + span_s(span, "--for")
    with _alerting(config) as alerting:
        log = AlertLog(alerting.store)
        if end:
            ended = log.end_silence(pairs)
            emit({"ended": ended}, as_json, f"{ended} ended")
            return
        log.silence(pairs, until, reason=reason, by=by or getpass.getuser())
    emit({"labels": pairs, "until": until}, as_json, f"alerts with {', '.join(label)} are silent for {span}")
