"""Commands that look for a better plan: `tune` carries a study out, its subcommands look at it and change it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tunesmith.cli.shared import OVERRIDES, Json, data_option, emit, file_option, instead, told
from tunesmith.core.counted import counted

if TYPE_CHECKING:
    from tunesmith.flow.project import Project

CONFIG = Path("tunesmith.yaml")
Study = Annotated[str, typer.Option(help="Which study (default: the project's name).")]


class _OrStart(TyperGroup):
    """A group whose words are those of `start`, unless they begin with another command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`tune --tune.trials 5` is `tune start --tune.trials 5`."""
        named = args[:1] and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["start", *args])


tune_app = typer.Typer(
    cls=_OrStart,
    help="Look for a better plan by training many: `tunesmith tune` begins a study or goes on with it (see `tunesmith tune start --help`).",
)


@tune_app.command(context_settings=OVERRIDES)
def start(
    context: typer.Context,
    study: Study = "",
    config: file_option = CONFIG,
    data: data_option = None,
    as_json: Json = False,
) -> None:
    """Train plans and measure them on validation rows until the budget is spent; interrupted, the next call goes on.

    The project's own plan is always trial 0 and is recommended unless another is shown to be better. The test part is never looked at.
    Any key of the file can be overridden: --tune.trials 40 --tune.sampler cmaes.

    Example: tunesmith tune --tune.trials 30 --tune.hours 8
    """
    from tunesmith.flow.tuning.commands import tune
    from tunesmith.flow.tuning.summary import status_text

    with told(as_json) as progress:
        found = tune(_project(config, context.args, data), config.resolve().parent, progress, study)
    how = {
        "stopped": "stopped; tunesmith tune goes on",
        "budget": "the budget is spent",
        "done": "the study is done",
        "elsewhere": "the rest is with other processes, the last of which gives the verdict",
    }
    then = "next: tunesmith tune best" if found["verdict"] else ""
    emit(found, as_json, "\n".join(filter(None, [status_text(found), how[found["ended"]], f"report: {found['report']}", then])))


@tune_app.command(context_settings=OVERRIDES)
def status(context: typer.Context, study: Study = "", config: file_option = CONFIG, as_json: Json = False) -> None:
    """Every trial of a study, how far it was trained and what was measured there.

    Example: tunesmith tune status
    """
    from tunesmith.flow.tuning.commands import status as looked
    from tunesmith.flow.tuning.summary import status_text

    found = looked(_project(config, context.args), config.resolve().parent, study)
    emit(found, as_json, status_text(found))


@tune_app.command(context_settings=OVERRIDES)
def best(
    context: typer.Context,
    study: Study = "",
    trial: Annotated[int | None, typer.Option(help="Write this trial's plan, whatever is recommended.")] = None,
    out: Annotated[Path, typer.Option(help="Where the plan is written.")] = Path("plan.yaml"),
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Write the recommended plan, which `tunesmith run --plan` takes; the default's, unless another was shown to be better.

    Example: tunesmith tune best --out plan.yaml
    """
    from tunesmith.flow.tuning.commands import best as written

    found = written(_project(config, context.args), config.resolve().parent, out, study, trial)
    emit(found, as_json, f"{found['sentence']}\nwrote {out}, the plan of trial {found['trial']}; next: tunesmith run --plan {out}")


@tune_app.command(context_settings=OVERRIDES)
def stop(context: typer.Context, study: Study = "", config: file_option = CONFIG, as_json: Json = False) -> None:
    """Ask every process of a study to stop after its step, with a checkpoint; `tunesmith tune` goes on.

    Example: tunesmith tune stop
    """
    from tunesmith.flow.tuning.commands import stop as asked

    found = asked(_project(config, context.args), config.resolve().parent, study)
    emit(found, as_json, f"study {found['study']} is asked to stop; tunesmith tune goes on with it")


@tune_app.command()
def add(
    words: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="Values of keys that vary; the default's for all others.")],
    study: Study = "",
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """Let a plan of your own be tried next, whatever the budget of trials.

    Example: tunesmith tune add learning_rate=3e-4 adapter.r=32
    """
    from tunesmith.flow.tuning.commands import add as added

    found = added(_project(config, []), config.resolve().parent, words, study)
    emit(found, as_json, f"trial {found['trial']} waits in study {found['study']}; next: tunesmith tune")


@tune_app.command(context_settings=OVERRIDES)
def clone(
    context: typer.Context,
    new: Annotated[str, typer.Argument(metavar="NEW", help="What the new study is called.")],
    study: Study = "",
    config: file_option = CONFIG,
    as_json: Json = False,
) -> None:
    """A new study with changes (--tune.KEY VALUE), which takes over the finished trials of another that fit it.

    Example: tunesmith tune clone wider --tune.space '{learning_rate: {low: 1e-5, high: 1e-2, log: true}}'
    """
    from tunesmith.flow.tuning.commands import clone as cloned

    with told(as_json) as progress:
        found = cloned(_project(config, context.args), config.resolve().parent, progress, study, new)
    why = f": it has {found['reason']}" if found["reason"] else ""
    taken = f"takes over {counted(found['taken'], 'finished trial')} of {found['of']}{why}"
    emit(found, as_json, f"study {new} {taken}; next: tunesmith tune --study {new} with the same changes")


def _project(config: Path, words: list[str], data: str | None = None) -> Project:
    from tunesmith.flow.project import load_project

    return load_project(config, instead(data, config, words))
