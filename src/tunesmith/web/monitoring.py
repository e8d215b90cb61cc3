"""Pages about what is answered: traffic, errors, latency and cost by variant, the log, one request down to its rows."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.flow.log_pages import log_leaf, logged_request, nearest_rows
from tunesmith.flow.trace_data import NAME_OF_SPLIT
from tunesmith.flow.traffic import TRAFFIC, traffic
from tunesmith.monitor.status import status
from tunesmith.store.interaction_pages import LogFilter
from tunesmith.web.door import allowed
from tunesmith.web.page import caller_of, page, pages_of

_ROWS = 50


async def show(request: Request) -> Response:
    """GET /monitoring[?hours=]."""
    store, chosen = pages_of(request).place.store, request.query_params.get("hours", "24")
    hours = chosen if chosen in TRAFFIC else "24"
    sees = caller_of(request).sees

    def look() -> tuple[dict[str, Any], Any, list[dict[str, Any]]]:
        seen = status(store, since=time.time() - 3600 * float(hours)) if sees is None else None
        return seen or {}, traffic(store, hours, sees), log_leaf(store, LogFilter(project=sees), limit=8)

    seen, drawn, newest = await away(look)
    periods = [{"name": words, "href": f"/monitoring?hours={each}", "here": each == hours} for each, (words, _) in TRAFFIC.items()]
    return page(request, "monitoring", seen=seen, drawn=drawn, newest=newest, periods=periods)


async def log(request: Request) -> Response:
    """GET /monitoring/log[?alias=&variant=&errors=&before=]."""
    query = request.query_params
    wanted = LogFilter(
        alias=query.get("alias", ""), variant=query.get("variant", ""), errors="errors" in query, project=caller_of(request).sees
    )
    rows = await away(log_leaf, pages_of(request).place.store, wanted, before=query.get("before", ""), limit=_ROWS)
    given = {"alias": wanted.alias, "variant": wanted.variant, "errors": "1" if wanted.errors else ""}
    kept = {key: value for key, value in given.items() if value}
    after = f"/monitoring/log?{urlencode({**kept, 'before': rows[-1]['id']})}" if len(rows) == _ROWS else None
    return page(request, "log", rows=rows, wanted=wanted, after=after)


async def one(request: Request) -> Response:
    """GET /monitoring/log/ID."""
    found = await away(logged_request, pages_of(request).place.store, request.path_params["id"], caller_of(request).sees)
    return page(
        request,
        "logged",
        asked=found.asked,
        words=found.words,
        way=found.way,
        place_of=_place_of,
        may=allowed(caller_of(request), "POST", f"/monitoring/log/{found.asked.id}/feedback"),
    )


async def nearest(request: Request) -> Response:
    """GET /monitoring/log/ID/nearest: the rows that taught its model which are most like it."""
    number = request.path_params["id"]
    version, near = await away(nearest_rows, pages_of(request).place.store, number, caller_of(request).sees)
    return page(request, "nearest", id=number, version=version, near=near)


def _place_of(link: Any) -> str:
    """The page of a thing on the way."""
    if link.kind == "job":
        return f"/jobs/{quote(link.id)}"
    if link.kind == "deployment":
        return f"/deployments/{quote(link.id.partition('@')[0])}"
    if link.kind == "data" and link.id != "unknown":
        return f"/data/{quote(link.id[:NAME_OF_SPLIT])}"
    return f"/data/{quote(link.id)}" if link.kind == "data version" else "/jobs/run" if link.kind in ("run", "training") else ""
