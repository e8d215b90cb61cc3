"""Pages about what names answer with: the variants in force, their traffic, the history; deploy, promote and roll back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.api.state import state_of
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.core.experiment import DEFAULT_GUARDRAILS, ExperimentPlan, guardrail_of, metric_of
from tunesmith.flow import experiments, rollouts
from tunesmith.flow.deploying import Role, deploy, history_of, promote, roll_back
from tunesmith.flow.evaluation.run import Bench
from tunesmith.flow.parity_gate import compare_first, variant_word
from tunesmith.flow.traffic import by_alias
from tunesmith.models.weights import Weights
from tunesmith.monitor.status import status
from tunesmith.store.deployments import Deployments
from tunesmith.store.experiments import Experiments
from tunesmith.store.store import Store
from tunesmith.web.door import allowed
from tunesmith.web.errands import Outcome
from tunesmith.web.page import back, caller_of, page, pages_of, share_of
from tunesmith.web.waiting import errand
from tunesmith.web.words import known_words, models_of

_DAY_S = 86_400.0
_SHOWN = 5  # experiments
_ACTS: dict[str, Any] = {
    "pause": rollouts.pause,
    "resume": rollouts.resume,
    "approve": rollouts.approve,
    "abort": rollouts.abort,
}


async def listed(request: Request) -> Response:
    """GET /deployments."""
    store = pages_of(request).place.store
    in_force, seen, words = await away(lambda: (Deployments(store).in_force(), by_alias(store), known_words(request)))
    project = pages_of(request).place.project
    return page(
        request,
        "deployments",
        deployments=list(in_force.values()),
        traffic=seen,
        words=words,
        alias=project.deploy.alias if project.deploy.alias not in in_force else "",
        may=allowed(caller_of(request), "POST", "/deployments"),
    )


async def created(request: Request) -> Response:
    """POST /deployments: let a name answer with a model, alone or beside others."""
    form, store = await request.form(), pages_of(request).place.store
    alias, word = str(form.get("alias", "")).strip(), str(form.get("model", "")).strip()
    if not alias or not word:
        raise UsageError("no name, or no model", allowed="the name that clients ask for, and a word for a model")
    role = Role(role=cast(Any, str(form.get("role", "alone"))), weight=share_of(str(form.get("share", "")), "share"))

    def change() -> str:
        models = models_of(request)
        if role.role == "canary" and role.weight is None:
            plan = pages_of(request).place.context().project.deploy.rollout
            begun = rollouts.canary(alias, word, models, store, plan, reason=_reason(form), by=_who(request))
            return f"The rollout is {begun.status}."
        made = deploy(alias, word, models, store, role, reason=_reason(form), by=_who(request))
        return f"'{alias}' has the version {made.version}."

    return await _compared(request, alias, f"Comparing and deploying {word}", lambda _: [word], change)


async def one(request: Request) -> Response:
    """GET /deployments/ALIAS."""
    store, alias = pages_of(request).place.store, request.path_params["alias"]
    history, seen, (rollout, tried), words = await away(
        lambda: (history_of(alias, store), _traffic(store), _tried(alias, store), known_words(request))
    )
    return page(
        request,
        "deployment",
        now=history[0],
        history=history,
        traffic=seen,
        rollout=rollout,
        experiments=tried,
        words=words,
        may=allowed(caller_of(request), "POST", request.url.path),
        path=f"/deployments/{quote(alias)}",
    )


async def promoted(request: Request) -> Response:
    """POST /deployments/ALIAS/promote: one of its variants answers alone."""
    form, alias, store = await request.form(), request.path_params["alias"], pages_of(request).place.store
    variant = str(form.get("variant", ""))

    def change() -> str:
        made = promote(alias, variant, store, reason=_reason(form), by=_who(request))
        return f"'{alias}' answers with {made.variants[0].name} alone (version {made.version})."

    def words(at: Bench) -> list[str]:
        word = variant_word(alias, variant, at)
        return [word] if word != variant else []  # else there is none of that name, which `promote` says

    return await _compared(request, alias, f"Comparing and promoting {variant}", words, change)


async def rolled_back(request: Request) -> Response:
    """POST /deployments/ALIAS/rollback: it answers as in an earlier version."""
    form, alias = await request.form(), request.path_params["alias"]
    to = str(form.get("to", ""))
    number = int(to) if to.isascii() and to.isdigit() and len(to) < 12 else None
    made = await _changed(request, lambda store: roll_back(alias, store, number, reason=_reason(form), by=_who(request)))
    return back(f"/deployments/{quote(alias)}", f"'{alias}' answers as before (version {made.version}).")


async def _compared(request: Request, alias: str, what: str, words: Callable[[Bench], list[str]], change: Callable[[], str]) -> Response:
    """Compare what the words name in every way that it is computed, then do it, unless somebody else has changed the alias since the page
    was made; what takes longer has a page. Raises GateRefused where one of the ways computes another model."""
    seen, site = str((await request.form()).get("seen", "")), pages_of(request)

    def work() -> Outcome:
        if seen:
            _still(alias, seen, site.place.store)
        at = replace(site.place.bench(), models=replace(models_of(request), weights=Weights()))
        for word in words(at):
            compare_first(word, at, site.server)
        if seen:
            _still(alias, seen, site.place.store)
        return Outcome(f"/deployments/{quote(alias)}", change())

    answer = await errand(request, what, work)
    await state_of(request).refresh(alias)
    return answer


async def _changed(request: Request, change: Any) -> Any:
    """Do it, unless somebody else has changed the alias since the page was made."""
    form, alias, store = await request.form(), request.path_params["alias"], pages_of(request).place.store
    seen = str(form.get("seen", ""))

    def work() -> Any:
        _still(alias, seen, store)
        return change(store)

    made = await away(work)
    await state_of(request).refresh(alias)
    return made


def _still(alias: str, seen: str, store: Store) -> None:
    """Raise UsageError where an alias has another version than the page showed."""
    now = history_of(alias, store)[0].version
    if seen != str(now):
        raise UsageError(
            f"somebody has changed '{alias}' meanwhile: it has the version {now}, and your page showed {seen or 'none'}",
            remedy="look at it as it is now, and decide again",
        )


async def experiment_begun(request: Request) -> Response:
    """POST /deployments/ALIAS/experiment: draw users between two variants from now on."""
    form, alias, store = await request.form(), request.path_params["alias"], pages_of(request).place.store
    metrics = [word for word in str(form.get("metrics", "")).split() if word]
    horizon, margin = str(form.get("horizon", "")).strip(), str(form.get("margin", "")).strip()
    if not metrics:
        raise UsageError("no metric", where="metrics", allowed="one or more, with spaces between: thumbs latency score:helpful")
    plan = ExperimentPlan(
        control=str(form.get("control", "")),
        treatment=str(form.get("treatment", "")).strip(),
        metrics=tuple(map(metric_of, metrics)),
        guardrails=tuple(map(guardrail_of, DEFAULT_GUARDRAILS)),
        horizon=int(horizon) if horizon.isascii() and horizon.isdigit() and len(horizon) < 10 else None,
        margin=share_of(margin, "margin"),
    )

    def change() -> str:
        made, _ = experiments.begin(alias, plan, models_of(request), store, reason=_reason(form), by=_who(request))
        return f"The experiment {made.id} has begun; clients cannot see it."

    def words(at: Bench) -> list[str]:
        return [variant_word(alias, name, at) for name in (plan.control, plan.treatment)]

    return await _compared(request, alias, f"Comparing {plan.control} and {plan.treatment}", words, change)


async def experiment_ended(request: Request) -> Response:
    """POST /deployments/ALIAS/experiment/end: one arm answers alone, the control where none is named."""
    form, alias = await request.form(), request.path_params["alias"]
    arm = str(form.get("variant", "")) or None
    ended, _ = await _changed(request, lambda store: experiments.end(alias, store, promote=arm, reason=_reason(form), by=_who(request)))
    return back(f"/deployments/{quote(alias)}", f"The experiment has ended: {ended.outcome}")


async def rollout_changed(request: Request) -> Response:
    """POST /deployments/ALIAS/rollout/ACT: pause, resume, approve or abort the rollout of an alias."""
    form, alias, act = await request.form(), request.path_params["alias"], _ACTS.get(request.path_params["act"])
    if act is None:
        raise UsageError(f"no act '{request.path_params['act']}'", allowed=", ".join(_ACTS))
    made = await _changed(request, lambda store: act(alias, store, reason=_reason(form), by=_who(request)))
    return back(f"/deployments/{quote(alias)}", f"The rollout is {made.status}.")


def _tried(alias: str, store: Store) -> tuple[Any, list[dict[str, Any]]]:
    """The newest rollout of an alias (None: there was none), and its newest experiments: all that was said of each, and what is seen."""
    try:
        rollout: Any = rollouts.status(alias, store)
    except NotFound:
        rollout = None
    log = Experiments(store)
    tried: list[dict[str, Any]] = [
        {"experiment": each, "said": log.said(each.id), "report": None, "drawn": []} for each in log.of(alias)[:_SHOWN]
    ]
    if tried:
        report = experiments.examine(alias, store)
        now = next((each for each in tried if each["experiment"].id == report.experiment.id), None)
        if now is not None:
            now |= {"report": report, "said": list(report.said), "drawn": _drawn(report)}
    return rollout, tried


def _drawn(report: Any) -> list[tuple[str, float, float, float]]:
    """The metrics whose effect is a difference with both ends, for a picture."""
    kinds = {metric.name: metric.kind for metric in (*report.experiment.plan.metrics, *report.experiment.plan.guardrails)}
    seen = [each for each in report.seen.metrics if kinds.get(each.metric) != "event" and None not in (each.estimate, each.low, each.high)]
    return [(each.metric, each.estimate, each.low, each.high) for each in seen]


def _traffic(store: Store) -> dict[tuple[str, str], dict[str, Any]]:
    """What each variant answered in the last day, by (alias, variant)."""
    return {(row["alias"], row["variant"]): row for row in status(store, since=time.time() - _DAY_S)["variants"]}


def _reason(form: Any) -> str:
    return str(form.get("reason", "")).strip()[:500]


def _who(request: Request) -> str:
    return f"key {key}" if (key := caller_of(request).key) is not None else "the pages"
