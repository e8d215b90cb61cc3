"""Commands about what a name answers with: deploy, and look at, promote or take back what is deployed."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from tunesmith.cli.shared import Json, emit, file_option

if TYPE_CHECKING:
    from tunesmith.core.deployment import Deployment
    from tunesmith.flow.evaluation.run import Bench


class _Deploy(typer.core.TyperGroup):
    """`deploy ALIAS MODEL` is `deploy create ALIAS MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options before the alias are those of `create`, too."""
        helped = ctx.help_option_names
        return super().parse_args(ctx, ["create", *args] if args and args[0].startswith("-") and args[0] not in helped else args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of that name, else `create`."""
        return super().resolve_command(ctx, args if args[0] in self.commands else ["create", *args])


deploy_app = typer.Typer(
    cls=_Deploy, help="What a name answers with: deploy ALIAS MODEL, and its history.", no_args_is_help=True, rich_markup_mode=None
)
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history of the alias.")]
NoParity = Annotated[str | None, typer.Option("--no-parity", help="Do not compare adapter, export and server first: why not.")]
By = Annotated[str | None, typer.Option("--by", help="Who, for the history of the alias (default: the user of this machine).")]
Alias = Annotated[str, typer.Argument(help="The name that clients ask for.")]


@deploy_app.command("create")
def create(
    alias: Alias,
    model: Annotated[str, typer.Argument(help="A base, run, ft:…, a folder, BASE+ADAPTER or an upstream; MODEL?INDEX looks passages up.")],
    weight: Annotated[float | None, typer.Option(help="Answer this share of the requests, beside what is deployed.")] = None,
    canary: Annotated[float | None, typer.Option(help="The same, as the variant 'canary'.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="Answer copies of requests that no client sees.")] = False,
    fallback: Annotated[bool, typer.Option("--fallback", help="Answer where what is deployed fails or takes too long.")] = False,
    name: Annotated[str | None, typer.Option("--as", help="What the variant is called.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Seconds that the variant may take before a fallback answers.")] = None,
    copies_per_minute: Annotated[int | None, typer.Option(help="The most requests a minute that a shadow gets.")] = None,
    no_parity: NoParity = None,
    template: Annotated[str | None, typer.Option(help="How passages stand before the question; @FILE reads it.")] = None,
    reason: Reason = "",
    by: By = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Let a name answer with a model, alone or beside others, as a new version; servers take it with their next request.

    Example: tunesmith deploy support smollm2-135m --canary 0.1 --reason 'trained on the tickets of November'
    """
    from tunesmith.api.serve import temporary
    from tunesmith.core.errors import UsageError
    from tunesmith.flow.deploying import Role, deploy
    from tunesmith.flow.identity import system_of
    from tunesmith.flow.parity_gate import compare_first, with_reason

    roles = {"canary": canary is not None, "shadow": shadow, "fallback": fallback, "weight": weight is not None and not shadow}
    chosen = [role for role, asked in roles.items() if asked]
    if len(chosen) > 1:
        raise UsageError(f"--{' and --'.join(chosen)}", allowed="one of --weight, --canary, --shadow, --fallback; --shadow with --weight")
    values: dict[str, Any] = {"weight": canary if canary is not None else weight, "name": name, "timeout_s": timeout_s}
    role = Role(role=chosen[0] if chosen else "alone", copies_per_minute=copies_per_minute, **values)  # type: ignore[arg-type]
    words = Path(template[1:]).read_text("utf-8") if template is not None and template.startswith("@") else template
    with opened(config) as at:
        compare_first(model, at, temporary, skipped=no_parity)
        why, system = with_reason(reason, no_parity), system_of(at.context)
        made = deploy(alias, model, at.models, at.store, role, template=words, reason=why, by=who(by), system=system)
    _say(made, as_json)


@deploy_app.command("history")
def history(alias: Alias, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Every version of a name, the newest first: who put it in force, when and why.

    Example: tunesmith deploy history support
    """
    import msgspec

    from tunesmith.flow.deploying import history_of

    with opened(config) as at:
        versions = history_of(alias, at.store)
    emit({"alias": alias, "versions": msgspec.to_builtins(versions)}, as_json, "\n".join(map(_line, versions)))


@deploy_app.command("promote")
def promote(
    alias: Alias,
    variant: Annotated[str, typer.Argument(help="The variant that answers everything from now on.")],
    no_parity: NoParity = None,
    reason: Reason = "",
    by: By = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Let one of a name's variants answer alone.

    Example: tunesmith deploy promote support canary --reason 'better for a week'
    """
    from tunesmith.api.serve import temporary
    from tunesmith.flow.deploying import promote as put
    from tunesmith.flow.parity_gate import compare_first, variant_word, with_reason

    with opened(config) as at:
        if (word := variant_word(alias, variant, at)) != variant:  # else there is none of that name, which `promote` says
            compare_first(word, at, temporary, skipped=no_parity)
        made = put(alias, variant, at.store, reason=with_reason(reason or f"promoted '{variant}'", no_parity), by=who(by))
    _say(made, as_json)


@deploy_app.command("rollback")
def rollback(
    alias: Alias,
    to: Annotated[int | None, typer.Option(help="The version to go back to (default: the one before).")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not ask first whether it still answers as it did.")] = False,
    reason: Reason = "",
    by: By = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Let a name answer as it did in an earlier version, as a new version, once its models have answered probes as they did then.

    Example: tunesmith deploy rollback support --reason 'refuses too much'
    """
    from tunesmith.flow.deploying import roll_back

    with opened(config) as at:
        made = roll_back(alias, at.store, to, reason=reason, by=who(by), verify=None if no_verify else at.models)
    _say(made, as_json)


@contextmanager
def opened(config: Path) -> Iterator[Bench]:
    """The store and the models of a project, or of the folder where there is none."""
    from tunesmith.core.progress import Silent
    from tunesmith.flow.evaluation.run import bench

    with bench(config, Silent()) as at:
        yield at


def who(by: str | None) -> str:
    """Who changes a deployment: as said, else the user of this machine."""
    if by is not None:
        return by
    try:
        return f"{getpass.getuser()}, tunesmith deploy"
    except (KeyError, OSError):  # a container may have no user of that number
        return "tunesmith deploy"


def _say(made: Deployment, as_json: bool) -> None:
    import msgspec

    emit(msgspec.to_builtins(made), as_json, f"'{made.alias}' answers with {_variants(made)} (version {made.version})")


def _line(made: Deployment) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made.created))
    return f"{made.version:>5}  {when}  {_variants(made)}  {made.reason or '(no reason)'}, by {made.by or '(nobody named)'}"


def _variants(made: Deployment) -> str:
    """The variants and what each gets."""
    if len(made.variants) == 1:
        return made.variants[0].name
    first, *others = made.variants
    total = sum(variant.weight for variant in made.variants) or 1.0
    if made.strategy == "split":
        return ", ".join(f"{variant.name} {variant.weight / total:.4g}" for variant in made.variants)
    if made.strategy == "shadow":
        return ", ".join([first.name, *(f"shadow {variant.name} {variant.weight:.4g}" for variant in others)])
    return f" {'then' if made.strategy == 'fallback' else 'and'} ".join(variant.name for variant in made.variants)
