"""Pages about training: jobs and the project's own run, with live curves and logs; pause, resume, cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away, reply
from tunesmith.flow.datasets.table import every_version, frozen_rows
from tunesmith.flow.jobs.figures import RUN, Kind, curves, run_curves
from tunesmith.flow.jobs.order import SEALED, order, order_again, settings_of
from tunesmith.flow.pipeline.run import stage_states
from tunesmith.store.jobs import FINAL, Jobs
from tunesmith.store.paging import Row
from tunesmith.store.runs import Runs
from tunesmith.web.door import allowed
from tunesmith.web.errands import Outcome
from tunesmith.web.page import back, caller_of, page, pages_of
from tunesmith.web.waiting import errand
from tunesmith.web.words import known_words, models_of

_JOBS, _EVENTS, _RUNS = 50, 200, 20


async def listed(request: Request) -> Response:
    """GET /jobs[?after=]."""
    place, after = pages_of(request).place, request.query_params.get("after")
    jobs, more = await away(Jobs(place.store).listed, caller_of(request).sees, after=after, limit=_JOBS)
    runs = await away(lambda: Runs(place.store).listed(place.project.name, limit=_RUNS)) if _sees_runs(request) else []
    return page(request, "jobs", jobs=jobs, more=more, runs=runs, base=place.project.base, may=allowed(caller_of(request), "POST", "/jobs"))


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


async def new(request: Request) -> Response:
    """GET /jobs/new[?data=&from=]: what a new job would be: over a data version, or an earlier job with a change."""
    place, query = pages_of(request).place, request.query_params
    before = await away(Jobs(place.store).find, query["from"], caller_of(request).sees) if "from" in query else None
    known = await away(lambda: every_version(place.context()))
    parts = [
        {"word": f"{v.id}:{part}", "text": f"{v.id[:12]} {part}, {v.recipe.get('step', '')}, {count:,} rows"}
        for v in known[:30]
        for part, count in v.counts.items()
        if part != SEALED
    ]
    words = await away(known_words, request)
    given = before["method"][before["method"]["type"]].get("hyperparameters", {}) if before is not None else {}
    text = " ".join(
        f"{key}={value}" for key, value in given.items() if value not in ("auto", "default", None) and not isinstance(value, dict)
    )
    return page(
        request, "job_new", before=before, parts=parts, words=words, chosen=query.get("data", ""), given=text, base=place.project.base
    )


async def ordered(request: Request) -> Response:
    """POST /jobs: order a job, which a worker of this server carries out."""
    form, place, caller = await request.form(), pages_of(request).place, caller_of(request)
    given = {name: str(form.get(name, "")).strip() for name in ("from", "data", "validation", "model", "settings", "suffix")}
    settings = settings_of(given["settings"])

    def work() -> Outcome:
        if given["from"]:
            row = order_again(place.store, models_of(request), given["from"], settings, project=caller.sees)
            return Outcome(f"/jobs/{row['id']}", f"Ordered once more, after {given['from']}.")
        at = place.context()
        held = frozen_rows(at, given["validation"]) if given["validation"] else None
        row = order(
            place.store, models_of(request), given["model"] or place.project.base, frozen_rows(at, given["data"]), validation=held,
            settings=settings, suffix=given["suffix"], project=caller.project,
        )  # fmt: skip
        return Outcome(f"/jobs/{row['id']}", "Ordered; it begins as soon as a worker is free.")

    return await errand(request, "Ordering a job", work)


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
