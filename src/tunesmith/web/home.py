"""The first page: where the project stands, what waits, what runs, what is served."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.api.state import state_of
from tunesmith.flow.circle import Circle, Todo, circle
from tunesmith.web.page import NAV, caller_of, page, pages_of

_PLACES = {"data": "/data", "training": "/jobs", "evaluation": "/evaluation", "deployment": "/deployments", "monitoring": "/monitoring"}
_STEPS = {  # what comes next → the page where it is done, and its button
    "data": ("/data", "Bring in a file"),
    "training": ("/jobs/new", "Order a job"),
    "evaluation": ("/evaluation", "Measure one"),
    "deployment": ("/deployments", "Deploy one"),
    "monitoring": ("/playground", "Ask it something"),
    "log": ("/monitoring/log", "Go to the log"),
}
_LABELS = {"job": "Look at the job", "run": "Look at the run", "alias": "Look at deployments"}


async def show(request: Request) -> Response:
    """GET /."""
    place = pages_of(request).place
    stands: Circle = await away(lambda: circle(place.context()))
    names = {deployment.alias: deployment for deployment in stands.served}
    served: list[dict[str, Any]] = [
        {
            "alias": deployment.alias,
            "variants": ", ".join(variant.name for variant in deployment.variants),
            "strategy": deployment.strategy,
            "since": deployment.created,
            "deployed": True,
        }
        for deployment in names.values()
    ]
    others = [name for name, _ in state_of(request).router.listed() if name not in names]
    served += [{"alias": name, "variants": "itself", "strategy": "–", "since": None, "deployed": False} for name in others]
    return page(
        request,
        "home",
        circle=stands,
        places={name: path if path in dict(NAV) else "" for name, path in _PLACES.items()},
        todos=[(todo, place_of(todo)) for todo in stands.todo],
        next_place=place_of(stands.next),
        next_label=_label(stands.next),
        served=served,
        errands=pages_of(request).errands.under_way() if caller_of(request).sees is None else [],
        base_url=f"{request.url.scheme}://{request.url.netloc}/v1",
    )


def place_of(todo: Todo) -> str:
    """The page where something to decide is shown."""
    kind, _, name = todo.about.partition(" ")
    where = (
        _STEPS[name][0]
        if kind == "step"
        else {"job": f"/jobs/{quote(name)}", "run": "/evaluation", "alias": f"/deployments/{quote(name)}"}.get(kind, "")
    )
    return where if "/" + where.strip("/").partition("/")[0] in dict(NAV) else ""


def _label(todo: Todo) -> str:
    kind, _, name = todo.about.partition(" ")
    return _STEPS[name][1] if kind == "step" else _LABELS.get(kind, "Go there")
