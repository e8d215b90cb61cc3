"""Review by keyboard: one row after the other, accept, edit, reject, comment."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.core.counted import counted
from tunesmith.core.errors import UsageError
from tunesmith.data.review import Verdict
from tunesmith.flow.datasets.people import reviewed
from tunesmith.flow.datasets.reviewing import Desk, JudgedMeanwhile, desk, judge
from tunesmith.flow.datasets.table import every_version, frozen_rows
from tunesmith.web.door import allowed
from tunesmith.web.page import back, caller_of, page, pages_of

_ACTIONS = ("accept", "edit", "reject")


async def show(request: Request) -> Response:
    """GET /review[?data=&as=&row=&after=]."""
    query = request.query_params
    return await _shown(
        request, query.get("data", "latest"), _name(request, query.get("as", "")), query.get("row", ""), query.get("after", "")
    )


async def said(request: Request) -> Response:
    """POST /review: a verdict, then the next row."""
    form = {key: str(value) for key, value in (await request.form()).items()}
    data, who, action, row = form.get("data", "latest"), _name(request, form.get("as", "")), form.get("action", ""), form.get("row", "")
    again = f"/review?{urlencode({'data': data, 'as': who})}"
    if action == "later":
        return back(f"{again}&{urlencode({'after': row})}")
    if action not in _ACTIONS:
        raise UsageError(f"no action '{action}'", allowed=", ".join(_ACTIONS))
    answer = form.get("answer", "").replace("\r\n", "\n")
    if action == "accept" and answer != form.get("before", "").replace("\r\n", "\n"):
        action = "edit"  # who has changed the answer and accepts it means the changed one
    comment, changed = form.get("comment", "").strip(), answer if action == "edit" else None
    verdict = Verdict(row=row, annotator=who, action=cast(Any, action), answer=changed, comment=comment)
    place = pages_of(request).place
    try:
        await away(lambda: judge(place.datasets(), verdict, form.get("seen", "")))
    except JudgedMeanwhile as error:
        return await _shown(request, data, who, row, "", draft=form, conflict=error)
    return back(again)


async def applied(request: Request) -> Response:
    """POST /review/apply: put the verdicts into a new version; the majority decides."""
    form, place = await request.form(), pages_of(request).place
    data, note = str(form.get("data", "latest")), str(form.get("note", "")).strip()[:200]
    version, changed = await away(lambda: reviewed(place.datasets(), frozen_rows(place.context(), data), note))
    return back(f"/data/{version.id}", f"{counted(changed, 'row')} changed or taken out.")


async def _shown(
    request: Request, data: str, who: str, row: str, after: str, draft: dict[str, str] | None = None, conflict: UsageError | None = None
) -> Response:
    place = pages_of(request).place

    def look() -> tuple[Any, Desk | None]:
        known = every_version(place.context())
        if not known:
            return known, None
        return known, desk(place.datasets(), frozen_rows(place.context(), data), who, after=after, wanted=row)

    known, found = await away(look)
    return page(
        request,
        "review",
        status=409 if conflict is not None else 200,
        versions=known,
        desk=found,
        data=data,
        who=who,
        draft=draft or {},
        conflict=conflict,
        may=allowed(caller_of(request), "POST", "/review"),
    )


def _name(request: Request, given: str) -> str:
    """Who judges: the name that was given; the key's own id where there is none."""
    return given.strip()[:100] or caller_of(request).key or "reviewer"
