"""Commands about rollouts, among those of `deploy`: a canary that grows by steps and is taken back by its guardrails."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunesmith.cli.deploying import Alias, By, NoParity, Reason, deploy_app, opened, who
from tunesmith.cli.shared import Json, emit, file_option

if TYPE_CHECKING:
    from tunesmith.core.rollout import Rollout
    from tunesmith.deploy.rollout import Standing
    from tunesmith.flow.rollouts import RolloutStatus


@deploy_app.command("canary")
def canary(
    alias: Alias,
    model: Annotated[str, typer.Argument(help="What is to take over, as in `deploy create`.")],
    steps: Annotated[str | None, typer.Option(help="Shares of the requests, one after the other: 1%,5%,25%,50%,100%.")] = None,
    step_s: Annotated[float | None, typer.Option(help="The least seconds of a step.")] = None,
    step_requests: Annotated[int | None, typer.Option(help="The least requests that the canary is assigned in a step.")] = None,
    guardrail: Annotated[list[str] | None, typer.Option(help="NAME=MARGIN, such as errors=0.02; NAME=off takes one away.")] = None,
    alpha: Annotated[float | None, typer.Option(help="The most probability that a canary which is not worse is taken back.")] = None,
    look_s: Annotated[float | None, typer.Option(help="Seconds between looks.")] = None,
    needs_approval: Annotated[bool, typer.Option("--needs-approval", help="Begin once `deploy approve` says so.")] = False,
    gate: Annotated[str | None, typer.Option(help="What the gate of the model's run must have said: pass, or any.")] = None,
    name: Annotated[str | None, typer.Option("--as", help="What the variant is called.")] = None,
    no_parity: NoParity = None,
    reason: Reason = "",
    by: By = None,
    config: file_option = Path("tunesmith.yaml"),
    as_json: Json = False,
) -> None:
    """Let a model take over a name by steps; running servers take it back by themselves when a guardrail shows that it is worse.

    What is not said here is said by `deploy.rollout` in the project file.

    Example: tunesmith deploy canary support run:tuned --steps 5%,25%,100% --guardrail errors=0.02 --guardrail cost_p95=0.3
    """
    from tunesmith.api.serve import temporary
    from tunesmith.flow.parity_gate import compare_first, with_reason
    from tunesmith.flow.rollouts import canary as begin
    from tunesmith.flow.rollouts import plan_at

    settings = {"steps": steps, "step_s": step_s, "step_requests": step_requests, "alpha": alpha, "look_s": look_s}
    plan = plan_at(config, {**settings, "needs_approval": needs_approval or None, "gate": gate}, guardrail or [])
    with opened(config) as at:
        compare_first(model, at, temporary, skipped=no_parity)
        made = begin(alias, model, at.models, at.store, plan, name=name, reason=with_reason(reason, no_parity), by=who(by))
    _say(made, as_json)


@deploy_app.command("status")
def status(alias: Alias, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Where the rollout of a name stands: its step, each guardrail with its counts and evidence, what going on waits for.

    Example: tunesmith deploy status support
    """
    import msgspec

    from tunesmith.flow.rollouts import status as seen

    with opened(config) as at:
        standing = seen(alias, at.store)
    emit(msgspec.to_builtins(standing), as_json, _status(standing))


