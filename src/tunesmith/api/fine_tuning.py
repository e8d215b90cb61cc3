"""The fine-tuning API: jobs, their events (also as a stream), checkpoints and permissions. Knows nothing about how a job is worked on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tunesmith.api.http import away, limit_of, listing, metadata_of, oldest_first, project_of, reply
from tunesmith.api.state import state_of, store_of
from tunesmith.core import wire
from tunesmith.core.types import Record
from tunesmith.core.wire import BadRequest
from tunesmith.flow.jobs.request import COMMON, job_request
from tunesmith.flow.jobs.start import starting
from tunesmith.store.files import Files
from tunesmith.store.jobs import FINAL, Jobs
from tunesmith.store.paging import Missing, Row
from tunesmith.store.permissions import Permissions

_POLL_S = 0.25
_STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def job_object(row: Row) -> dict[str, Any]:
    """A job as the API shows it."""
    method = row["method"]
    hyperparameters = dict(method[method["type"]]["hyperparameters"])
    # A pause takes effect at the next step: until its worker has let go, the job still runs.
    stopping = row["status"] == "paused" and row["lease"] is not None and row["lease_until"] > time.time()
    common = {key: hyperparameters[key] for key in COMMON}
    return {
        "id": row["id"],
        "object": "fine_tuning.job",
        "created_at": int(row["created"]),
        "error": row["error"],
        "estimated_finish": _seconds(row["estimated_finish"]),
        "fine_tuned_model": row["fine_tuned_model"],
        "finished_at": _seconds(row["finished"]),
        "hyperparameters": hyperparameters if method["type"] == "supervised" else common,
        "integrations": row["integrations"] or [],
        "metadata": row["metadata"],
        "method": method,
        "model": row["model"],
        "organization_id": f"org-{row['project']}",
        "result_files": row["result_files"],
        "seed": row["seed"],
        "status": "running" if stopping else row["status"],
        "trained_tokens": row["trained_tokens"],
        "training_file": row["training_file"],
        "validation_file": row["validation_file"],
    }


def _seconds(value: float | None) -> int | None:
    return None if value is None else int(value)


def event_object(row: Row) -> dict[str, Any]:
    """An event as the API shows it; `data` is an object always."""
    body = {"id": row["id"], "object": "fine_tuning.job.event", "created_at": int(row["created"])}
    return body | {key: row[key] for key in ("level", "message", "type", "data")}


def checkpoint_object(row: Row) -> dict[str, Any]:
    """A checkpoint as the API shows it; `result_files` are its weights."""
    return {
        "id": row["id"],
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(row["created"]),
        "fine_tuned_model_checkpoint": row["model"],
        "fine_tuning_job_id": row["job"],
        "metrics": {key: value for key, value in row["metrics"].items() if isinstance(value, (int, float))},
        "result_files": row["files"],
        "step_number": row["step"],
    }


async def create(request: Request) -> Response:
    """POST /fine_tuning/jobs."""
    body = await request.body()
    key = request.headers.get("idempotency-key")
    again = request.headers.get("x-stainless-retry-count", "0") not in ("", "0")
    return reply(job_object(await away(_create, request, body, key, again)))


def _create(request: Request, body: bytes, key: str | None, again: bool) -> Row:
    state, store, project = state_of(request), store_of(request), project_of(request)
    asked = job_request(body, python=state.python_graders, word_of=lambda name: state.grading(name, project))
    start = state.base_of(asked.model, project)
    asked = starting(asked, start, state.models)
    for param in ("training_file", "validation_file"):
        number = getattr(asked, param)
        if number is None:
            continue
        try:
            purpose = Files(store).find(number, project)["purpose"]
        except Missing as error:
            raise BadRequest(f"invalid {param}: {number[:200]} does not exist", param=param, code=f"invalid_{param}") from error
        if purpose != "fine-tune":
            raise BadRequest(
                f"invalid {param}: {number} has the purpose '{purpose}'", param=param, code=f"invalid_{param}", allowed="fine-tune"
            )
    return Jobs(store).create(asked, base=start.as_base, project=project, key=key, again=again)


async def list_jobs(request: Request) -> Response:
    """GET /fine_tuning/jobs."""
    query = request.query_params
    rows, more = await away(
        Jobs(store_of(request)).listed,
        project_of(request),
        after=query.get("after"),
        limit=limit_of(query, 20),
        metadata=metadata_of(query),
    )
    return reply(listing(map(job_object, rows), more))


async def retrieve(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job}."""
    return reply(job_object(await _job(request)))


