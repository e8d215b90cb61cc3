"""Who may see which page: sessions in a cookie, roles by the scopes of a key, posts that come from our own pages. Knows no page.

A path that is not in `RULES` needs the scope admin, as with the endpoints: a page that somebody adds is closed until it is named here.
Posts must come from a page of this server: browsers say so in Sec-Fetch-Site, older ones in Origin; a post that says neither is refused.
Without keys everybody on this machine may do everything (`api/guard.py` keeps others out).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from tunesmith.api.auth import Auth, Caller
from tunesmith.api.errors import APIError
from tunesmith.store.keys import DEFAULT_PROJECT
from tunesmith.store.sessions import Sessions
from tunesmith.store.store import Store

COOKIE = "tunesmith_session"
SIGN_IN = "/signin"
_TRUST_S = 2.0  # how long a look into the store is believed
_REMEMBERED = 10_000
_READ, _TRAIN, _SERVE = frozenset({"read", "train"}), frozenset({"train"}), frozenset({"serve"})
_ANY = _READ | _SERVE
_OPEN = re.compile(r"/static/.+|/signin")
RULES = tuple(
    (frozenset(methods.split()), re.compile(path), scopes)
    for methods, path, scopes in (
        ("GET HEAD", r"/", _ANY),
        ("POST", r"/signout", _ANY),
        ("GET HEAD", r"/errands/.*", _ANY),
        ("GET HEAD", r"/(data|review|jobs|evaluation|decision|deployments|monitoring)(/.*)?", _READ),
        ("POST", r"/(review|jobs|data|evaluation)(/.*)?", _TRAIN),
        ("POST", r"/monitoring/log/[^/]+/feedback", _TRAIN | _SERVE),
        ("POST", r"/monitoring/(feedback/harvest|watch/score)", _TRAIN),
        ("GET HEAD POST", r"/playground", _SERVE),
    )
)
# What lies in the project's folder is nobody else's: keys of other projects see their own jobs and requests, and nothing of these.
_OWN = re.compile(r"/(data|review|evaluation|decision|deployments)(/.*)?|/monitoring/(feedback/harvest|watch.*|drift|alerts.*)")


class Door:
    """Recognises who asks for a page."""

    def __init__(self, store: Store) -> None:
        self.sessions = Sessions(store)
        self._callers: dict[str, tuple[Caller | None, float]] = {}

    def caller(self, auth: Auth, method: str, path: str, headers: Mapping[bytes, str]) -> Caller:
        """Who asks, when they may. Raises APIError 401 or 403."""
        if method == "POST":
            _own_page(headers)
        if not auth.needed() or _OPEN.fullmatch(path):
            return Caller()
        caller = auth.caller("GET", "/metrics", headers) if b"authorization" in headers else self._signed_in(headers)
        if caller is None:
            raise APIError(401, "You are not signed in, or your session has ended", code="not_signed_in")
        if not allowed(caller, method, path):
            raise APIError(403, f"This key may not see or do this: it has the scopes {', '.join(sorted(caller.scopes))}", code="no_scope")
        return caller

    def _signed_in(self, headers: Mapping[bytes, str]) -> Caller | None:
        token, now = token_of(headers.get(b"cookie", "")), time.monotonic()
        if not token or len(token) > 128:
            return None
        if token not in self._callers or self._callers[token][1] < now:
            row = self.sessions.recognised(token)
            caller = None if row is None else Caller(row["project"], frozenset(row["scopes"]), row["id"])
            if len(self._callers) >= _REMEMBERED:
                self._callers.clear()
            self._callers[token] = (caller, now + _TRUST_S)
        return self._callers[token][0]

    def end(self, token: str) -> None:
        """Sign out."""
        self._callers.pop(token, None)
        self.sessions.end(token)


def allowed(caller: Caller, method: str, path: str) -> bool:
    """Whether somebody may ask for a page, by scopes and project."""
    if "admin" in caller.scopes:
        return True
    wanted = next((scopes for methods, rule, scopes in RULES if method in methods and rule.fullmatch(path)), frozenset[str]())
    return bool(wanted & caller.scopes) and (caller.project == DEFAULT_PROJECT or not _OWN.fullmatch(path))


def token_of(cookies: str) -> str:
    """The session's token; empty where there is none."""
    try:
        morsel = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _own_page(headers: Mapping[bytes, str]) -> None:
    """Raise APIError 403 for a post that no page of this server sent."""
    site, origin = headers.get(b"sec-fetch-site", ""), headers.get(b"origin", "")
    own = site == "same-origin" if site else origin.partition("://")[2].lower() == headers.get(b"host", "").lower()
    if not own:
        raise APIError(403, f"A page of '{(origin or site or 'nobody known')[:100]}' may not do that", code="invalid_origin")
