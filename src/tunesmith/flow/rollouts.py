"""Rollouts, started by a person and carried on by whoever looks: a server every few seconds, or `tunesmith deploy step`. Of several that
look at once one acts; what it does is a new version with the reason in the history of the alias."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import InvalidOperation
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import to_builtins
from msgspec.structs import replace

from tunesmith.core.config import convert, load, percent
from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import ConfigError, GateRefused, NotFound, UsageError, nearest
from tunesmith.core.rollout import OPEN, Counts, Rollout, RolloutPlan, RolloutState, quantile_of, rating_of
from tunesmith.core.types import Answer, Example, Record
from tunesmith.deploy.answer_form import LEAST, form_words, learned_form, malformed
from tunesmith.deploy.rollout import Block, Decision, Standing, advanced, begun, decide, difference_bounds, standings
from tunesmith.flow.deploying import Role, joined
from tunesmith.flow.identity import references_of
from tunesmith.flow.identity_status import not_loaded
from tunesmith.flow.project import Project
from tunesmith.models.resolve import Models
from tunesmith.store.deployments import Deployments
from tunesmith.store.identities import Identities
from tunesmith.store.rollouts import Affected, Answered, Changed, Limit, Rollouts, Spread
from tunesmith.store.runs import Runs
from tunesmith.store.store import Store

_log = logging.getLogger("tunesmith.rollouts")
BY = "rollout"
_SETTLED_S = 1.0  # how long after its end a request's row is surely in the log
_READ = 200  # answers of each side that are read in one look
_SPANS = 500  # spans of time that are counted apart in one look
_LEAST_TIMED = 20  # requests of the others before their quantile is known


class RolloutStatus(Record, frozen=True):
    """A rollout and where it stands now; `bounds` are of each guardrail between what the canary's share is above the others', `not_loaded`
    why variants in force could not be loaded by the server that tried last."""

    rollout: Rollout
    guardrails: tuple[Standing, ...] = ()
    bounds: dict[str, tuple[float, float]] = {}
    missing: tuple[str, ...] = ()
    next_look: float | None = None
    form: str = ""
    affected: Affected | None = None
    not_loaded: dict[str, str] = {}


# --- begun by a person -------------------------------------------------------------------------------------------------------------------


def canary(
    alias: str,
    word: str,
    models: Models,
    store: Store,
    plan: RolloutPlan = RolloutPlan(),
    *,
    name: str | None = None,
    reason: str = "",
    by: str = "",
) -> Rollout:
    """Let what the word names take over an alias by the plan's steps; it answers the first step's share at once, or once it is approved.

    Raises GateRefused where the run that made it did not pass its gate (unless the plan takes any), UsageError for an alias that answers
    with nothing yet, that has an open rollout, or whose strategy is no split, and as `deploy`.
    """
    change = joined(alias, word, models, store, Role(role="canary", weight=plan.steps[0], name=name), new=True)
    own = next(variant for variant in change.variants if variant.name == change.name)
    gate = _gate(own, store, plan.gate == "any")
    Identities(store).remember(references_of([own], models, store, alias))
    now = time.time()
    rollout = Rollout(
        id=0,
        alias=alias,
        created=now,
        status="waiting" if plan.needs_approval else "running",
        plan=plan,
        canary=own.name,
        variants=tuple(change.variants),
        before=change.before,
        step_since=now,
        reason="; ".join(filter(None, (reason, gate))),
        by=by,
        outcome="waits for approval" if plan.needs_approval else "",
    )
    if plan.needs_approval:
        return Rollouts(store).begin(rollout, None)
    return Rollouts(store).begin(_started(rollout, store, now), _first(rollout, by))


def approve(alias: str, store: Store, *, reason: str = "", by: str = "") -> Rollout:
    """Start a rollout that waits for it."""
    rollout = _open(alias, store)
    if rollout.status != "waiting":
        raise UsageError(f"the rollout of '{alias}' is {rollout.status}", allowed="one that waits for approval")
    now = time.time()
    approved = replace(rollout, status="running", step_since=now, created=now, outcome="")
    why = "; ".join(filter(None, (reason, rollout.reason)))
    return _acted(_started(approved, store, now), _first(replace(rollout, reason=why), by), store)


def pause(alias: str, store: Store, *, reason: str = "", by: str = "") -> Rollout:
    """Stop looking: the canary keeps its share, no guardrail takes it back."""
    rollout = _open(alias, store)
    if rollout.status != "running":
        raise UsageError(f"the rollout of '{alias}' is {rollout.status}", allowed="one that is running")
    return _acted(replace(rollout, status="paused", outcome=_by("paused", reason, by)), None, store)


def resume(alias: str, store: Store, *, reason: str = "", by: str = "") -> Rollout:
    """Look on; what was answered meanwhile is in no count."""
    rollout = _open(alias, store)
    if rollout.status != "paused" or rollout.state is None:
        raise UsageError(f"the rollout of '{alias}' is {rollout.status}", allowed="one that is paused")
    now = time.time()
    resumed = replace(rollout, status="running", outcome=_by("resumed", reason, by), step_since=now)
    return _acted(replace(resumed, state=replace(rollout.state, cut=now, step_requests=0)), None, store)


def abort(alias: str, store: Store, *, reason: str = "", by: str = "") -> Rollout:
    """End a rollout: the alias answers as before it."""
    rollout = _open(alias, store)
    ended = replace(rollout, status="aborted", ended=time.time(), outcome=_by("aborted", reason, by))
    if rollout.status == "waiting":
        return _acted(ended, None, store)
    return _acted(ended, _back(rollout, store, f"rollout of '{rollout.canary}' {ended.outcome}", by), store)


def status(alias: str, store: Store, now: float | None = None) -> RolloutStatus:
    """The newest rollout of an alias and where it stands. Raises NotFound."""
    rollout, now = _newest(alias, store), time.time() if now is None else now
    missing = {variant: why for (name, _, variant), why in not_loaded(store).items() if name == alias}
    if rollout.state is None:
        return RolloutStatus(rollout=rollout, not_loaded=missing)
    decision = decide(rollout.plan, rollout.state, rollout.step, rollout.step_since, now)
    stood = standings(rollout.plan, rollout.state, rollout.step)
    return RolloutStatus(
        rollout=rollout,
        guardrails=tuple(stood),
        bounds={at.guardrail: bounds for at in stood if (bounds := difference_bounds(at)) is not None},
        missing=decision.missing if rollout.status in OPEN else (),
        next_look=rollout.looked + rollout.plan.look_s if rollout.status == "running" else None,
        form=form_words(rollout.state.form) if "malformed" in rollout.plan.guardrails else "",
        affected=Rollouts(store).affected(rollout),
        not_loaded=missing,
    )


# --- carried on by whoever looks ---------------------------------------------------------------------------------------------------------


def look_at_all(store: Store) -> list[Rollout]:
    """Look at every rollout whose time has come; those that were changed by it: their alias has a new version, or they ended. What one of
    them meets is in the log of the server and keeps nobody from looking at the others."""
    now, changed = time.time(), []
    for rollout in Rollouts(store).running():
        if now < rollout.looked + rollout.plan.look_s:
            continue
        try:
            after = look(rollout, store, now)
        except Exception:  # noqa: BLE001 - one rollout, whatever is wrong with it, must not keep the others in force
            _log.exception("the rollout of '%s' could not be looked at", rollout.alias)
            continue
        if after is not None and (after.version, after.status) != (rollout.version, rollout.status):
            changed.append(after)
    return changed


def step(alias: str, store: Store) -> Rollout:
    """Look at the rollout of an alias now. Raises UsageError for one that is not running."""
    rollout = _open(alias, store)
    if rollout.status != "running":
        raise UsageError(f"the rollout of '{alias}' is {rollout.status}", allowed="one that is running")
    return look(rollout, store) or _newest(alias, store)


def look(rollout: Rollout, store: Store, now: float | None = None) -> Rollout | None:
    """Count what has ended since the last look, and act on it; None where somebody else has looked meanwhile."""
    if rollout.status != "running":
        return None
    now = time.time() if now is None else now
    rollouts = Rollouts(store)
    in_force = Deployments(store).in_force().get(rollout.alias)
    if in_force is None or in_force.version != rollout.version:
        who = f"version {in_force.version}, by {in_force.by or 'nobody named'}" if in_force is not None else "nothing"
        return rollouts.act(replace(rollout, status="superseded", ended=now, outcome=f"'{rollout.alias}' was changed: {who}"))
    state = _counted(rollout, rollouts, now)
    decision = decide(rollout.plan, state, rollout.step, rollout.step_since, now)
    if decision.action != "hold":
        by_user = partial(_by_user, rollout, rollouts, state)
        decision = decide(rollout.plan, state, rollout.step, rollout.step_since, now, by_user)
    after = replace(rollout, state=state, looked=now, outcome=decision.reason)
    try:
        done = _carried_out(after, decision, store, now)
    except UsageError as error:  # the alias was changed in this moment: the next look sees it
        _log.warning("the rollout of '%s' did not act: %s", rollout.alias, error)
        return None
    if done is not None and decision.action != "hold":
        _log.warning("'%s': %s", rollout.alias, done.outcome)
    return done


def _carried_out(rollout: Rollout, decision: Decision, store: Store, now: float) -> Rollout | None:
    rollouts, state = Rollouts(store), rollout.state
    if decision.action == "roll_back":
        why = f"'{rollout.canary}' taken back: {decision.reason}"
        return rollouts.act(replace(rollout, status="rolled_back", ended=now, outcome=why), _back(rollout, store, why, BY))
    if decision.action == "promote":
        alone = replace(_canary(rollout), weight=1.0)
        why = f"'{rollout.canary}' answers alone: {decision.reason}"
        return rollouts.act(replace(rollout, status="promoted", ended=now, outcome=why), Changed([alone], "one", why, BY))
    if decision.action == "advance" and state is not None:
        share = rollout.plan.steps[rollout.step + 1]
        why = f"'{rollout.canary}' at {share:g}: {decision.reason}"
        onward = replace(rollout, step=rollout.step + 1, step_since=now, outcome=why, state=replace(state, step_requests=0))
        variants = _shared(rollout.variants, rollout.canary, share)
        return rollouts.act(replace(onward, variants=variants), Changed(variants, "split", why, BY))
    return rollouts.act(rollout)


def _counted(rollout: Rollout, rollouts: Rollouts, now: float) -> RolloutState:
    """The state with what has ended since its last look."""
    plan, state = rollout.plan, rollout.state
    if state is None:
        raise UsageError(f"the rollout of '{rollout.alias}' has not begun", allowed="one that is running")
    until = now - min(_SETTLED_S, plan.look_s)
    if until <= state.cut:
        return state
    limits = _limits(rollout, state)
    span_s = max(plan.look_s, (until - state.cut) / _SPANS)
    counts: defaultdict[int, dict[str, list[float]]] = defaultdict(lambda: {name: [0.0] * 4 for name in plan.guardrails})
    own: defaultdict[int, int] = defaultdict(int)
    for side in rollouts.sides(rollout, state.cut, until, span_s, limits):
        place = 0 if side.canary else 2
        own[side.span] += side.requests * side.canary
        for name, (n, bad) in {"errors": (side.requests, side.failed), **side.beyond}.items():
            if name in plan.guardrails:
                counts[side.span][name][place : place + 2] = [n, bad]
    for name in plan.guardrails:
        rating = rating_of(name)
        for span, own_side, words, wrong in rollouts.rated(rollout, state.cut, until, span_s, *rating) if rating else ():
            place = 0 if own_side else 2
            counts[span][name][place : place + 2] = [words, wrong]
    if {"malformed", "refusals"} & plan.guardrails.keys():
        for (span, name), answered in _read(rollout, rollouts.answers(rollout, state.cut, until, _READ), state, span_s).items():
            counts[span][name] = answered
    blocks = [
        Block(ended=state.cut + (span + 1) * span_s, requests=own[span], counts={name: _four(n) for name, n in counts[span].items()})
        for span in sorted(counts)
    ]
    return _usual(rollout, rollouts, advanced(plan, state, blocks, rollout.step, until), until)


def _four(values: Sequence[float]) -> Counts:
    n, bad, m, worse = values
    return n, bad, m, worse


def _limits(rollout: Rollout, state: RolloutState) -> dict[str, Limit]:
    """What guardrails on quantiles count beyond, from what was usual before."""
    limits = {}
    for name, margin in rollout.plan.guardrails.items():
        quantile = quantile_of(name)
        if quantile is not None and name in state.limits:
            limits[name] = Limit(quantile[0], state.limits[name], state.limits[name] * (1 + margin))
    return limits


def _read(rollout: Rollout, rows: Sequence[Answered], state: RolloutState, span_s: float) -> dict[tuple[int, str], list[float]]:
    """The counts of guardrails on answers themselves; of one user one answer in a look, since they are alike."""
    counts: defaultdict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0] * 4)
    seen = set()
    for row in rows:
        if (row.canary, row.key) in seen:
            continue
        seen.add((row.canary, row.key))
        place, span = 0 if row.canary else 2, int((row.ended - state.cut) / span_s)
        for name in {"malformed", "refusals"} & rollout.plan.guardrails.keys():
            wrong = _refused(row) if name == "refusals" else malformed(state.form, row.answer, row.tool_calls, row.finish_reason)
            counts[span, name][place] += 1
            counts[span, name][place + 1] += wrong
    return counts


def _refused(row: Answered) -> bool:
    from tunesmith.evaluate.metrics.cost import refusal

    finish: Any = row.finish_reason if row.finish_reason in ("stop", "length", "tool_calls", "content_filter") else "stop"
    return bool(refusal(Example(id="", messages=()), Answer(text=row.answer, finish_reason=finish)).value)


def _usual(rollout: Rollout, rollouts: Rollouts, state: RolloutState, until: float) -> RolloutState:
    """The state with what is usual among the others by now: what the next look compares with."""
    limits = {}
    for name in rollout.plan.guardrails:
        quantile = quantile_of(name)
        if quantile is not None:
            usual = rollouts.usual_quantile(rollout, *quantile, until, _LEAST_TIMED)
            if usual is not None:
                limits[name] = usual
    form = state.form
    if form is None and "malformed" in rollout.plan.guardrails:
        form = learned_form(rollouts.usual_answers(rollout, until, 4 * LEAST))
    return replace(state, limits={**state.limits, **limits}, form=form)


def _by_user(rollout: Rollout, rollouts: Rollouts, state: RolloutState, name: str) -> list[Counts]:
    """The counts of a guardrail with each user's requests weighted: since the rollout began, since its step did, of the last ten minutes
    and of the last one. Of answers that are read each user counts once already."""
    quantile, seen = quantile_of(name), state.guardrails[name].seen
    if (quantile is None and name != "errors") or (quantile is not None and name not in state.limits):
        return [seen]
    limit = _limits(rollout, state).get(name)
    alike = correlation(*rollouts.spreads(rollout, state.cut, limit))
    times = [rollout.created, rollout.step_since, state.cut - 600, state.cut - 60]
    since = dict.fromkeys(max(rollout.created, time) for time in times)
    return [rollouts.weighted(rollout, start, state.cut, limit, alike) for start in since]


def correlation(own: Spread, others: Spread) -> float:
    """How alike the requests of one user are, from 0 to 1: the intra-class correlation by analysis of variance within both sides."""
    sides = [side for side in (own, others) if side.requests]
    users, requests = sum(side.users for side in sides), sum(side.requests for side in sides)
    between_df, within_df = users - len(sides), requests - users
    if between_df <= 0 or within_df <= 0:
        return 0.0
    between = sum(side.bad_squares - side.bad**2 / side.requests for side in sides) / between_df
    within = sum(side.bad - side.bad_squares for side in sides) / within_df
    size = (requests - sum(side.squares / side.requests for side in sides)) / between_df
    total = between + (size - 1) * within
    return min(1.0, max(0.0, (between - within) / total)) if total > 0 else 0.0


# --- what both need ----------------------------------------------------------------------------------------------------------------------


def _started(rollout: Rollout, store: Store, now: float) -> Rollout:
    rollouts = Rollouts(store)
    before: Mapping[str, tuple[float, float]] = {"errors": rollouts.usual_failures(rollout, now)}
    return replace(rollout, state=_usual(rollout, rollouts, begun(rollout.plan, now, before), now), looked=now)


def _first(rollout: Rollout, by: str) -> Changed:
    why = f"rollout of '{rollout.canary}' begins at {rollout.plan.steps[0]:g}"
    return Changed(rollout.variants, "split", f"{why}: {rollout.reason}" if rollout.reason else why, by)


def _back(rollout: Rollout, store: Store, why: str, by: str) -> Changed:
    before = Deployments(store).version(rollout.before)
    return Changed(before.variants, before.strategy, why, by)


def _canary(rollout: Rollout) -> Variant:
    return next(variant for variant in rollout.variants if variant.name == rollout.canary)


def _shared(variants: Sequence[Variant], name: str, share: float) -> tuple[Variant, ...]:
    """The variants with that share for one of them; the others share the rest as before."""
    rest = sum(variant.weight for variant in variants if variant.name != name)
    return tuple(
        replace(variant, weight=share if variant.name == name else round(variant.weight / rest * (1 - share), 12)) for variant in variants
    )


def _acted(rollout: Rollout, changed: Changed | None, store: Store) -> Rollout:
    made = Rollouts(store).act(rollout, changed)
    if made is None:
        raise UsageError(f"the rollout of '{rollout.alias}' has just changed", allowed="as it was", remedy="look at it, and ask again")
    return made


def _newest(alias: str, store: Store) -> Rollout:
    rollout = Rollouts(store).newest(alias)
    if rollout is None:
        in_force: Mapping[str, Deployment] = Deployments(store).in_force()
        remedy = nearest(alias, in_force) or f"tunesmith deploy canary {alias} MODEL"
        raise NotFound(f"'{alias}' has had no rollout", allowed="an alias that a canary was started for", remedy=remedy)
    return rollout


def _open(alias: str, store: Store) -> Rollout:
    rollout = _newest(alias, store)
    if rollout.status not in OPEN:
        raise UsageError(f"the rollout of '{alias}' is {rollout.status}: {rollout.outcome}", allowed="one that is open")
    return rollout


def _by(what: str, reason: str, by: str) -> str:
    return f"{what} by {by or 'nobody named'}" + (f": {reason}" if reason else "")


def _gate(variant: Variant, store: Store, despite: bool) -> str:
    """What the gate of the run that made a model said, in words; empty where no run made it. Raises GateRefused unless it passed."""
    made_by = variant.model.made_by if variant.model is not None else ""
    kind, _, digest = made_by.partition(":")
    runs = [run for run in Runs(store).with_digest(digest) if run.decision is not None] if kind == "run" and digest else []
    if not runs:
        return ""
    said = f"the gate of run {runs[0].id} said '{runs[0].decision}'"
    if runs[0].decision != "pass" and not despite:
        raise GateRefused(said, allowed="a model whose gate said 'pass'", remedy="--gate any, with a --reason for the history")
    return said + (", overruled" if runs[0].decision != "pass" else "")


def plan_at(config: Path, settings: Mapping[str, Any], guardrails: Sequence[str]) -> RolloutPlan:
    """The plan of the project file (without one, the usual) with the settings that are not None; `guardrails` are `NAME=MARGIN` or
    `NAME=off`. Raises ConfigError."""
    usual = load(config, Project).deploy.rollout if config.is_file() else RolloutPlan()
    tree = to_builtins(usual) | {name: value for name, value in settings.items() if value is not None}
    if isinstance(tree.get("steps"), str):
        tree["steps"] = [_share(part) for part in tree["steps"].split(",")]
    tree["guardrails"] = _guardrails(usual.guardrails, guardrails)
    return convert(tree, RolloutPlan, places={(): "tunesmith deploy canary", ("guardrails",): "--guardrail"})


def _guardrails(usual: Mapping[str, float], words: Sequence[str]) -> dict[str, Any]:
    made: dict[str, Any] = dict(usual)
    for word in words:
        name, equals, margin = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"'{word}' is no guardrail", where="--guardrail", allowed="NAME=MARGIN, or NAME=off")
        if margin == "off":
            made.pop(name, None)
        else:
            made[name] = _share(margin)
    return made


def _share(text: str) -> Any:
    """The number that is written, `5%` or 0.05; what is none as it is, for the record to refuse."""
    try:
        return percent(text.strip()) if text.strip().endswith("%") else float(text)
    except (ValueError, InvalidOperation):
        return text
