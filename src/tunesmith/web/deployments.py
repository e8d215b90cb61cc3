"""Pages about what names answer with: the variants in force, their traffic, the history; promote and roll back."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.api.state import state_of
from tunesmith.core.errors import NotFound, UsageError
from tunesmith.flow import rollouts
from tunesmith.flow.deploying import history_of, promote, roll_back
from tunesmith.flow.traffic import by_alias
from tunesmith.monitor.status import status
from tunesmith.store.deployments import Deployments
from tunesmith.store.experiments import Experiments
from tunesmith.store.store import Store
from tunesmith.web.door import allowed
from tunesmith.web.page import back, caller_of, page, pages_of

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
    in_force, seen = await away(lambda: (Deployments(store).in_force(), by_alias(store)))
    return page(request, "deployments", deployments=list(in_force.values()), traffic=seen)


async def one(request: Request) -> Response:
    """GET /deployments/ALIAS."""
    store, alias = pages_of(request).place.store, request.path_params["alias"]
    history, seen, (rollout, experiments) = await away(lambda: (history_of(alias, store), _traffic(store), _tried(alias, store)))
    return page(
        request,
        "deployment",
        now=history[0],
        history=history,
        traffic=seen,
        rollout=rollout,
        experiments=experiments,
        may=allowed(caller_of(request), "POST", request.url.path),
        path=f"/deployments/{quote(alias)}",
    )


async def promoted(request: Request) -> Response:
    """POST /deployments/ALIAS/promote: one of its variants answers alone."""
    form, alias = await request.form(), request.path_params["alias"]
    variant, why = str(form.get("variant", "")), _reason(form)
    made = await _changed(request, lambda store: promote(alias, variant, store, reason=why, by=_who(request)))
    return back(f"/deployments/{quote(alias)}", f"'{alias}' answers with {made.variants[0].name} alone (version {made.version}).")


async def rolled_back(request: Request) -> Response:
    """POST /deployments/ALIAS/rollback: it answers as in an earlier version."""
    form, alias = await request.form(), request.path_params["alias"]
    to = str(form.get("to", ""))
    number = int(to) if to.isascii() and to.isdigit() and len(to) < 12 else None
    made = await _changed(request, lambda store: roll_back(alias, store, number, reason=_reason(form), by=_who(request)))
    return back(f"/deployments/{quote(alias)}", f"'{alias}' answers as before (version {made.version}).")


async def _changed(request: Request, change: Any) -> Any:
    """Do it, unless somebody else has changed the alias since the page was made."""
    form, alias, store = await request.form(), request.path_params["alias"], pages_of(request).place.store
    seen = str(form.get("seen", ""))

    def work() -> Any:
        now = history_of(alias, store)[0].version
        if seen != str(now):
            raise UsageError(
                f"somebody has changed '{alias}' meanwhile: it has the version {now}, and your page showed {seen or 'none'}",
                remedy="look at it as it is now, and decide again",
            )
        return change(store)

    made = await away(work)
    await state_of(request).refresh(alias)
    return made


async def rollout_changed(request: Request) -> Response:
    """POST /deployments/ALIAS/rollout/ACT: pause, resume, approve or abort the rollout of an alias."""
    form, alias, act = await request.form(), request.path_params["alias"], _ACTS.get(request.path_params["act"])
    if act is None:
        raise UsageError(f"no act '{request.path_params['act']}'", allowed=", ".join(_ACTS))
    made = await _changed(request, lambda store: act(alias, store, reason=_reason(form), by=_who(request)))
    return back(f"/deployments/{quote(alias)}", f"The rollout is {made.status}.")


def _tried(alias: str, store: Store) -> tuple[Any, list[tuple[Any, list[Any]]]]:
    """The newest rollout of an alias (None: there was none), and its newest experiments with all that was said of each."""
    try:
        rollout: Any = rollouts.status(alias, store)
    except NotFound:
        rollout = None
    experiments = Experiments(store)
    return rollout, [(each, experiments.said(each.id)) for each in experiments.of(alias)[:_SHOWN]]


def _traffic(store: Store) -> dict[tuple[str, str], dict[str, Any]]:
    """What each variant answered in the last day, by (alias, variant)."""
    return {(row["alias"], row["variant"]): row for row in status(store, since=time.time() - _DAY_S)["variants"]}


def _reason(form: Any) -> str:
    return str(form.get("reason", "")).strip()[:500]


def _who(request: Request) -> str:
    return f"key {key}" if (key := caller_of(request).key) is not None else "the pages"
