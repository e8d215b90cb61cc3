"""Pages that wait for work that a page started: what is done soon leads to its outcome, what takes longer has a page of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.core.errors import NotFound
from tunesmith.web.errands import Outcome
from tunesmith.web.page import back, caller_of, page, pages_of

_SOON_S = 1.5


async def errand(request: Request, what: str, work: Callable[[], Outcome]) -> Response:
    """Do it: what is done soon leads to its outcome, what takes longer to a page of its own. Raises what fails soon."""
    made = pages_of(request).errands.begin(what, caller_of(request).project, work)
    try:
        done = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(made.future)), _SOON_S)
    except TimeoutError:
        return back(f"/errands/{made.id}")
    return back(done.path, done.said)


async def show(request: Request) -> Response:
    """GET /errands/ID: that it is under way; once it is done, what it did; the error where it failed."""
    made, caller = pages_of(request).errands.find(request.path_params["id"]), caller_of(request)
    if made is None or (caller.sees is not None and made.project != caller.project):
        raise NotFound(
            "this server does not know of such work: it has started again since, or remembers newer work only",
            remedy="start it again; what it had finished is kept and not done twice",
        )
    if not made.future.done():
        return page(request, "errand", errand=made, seconds=time.time() - made.begun)
    by_script = "hx-request" in request.headers
    if by_script and made.future.exception() is not None:
        return Response(status_code=204, headers={"hx-redirect": request.url.path})  # the error is a page of its own
    done = made.future.result()
    answer = back(done.path, done.said)
    return Response(status_code=204, headers={"hx-redirect": answer.headers["location"]}) if by_script else answer
