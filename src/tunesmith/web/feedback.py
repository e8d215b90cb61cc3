"""What people say of answers, and the rows that are made of it: said at a request of the log, listed, harvested into proposed rows."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.core.errors import DataError
from tunesmith.flow.feedback import said_of
from tunesmith.flow.harvest import harvested, proposals
from tunesmith.flow.watching import moved_requests
from tunesmith.store.feedback import FeedbackLog
from tunesmith.web.door import allowed
from tunesmith.web.page import back, caller_of, page, pages_of

_WORDS, _PROPOSED = 100, 20


async def say(request: Request) -> Response:
    """POST /monitoring/log/ID/feedback: a word about an answer."""
    form, number = await request.form(), request.path_params["id"]
    caller, store = caller_of(request), pages_of(request).place.store
    given = {name: str(form.get(name, "")) for name in ("kind", "value", "comment", "by")}
    who = given.pop("by").strip()[:200] or caller.key or "the pages"
    value = given["value"].replace("\r\n", "\n")
    word = await away(
        lambda: said_of(
            store, number, kind=given["kind"], value=value, comment=given["comment"].strip(), by=who, source="pages", project=caller.sees
        )
    )
    return back(f"/monitoring/log/{quote(number)}", f"Kept: {word.kind}.")


async def listed(request: Request) -> Response:
    """GET /monitoring/feedback[?propose=1]: the words, the newest first; with `propose` the rows that they would make."""
    place, sees = pages_of(request).place, caller_of(request).sees
    wants = "propose" in request.query_params and sees is None

    def look() -> tuple[list[Any], Any]:
        made = proposals(place.store, place.context().project.monitor) if wants else None
        return FeedbackLog(place.store).listed(project=sees, limit=_WORDS), made

    words, made = await away(look)
    return page(
        request,
        "feedback",
        words=words,
        most=_WORDS,
        made=made,
        shown=_PROPOSED,
        kinds=[] if made is None else [(kind, len(made.of(kind))) for kind in ("correction", "agreed", "question")],
        alias=place.project.deploy.alias,
        may=allowed(caller_of(request), "POST", "/monitoring/feedback/harvest"),
    )


async def harvest(request: Request) -> Response:
    """POST /monitoring/feedback/harvest: a version of proposed rows, to be reviewed; with `drifted` also the questions that have moved."""
    place, form = pages_of(request).place, await request.form()
    alias = str(form.get("drifted", ""))

    def work() -> Any:
        monitor = place.context().project.monitor
        drifted = moved_requests(alias, place.bench(), monitor) if alias else []
        return harvested(place.datasets(), place.store, monitor, drifted=drifted)

    made = await away(work)
    version = made.rows or made.questions
    if not version:
        left = "; ".join(f"{count} {why}" for why, count in made.left.items())
        raise DataError(
            f"nothing is proposed{f': {left}' if left else ''}",
            allowed="corrections, answers that an outcome or a judge calls good, questions that nobody answered well",
            remedy="say of an answer in the log what would have been right",
        )
    counts = ", ".join(f"{count} of the kind {kind}" for kind, count in made.kinds.items())
    return back(f"/review?{urlencode({'data': version})}", f"Proposed: {counts}. Judge each, then put the verdicts into a version.")
