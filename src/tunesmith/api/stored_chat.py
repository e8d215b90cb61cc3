"""Stored chat completions: list, retrieve, messages, update, delete; knows nothing about how they were answered."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away, limit_of, listing, metadata_of, oldest_first, project_of, reply
from tunesmith.api.state import store_of
from tunesmith.core import wire
from tunesmith.core.types import Record
from tunesmith.flow.jobs.request import check_metadata
from tunesmith.store.chats import Chats
from tunesmith.store.paging import Row


class _Update(Record, frozen=True):
    metadata: dict[str, str] | None


def _shown(row: Row) -> dict[str, Any]:
    return {**row["response"], "metadata": row["metadata"] or {}}


async def list_chats(request: Request) -> Response:
    """GET /chat/completions."""
    query = request.query_params
    rows, more = await away(
        Chats(store_of(request)).listed,
        project_of(request),
        model=query.get("model"),
        metadata=metadata_of(query),
        after=query.get("after"),
        limit=limit_of(query, 20),
        oldest_first=oldest_first(query, "asc"),
    )
    return reply(listing(map(_shown, rows), more, ends=True))


async def _row(request: Request) -> Row:
    return await away(Chats(store_of(request)).find, request.path_params["chat"], project_of(request))


async def retrieve(request: Request) -> Response:
    """GET /chat/completions/{chat}."""
    return reply(_shown(await _row(request)))


async def messages(request: Request) -> Response:
    """GET /chat/completions/{chat}/messages: what was asked."""
    row, query = await _row(request), request.query_params
    shown = [
        {"id": f"{row['id']}-{i}", "content": None, "refusal": None, **message} for i, message in enumerate(row["request"]["messages"])
    ]
    if not oldest_first(query, "asc"):
        shown.reverse()
    after, limit = query.get("after"), limit_of(query, 20)
    start = 0 if after is None else next((i + 1 for i, message in enumerate(shown) if message["id"] == after), len(shown))
    return reply(listing(shown[start : start + limit], len(shown) > start + limit, ends=True))


async def update(request: Request) -> Response:
    """POST /chat/completions/{chat}: new metadata."""
    asked = wire.convert(wire.decode_object(await request.body()), _Update)
    check_metadata(asked.metadata)
    return reply(_shown(await away(Chats(store_of(request)).update, request.path_params["chat"], project_of(request), asked.metadata)))


async def delete(request: Request) -> Response:
    """DELETE /chat/completions/{chat}."""
    number = request.path_params["chat"]
    await away(Chats(store_of(request)).delete, number, project_of(request))
    return reply({"id": number, "object": "chat.completion.deleted", "deleted": True})
