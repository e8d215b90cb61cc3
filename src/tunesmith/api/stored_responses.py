"""Kept responses: retrieve, the items of their requests, cancel, delete; knows nothing about how they were answered."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api import proxy_responses
from tunesmith.api.http import away, limit_of, listing, oldest_first, project_of, reply
from tunesmith.api.state import state_of, store_of
from tunesmith.core.wire import BadRequest
from tunesmith.store.paging import Row
from tunesmith.store.responses import Responses

_MOST = 100


async def _row(request: Request) -> Row:
    return await away(Responses(store_of(request)).find, request.path_params["response"], project_of(request))


def _without_effect(request: Request, *names: str) -> dict[str, str]:
    """The header that names query parameters which change nothing: a response is shown as it was kept."""
    given = [name for name in names if name in request.query_params or f"{name}[]" in request.query_params]
    return {"x-tunesmith-ignored": ",".join(given)} if given else {}


async def retrieve(request: Request) -> Response:
    """GET /responses/{response}."""
    if request.query_params.get("stream") == "true":
        raise BadRequest(
            "'stream' is true, and only the response to a request that asks for it is streamed",
            param="stream",
            code="unsupported_value",
            allowed="false",
        )
    row = await _row(request)
    return reply(row["response"], headers=_without_effect(request, "include", "include_obfuscation", "starting_after"))


async def input_items(request: Request) -> Response:
    """GET /responses/{response}/input_items: the items of its own request."""
    row, query = await _row(request), request.query_params
    items: list[dict[str, Any]] = list(row["items"])
    if not oldest_first(query):
        items.reverse()
    after, limit = query.get("after"), min(limit_of(query, 20), _MOST)
    start = 0 if after is None else next((i + 1 for i, item in enumerate(items) if item["id"] == after), len(items))
    body = listing(items[start : start + limit], len(items) > start + limit, ends=True)
    return reply(body, headers=_without_effect(request, "include"))


async def cancel(request: Request) -> Response:
    """POST /responses/{response}/cancel: whatever is kept here was answered while its client waited. Raises BadRequest."""
    await _row(request)
    raise BadRequest("Cannot cancel a synchronous response.", param="response_id")


async def delete(request: Request) -> Response:
    """DELETE /responses/{response}: here, and first at the other server that has it too."""
    row = await _row(request)
    await proxy_responses.forget(state_of(request), row)
    await away(Responses(store_of(request)).delete, row["id"], project_of(request))
    return reply({"id": row["id"], "object": "response", "deleted": True})
