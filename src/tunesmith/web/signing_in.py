"""Signing in with a key, and out again."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from tunesmith.api.http import away
from tunesmith.store.sessions import LASTS_S
from tunesmith.web.door import COOKIE, SIGN_IN, token_of
from tunesmith.web.page import page, pages_of


async def show(request: Request) -> Response:
    """GET /signin."""
    if not pages_of(request).keyed:
        return RedirectResponse("/", 303)
    return page(request, "signin", next=_own(request.query_params.get("next", "/")), wrong=False)


async def sign_in(request: Request) -> Response:
    """POST /signin: a session for a key."""
    form = await request.form()
    key, after = str(form.get("key", "")), _own(str(form.get("next", "/")))
    token = await away(pages_of(request).door.sessions.begin, key.strip()) if 0 < len(key) <= 512 else None
    if token is None:
        return page(request, "signin", status=403, next=after, wrong=True)
    answer = RedirectResponse(after, 303)
    answer.set_cookie(COOKIE, token, max_age=int(LASTS_S), httponly=True, samesite="strict", secure=request.url.scheme == "https", path="/")
    return answer


async def sign_out(request: Request) -> Response:
    """POST /signout."""
    await away(pages_of(request).door.end, token_of(request.headers.get("cookie", "")))
    answer = RedirectResponse(SIGN_IN, 303)
    answer.delete_cookie(COOKIE, path="/")
    return answer


def _own(path: str) -> str:
    """A path of this server, whatever came."""
    return path if path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable() else "/"