@deploy_app.command("step")
def step(alias: Alias, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Look at the rollout of a name now, as a server does every few seconds, and act on what is seen.

    Example: tunesmith deploy step support
    """
    from tunesmith.flow.rollouts import step as look

    with opened(config) as at:
        made = look(alias, at.store)
    _say(made, as_json)


@deploy_app.command("approve")
def approve(alias: Alias, reason: Reason = "", by: By = None, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Begin a rollout that waits for approval.

    Example: tunesmith deploy approve support --reason 'read 40 answers'
    """
    from tunesmith.flow.rollouts import approve as begin

    with opened(config) as at:
        made = begin(alias, at.store, reason=reason, by=who(by))
    _say(made, as_json)


@deploy_app.command("pause")
def pause(alias: Alias, reason: Reason = "", by: By = None, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Leave the canary at its share: no step, and no guardrail takes it back.

    Example: tunesmith deploy pause support --reason 'the upstream is being moved'
    """
    from tunesmith.flow.rollouts import pause as stop

    with opened(config) as at:
        made = stop(alias, at.store, reason=reason, by=who(by))
    _say(made, as_json)


@deploy_app.command("resume")
def resume(alias: Alias, reason: Reason = "", by: By = None, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """Go on with a rollout that was paused; its step begins anew.

    Example: tunesmith deploy resume support
    """
    from tunesmith.flow.rollouts import resume as again

    with opened(config) as at:
        made = again(alias, at.store, reason=reason, by=who(by))
    _say(made, as_json)


@deploy_app.command("abort")
def abort(alias: Alias, reason: Reason = "", by: By = None, config: file_option = Path("tunesmith.yaml"), as_json: Json = False) -> None:
    """End a rollout: the name answers as before it.

    Example: tunesmith deploy abort support --reason 'a better one is ready'
    """
    from tunesmith.flow.rollouts import abort as end

    with opened(config) as at:
        made = end(alias, at.store, reason=reason, by=who(by))
    _say(made, as_json)


def _say(made: Rollout, as_json: bool) -> None:
    import msgspec

    emit(msgspec.to_builtins(made), as_json, _line(made))


def _line(made: Rollout) -> str:
    share = made.plan.steps[made.step]
    at = {"running": f" at {share:.4g} of the requests", "paused": f" at {share:.4g} of the requests"}.get(made.status, "")
    why = f": {made.outcome}" if made.outcome else ""
    return f"rollout of '{made.canary}' for '{made.alias}' is {made.status.replace('_', ' ')}{at} (version {made.version}){why}"


def _status(seen: RolloutStatus) -> str:
    made = seen.rollout
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(made.created))
    lines = [_line(made), f"  begun {began} by {made.by or 'nobody named'}" + (f": {made.reason}" if made.reason else "")]
    lines.append(f"  step {made.step + 1} of {len(made.plan.steps)}: {', '.join(f'{share:.4g}' for share in made.plan.steps)}")
    if made.state is not None:
        lines.append(f"  the canary was assigned {made.state.requests} requests, {made.state.step_requests} in this step")
    lines += [f"  {_guardrail(at, seen.bounds.get(at.guardrail))}" for at in seen.guardrails]
    if seen.form:
        lines.append(f"  form of the answers: {seen.form}")
    lines += [f"  NOT SERVED: variant '{name}': {why}" for name, why in seen.not_loaded.items()]
    lines += [f"  going on waits for {what}" for what in seen.missing]
    if seen.next_look is not None:
        lines.append(f"  next look: {time.strftime('%H:%M:%S', time.localtime(seen.next_look))}, by a running server or `deploy step`")
    if seen.affected is not None:
        lines.append(f"  affected: {seen.affected.requests} requests by the log, {seen.affected.failed} of them not answered by the canary")
    return "\n".join(lines)


def _guardrail(at: Standing, bounds: tuple[float, float] | None) -> str:
    between = "" if bounds is None else f", difference {bounds[0]:+.2%} to {bounds[1]:+.2%}"
    fine = "" if at.fine is None else f"; no harm in going on {at.fine:.3g} to 1 of {at.fine_at:.3g}"
    return (
        f"{at.guardrail:<14} {_rate(*at.canary)} against {_rate(*at.others)}{between}; margin {at.margin:g}, "
        f"harm {at.harm:.3g} to 1 of {at.harm_at:.4g}{fine}"
    )


def _rate(n: float, bad: float) -> str:
    return f"{bad:.4g} of {n:.6g}" + (f" ({bad / n:.2%})" if n else "")
