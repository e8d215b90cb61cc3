"""What endpoints share about HTTP: JSON answers, pages, query parameters; knows nothing about what is listed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any, ParamSpec, TypeVar, cast

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.core.wire import BadRequest

P = ParamSpec("P")
T = TypeVar("T")
_encode = msgspec.json.Encoder().encode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_METADATA = re.compile(r"metadata\[(.*)\]")


def reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(_encode(body), status, headers, media_type="application/json")


async def away(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run what waits for the disk in a thread, so that other requests go on."""
    return await asyncio.to_thread(work, *args, **kwargs)


def project_of(request: Request) -> str:
    """The project of the request's key (`default` while there are no keys)."""
    return str(request.state.project)


def hidden_of(request: Request) -> Collection[str]:
    """The purposes of files that the request's key may not see."""
    return cast(Collection[str], request.state.caller.hidden)


def limit_of(query: QueryParams, default: int) -> int:
    """`limit`; 0 and less count as 1. Raises BadRequest when it is no number."""
    text = query.get("limit") or str(default)
    try:
        return min(max(int(text), 1), 1 << 31)
    except ValueError as error:
        raise BadRequest(f"'limit' is {text[:50]!r}", param="limit", code="invalid_value", allowed="a whole number") from error


def oldest_first(query: QueryParams, default: str = "desc") -> bool:
    """Whether `order` asks for the oldest first. Raises BadRequest for an unknown word."""
    order = query.get("order") or default
    if order not in ("asc", "desc", "ascending", "descending"):
        raise BadRequest(f"'order' is {order[:50]!r}", param="order", code="invalid_value", allowed="asc, desc")
    return order.startswith("asc")


def metadata_of(query: QueryParams) -> dict[str, str]:
    """The pairs of `metadata[key]=value`."""
    return {match[1]: value for name, value in query.multi_items() if (match := _METADATA.fullmatch(name))}


def listing(data: Iterable[dict[str, Any]], more: bool, *, ends: bool = False, empty: str | None = "") -> dict[str, Any]:
    """A list object; with `ends` also `first_id` and `last_id` (`empty` when nothing is listed)."""
    rows = list(data)
    body: dict[str, Any] = {"object": "list", "data": rows, "has_more": more}
    if ends:
        body |= {"first_id": rows[0]["id"] if rows else empty, "last_id": rows[-1]["id"] if rows else empty}
    return body
