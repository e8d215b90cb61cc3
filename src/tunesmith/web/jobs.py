"""Pages about training: jobs and the project's own run, with live curves and logs; pause, resume, cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away, reply
from tunesmith.flow.jobs.figures import RUN, Kind, curves, run_curves
from tunesmith.flow.pipeline.run import stage_states
from tunesmith.store.jobs import FINAL, Jobs
from tunesmith.store.paging import Row
from tunesmith.store.runs import Runs
from tunesmith.web.door import allowed
from tunesmith.web.page import back, caller_of, page, pages_of

_JOBS, _EVENTS, _RUNS = 50, 200, 20


async def listed(request: Request) -> Response:
    """GET /jobs[?after=]."""
    place, after = pages_of(request).place, request.query_params.get("after")
    jobs, more = await away(Jobs(place.store).listed, caller_of(request).sees, after=after, limit=_JOBS)
    runs = await away(lambda: Runs(place.store).listed(place.project.name, limit=_RUNS)) if _sees_runs(request) else []
    return page(request, "jobs", jobs=jobs, more=more, runs=runs, base=place.project.base)


async def one(request: Request) -> Response:
    """GET /jobs/ID."""
    store = pages_of(request).place.store
    job = await _job(request)
    events, more = await away(Jobs(store).events, job["id"], limit=_EVENTS)
    checkpoints, _ = await away(Jobs(store).checkpoints, job["id"], limit=20)
    return page(
        request,
        "job",
        job=job,
        events=events,
        more=more,
        checkpoints=checkpoints,
        total=next((event["data"]["total_steps"] for event in events if event["data"] and event["data"].get("total_steps")), None),
        ended=job["status"] in FINAL,
        settings=_settings(job),
        may=allowed(caller_of(request), "POST", f"/jobs/{job['id']}"),
    )


def _settings(job: Row) -> list[tuple[str, str]]:
    method = job["method"][job["method"]["type"]]
    return [(key, str(value)) for key, value in {**method.get("hyperparameters", {}), **job["extras"]}.items()]


async def run(request: Request) -> Response:
    """GET /jobs/run: the project's own run, stage by stage."""
    place = pages_of(request).place

    def look() -> tuple[Any, Any]:
        seen, newest = place.context().view, Runs(place.store).last(place.project.name)
        return (stage_states(seen) if seen is not None and newest is not None else None), newest

    states, newest = await away(look)
    return page(request, "run", states=states, run=newest)


async def curve(request: Request) -> Response:
    """GET /jobs/ID/curve.json?kind=&after=: what was measured since the last look."""
    kind: Kind = "rate" if request.query_params.get("kind") == "rate" else "loss"
    text = request.query_params.get("after", "")
    after, place = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0, pages_of(request).place
    if request.path_params["job"] == RUN:
        found = await away(lambda: run_curves(place.context(), kind, after))
    else:
        found = await away(curves, place.store, (await _job(request))["id"], kind, after)
    return reply({field: getattr(found, field) for field in found.__struct_fields__}, headers={"cache-control": "no-store"})


async def _job(request: Request) -> Row:
    return await away(Jobs(pages_of(request).place.store).find, request.path_params["job"], caller_of(request).sees)


def _changing(change: Callable[[Jobs, str, str | None], Row], said: str) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        job = await away(change, Jobs(pages_of(request).place.store), request.path_params["job"], caller_of(request).sees)
        return back(f"/jobs/{job['id']}", said)

    return endpoint


pause = _changing(Jobs.pause, "The job pauses at its next step and keeps a checkpoint.")
resume = _changing(Jobs.resume, "The job goes on from its last checkpoint.")
cancel = _changing(Jobs.cancel, "The job was cancelled.")


def _sees_runs(request: Request) -> bool:
    return allowed(caller_of(request), "GET", "/evaluation")
