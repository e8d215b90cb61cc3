"""What every page shares: the frame around it, its headers, and how an error looks. Knows no page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from tunesmith.api.auth import Caller
from tunesmith.api.errors import noted
from tunesmith.core.digests import RunningDigest
from tunesmith.core.errors import TunesmithError, UsageError
from tunesmith.flow.temporary_server import Server
from tunesmith.pages.render import render
from tunesmith.web.door import SIGN_IN, Door, allowed
from tunesmith.web.errands import Errands
from tunesmith.web.workplace import Workplace

NAV = (
    ("/", "Home"),
    ("/data", "Data"),
    ("/review", "Review"),
    ("/jobs", "Jobs"),
    ("/evaluation", "Evaluation"),
    ("/decision", "Decision"),
    ("/playground", "Playground"),
    ("/deployments", "Deployments"),
    ("/monitoring", "Monitoring"),
    ("/settings", "Settings"),
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
}
_TITLES = {401: "Sign in first", 403: "Not allowed", 404: "Not here", 405: "Not that way", 413: "Too large", 429: "Too many at once"}
_WORDS = {"Unknown URL": "There is no page at this address."}
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Pages:
    """What all pages share: the project, the door, the work that pages started, what puts a model behind a port before it is deployed, and
    `keyed`: whether requests need a key, as far as was seen."""

    def __init__(self, place: Workplace, door: Door, server: Server) -> None:
        self.place, self.door, self.errands, self.server, self.keyed = place, door, Errands(), server, False


def pages_of(request: Request) -> Pages:
    """The site that a request came to."""
    pages: Pages = request.state.pages
    return pages


def caller_of(request: Request) -> Caller:
    """Who asks."""
    caller: Caller = request.state.caller
    return caller


def page(request: Request, template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any) -> Response:
    """A page of the site from its template."""
    return HTMLResponse(render(f"site/{template}", site=_frame(request), **values), status, {**HEADERS, **(headers or {})})


def report(request: Request, template: str, **values: Any) -> Response:
    """A report as a page of the site: the same template as the file, in the site's frame."""
    return HTMLResponse(render(template, layout="site/base.html.j2", site=_frame(request), **values), headers=HEADERS)


def _frame(request: Request) -> dict[str, Any]:
    caller, path, pages = caller_of(request), request.url.path, pages_of(request)
    nav = [
        {"path": place, "name": name, "here": path == place or (place != "/" and path.startswith(f"{place}/"))}
        for place, name in NAV
        if (caller.key is not None or not pages.keyed) and allowed(caller, "GET", place)
    ]
    who = f"{caller.project} · {', '.join(sorted(caller.scopes))}" if caller.key is not None else ""
    return {"project": pages.place.project.name, "stamp": stamp(), "nav": nav, "who": who, "notice": request.query_params.get("said", "")}


def error_page(request: Request, error: Exception) -> Response:
    """An error as a page: what, where, what is allowed, how to mend it. Who must sign in is led there."""
    problem = noted(error)
    if problem.status == 401:
        return to_sign_in(request.url.path, "hx-request" in request.headers)
    told = error if isinstance(error, TunesmithError) and problem.status < 500 else None
    return page(
        request,
        "error",
        status=problem.status,
        headers=problem.headers,
        number=problem.status,
        title=_TITLES.get(problem.status, "This does not work" if problem.status < 500 else "Something went wrong here"),
        what=told.what if told is not None else _WORDS.get(problem.message, problem.message),
        where=told.where if told is not None else "",
        allowed=told.allowed if told is not None else "",
        remedy=told.remedy if told is not None else "",
    )


def to_sign_in(path: str, by_script: bool) -> Response:
    """The way to the page where one signs in, and back."""
    where = f"{SIGN_IN}?next={quote(path)}"
    return Response(status_code=204, headers={"hx-redirect": where}) if by_script else RedirectResponse(where, 303)


def back(path: str, said: str = "") -> Response:
    """After a post: the page that shows what it did, with a sentence about it."""
    mark = "&" if "?" in path else "?"
    return RedirectResponse(f"{path}{mark}said={quote(said)}" if said else path, 303)


def share_of(text: str, where: str) -> float | None:
    """A share as people write it, `5 %` or 0.05; None where nothing is written. Raises UsageError."""
    written = text.strip().replace(",", ".")
    if not written:
        return None
    try:
        return float(written.removesuffix("%")) / 100 if written.endswith("%") else float(written)
    except ValueError as error:
        raise UsageError(f"a share of {text[:40]!r}", where=where, allowed="such as 5 % or 0.05") from error


@lru_cache(maxsize=1)
def assets() -> dict[str, tuple[bytes, str]]:
    """Everything under /static: name → (bytes, media type). The stylesheet is the one of the reports."""
    folder = resources.files("tunesmith.pages")
    files = [folder / "templates" / "style.css", folder / "static" / "pages.js", folder / "static" / "icon.svg"]
    files += [each for each in (folder / "static" / "vendor").iterdir() if each.name.endswith((".js", ".css"))]
    return {each.name: (each.read_bytes(), _TYPES[each.name.rpartition(".")[2]]) for each in files}


@lru_cache(maxsize=1)
def stamp() -> str:
    """What names the content of all of them, so that browsers keep them until they change."""
    total = RunningDigest()
    for name, (content, _) in sorted(assets().items()):
        total.add((name, content.decode("utf-8")))
    return total.hexdigest()[:12]


async def asset(request: Request) -> Response:
    """GET /static/NAME."""
    from starlette.exceptions import HTTPException

    known = assets().get(request.path_params["name"])
    if known is None:
        raise HTTPException(404)
    kept = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
    return Response(known[0], headers=kept, media_type=known[1])