async def _job(request: Request) -> Row:
    return await away(Jobs(store_of(request)).find, request.path_params["job"], project_of(request))


def _changing(change: Callable[[Jobs, str, str | None], Row]) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return reply(job_object(await away(change, Jobs(store_of(request)), request.path_params["job"], project_of(request))))

    return endpoint


cancel, pause, resume = _changing(Jobs.cancel), _changing(Jobs.pause), _changing(Jobs.resume)


async def list_events(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job}/events; with `stream=true` as server-sent events until the job ends."""
    query, job, jobs = request.query_params, await _job(request), Jobs(store_of(request))
    if query.get("stream", "").lower() == "true":
        return StreamingResponse(_events(jobs, job["id"], query.get("after")), media_type="text/event-stream", headers=_STREAM)
    rows, more = await away(jobs.events, job["id"], after=query.get("after"), limit=limit_of(query, 20))
    return reply(listing(map(event_object, rows), more))


async def _events(jobs: Jobs, number: str, after: str | None) -> AsyncIterator[bytes]:
    """Oldest first, each as it comes; the job is looked at before its events, so that none is missed at the end."""
    while True:
        ended = (await away(jobs.find, number, None))["status"] in FINAL
        rows, more = await away(jobs.events, number, after=after, limit=100, oldest_first=True)
        for row in rows:
            yield b"data: " + msgspec.json.encode(event_object(row)) + b"\n\n"
            after = row["id"]
        if ended and not more:
            yield b"data: [DONE]\n\n"
            return
        if not more:
            await asyncio.sleep(_POLL_S)


async def list_checkpoints(request: Request) -> Response:
    """GET /fine_tuning/jobs/{job}/checkpoints."""
    query, job = request.query_params, await _job(request)
    rows, more = await away(Jobs(store_of(request)).checkpoints, job["id"], after=query.get("after"), limit=limit_of(query, 10))
    return reply(listing(map(checkpoint_object, rows), more, ends=True, empty=None))


class _Allow(Record, frozen=True):
    project_ids: tuple[str, ...]


def permission_object(row: Row) -> dict[str, Any]:
    """A permission as the API shows it."""
    return {"id": row["id"], "object": "checkpoint.permission", "created_at": int(row["created"]), "project_id": row["project_id"]}


async def create_permissions(request: Request) -> Response:
    """POST /fine_tuning/checkpoints/{checkpoint}/permissions: let other projects use a checkpoint."""
    asked = wire.convert(wire.decode_object(await request.body()), _Allow)
    if not 1 <= len(asked.project_ids) <= 100:
        raise BadRequest(f"{len(asked.project_ids)} project ids", param="project_ids", code="invalid_value", allowed="1 to 100")
    permissions = Permissions(store_of(request))
    rows = await away(permissions.allow, request.path_params["checkpoint"], project_of(request), asked.project_ids)
    return reply(listing(map(permission_object, rows), False, ends=True, empty=None))


async def list_permissions(request: Request) -> Response:
    """GET /fine_tuning/checkpoints/{checkpoint}/permissions."""
    query = request.query_params
    rows, more = await away(
        Permissions(store_of(request)).listed,
        request.path_params["checkpoint"],
        project_of(request),
        to=query.get("project_id"),
        after=query.get("after"),
        limit=limit_of(query, 10),
        oldest_first=oldest_first(query, "descending"),
    )
    return reply(listing(map(permission_object, rows), more, ends=True, empty=None))


async def delete_permission(request: Request) -> Response:
    """DELETE /fine_tuning/checkpoints/{checkpoint}/permissions/{permission}."""
    number = request.path_params["permission"]
    await away(Permissions(store_of(request)).delete, request.path_params["checkpoint"], project_of(request), number)
    return reply({"id": number, "object": "checkpoint.permission", "deleted": True})
