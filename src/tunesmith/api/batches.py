"""The Batch API, and the task that answers batches: each line passes through the application's own endpoints."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away, limit_of, listing, project_of, reply
from tunesmith.api.state import store_of
from tunesmith.core import wire
from tunesmith.core.errors import StoreError
from tunesmith.core.types import Record
from tunesmith.core.wire import BadRequest
from tunesmith.flow.jobs.request import check_metadata
from tunesmith.store.batch_lease import AnsweredLine, BatchLease, LeaseLost
from tunesmith.store.batches import ENDPOINTS, UNSERVED, Batches, BatchLine, batch_object, output_line
from tunesmith.store.paging import Row
from tunesmith.store.store import Store

_log = logging.getLogger("tunesmith.api")
_LEASE_S, _POLL_S, _AT_ONCE = 30.0, 0.5, 16


class _Create(Record, frozen=True):
    completion_window: str
    endpoint: str
    input_file_id: str
    metadata: dict[str, str] | None = None
    output_expires_after: dict[str, Any] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0


class _Used(msgspec.Struct):
    usage: _Usage | None = None


async def create(request: Request) -> Response:
    """POST /batches."""
    asked = wire.convert(wire.decode_object(await request.body()), _Create)
    check_metadata(asked.metadata)
    if asked.endpoint not in (*ENDPOINTS, *UNSERVED):
        raise BadRequest(f"'endpoint' is '{asked.endpoint[:100]}'", param="endpoint", code="invalid_value", allowed=", ".join(ENDPOINTS))
    if asked.completion_window != "24h":
        param = "completion_window"
        raise BadRequest(f"'{param}' is '{asked.completion_window[:50]}'", param=param, code="invalid_value", allowed="24h")
    batches = Batches(store_of(request))
    row = await away(
        batches.create,
        project=project_of(request),
        endpoint=asked.endpoint,
        input_file=asked.input_file_id,
        window=asked.completion_window,
        metadata=asked.metadata,
    )
    return reply(await away(_shown, batches, row))


def _shown(batches: Batches, row: Row) -> dict[str, Any]:
    return batch_object(row, batches.counts(row["id"]))


async def retrieve(request: Request) -> Response:
    """GET /batches/{batch}."""
    batches = Batches(store_of(request))
    row = await away(batches.find, request.path_params["batch"], project_of(request))
    return reply(await away(_shown, batches, row))


async def list_batches(request: Request) -> Response:
    """GET /batches."""
    batches, query = Batches(store_of(request)), request.query_params
    rows, more = await away(batches.listed, project_of(request), after=query.get("after"), limit=limit_of(query, 20))
    return reply(listing([await away(_shown, batches, row) for row in rows], more, ends=True))


async def cancel(request: Request) -> Response:
    """POST /batches/{batch}/cancel."""
    batches = Batches(store_of(request))
    row = await away(batches.cancel, request.path_params["batch"], project_of(request))
    return reply(await away(_shown, batches, row))


async def work(app: Any, store: Store) -> None:
    """Answer batches for as long as the server runs; `app(project)` is the application inside its door."""
    batches = Batches(store)
    while True:
        try:
            lease = await away(batches.lease, _LEASE_S)
            if lease is not None:
                await _held(lease, _answer(app(lease.row["project"]), batches, lease))
                continue
        except LeaseLost as lost:
            _log.warning("%s; it is left to that one", lost)
        except Exception:  # noqa: BLE001 - the task must live as long as the server
            _log.exception("a batch could not be answered; it is tried again")
        await asyncio.sleep(_POLL_S)


async def _held(lease: BatchLease, work: Coroutine[Any, Any, None]) -> None:
    """Do the work and keep the lease meanwhile, however long one line takes. Raises LeaseLost as soon as another server has the batch."""

    async def beats() -> None:
        while True:
            await asyncio.sleep(lease.seconds / 3)
            try:
                await away(lease.beat)
            except StoreError as error:  # a busy database: the lease lasts for two more beats
                _log.warning("the lease of a batch could not be kept: %s", error)

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(beats())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _answer(app: Any, batches: Batches, lease: BatchLease) -> None:
    lines, errors = await away(batches.read, lease.row)
    if errors and lease.row["status"] != "cancelling":
        await away(lease.finish, "failed", errors)
        return
    await away(lease.begin, len(lines))
    done = await away(lease.answered)
    left = [(i, line) for i, line in enumerate(lines) if i not in done]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1", timeout=None) as client:
        while left:
            now = await away(lease.now)
            if now["status"] == "cancelling" or now["times"]["expires_at"] < time.time():
                break
            part, left = left[:_AT_ONCE], left[_AT_ONCE:]
            await away(lease.keep, await _ask(client, part))
    await away(lease.finish, "expired" if left else "completed")


async def _ask(client: httpx.AsyncClient, part: Sequence[tuple[int, BatchLine]]) -> list[AnsweredLine]:
    async def answered(number: int, line: BatchLine) -> AnsweredLine:
        body = {key: value for key, value in line.body.items() if key != "stream"}
        answer = await client.post(line.url, content=msgspec.json.encode(body), headers={"content-type": "application/json"})
        tokens = _tokens(answer.content) if answer.status_code == 200 else (0, 0)
        output = output_line(line.custom_id, answer.status_code, answer.headers.get("x-request-id", ""), answer.content)
        return number, answer.status_code == 200, tokens, output

    return await asyncio.gather(*(answered(number, line) for number, line in part))


def _tokens(body: bytes) -> tuple[int, int]:
    """(prompt, completion) tokens of an answer; 0 where another server that answered counts none."""
    try:
        used = msgspec.json.decode(body, type=_Used).usage
    except msgspec.DecodeError:
        used = None
    if used is None:
        return 0, 0
    return used.prompt_tokens or used.input_tokens or 0, used.completion_tokens or used.output_tokens or 0
