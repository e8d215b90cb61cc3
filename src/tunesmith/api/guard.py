"""What every request passes before it is routed: its id, its key, its size, its kind and where it comes from. Knows no endpoint.

A page in a browser can send requests to this machine. It cannot send JSON without asking first, its other requests name their origin, and
by DNS rebinding it comes with its own name as Host: all three are refused. A page of another port of this machine is another site, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol

from starlette.responses import Response

from tunesmith.api import errors
from tunesmith.api.auth import Auth, Caller
from tunesmith.api.cors import Cors, is_preflight
from tunesmith.api.errors import APIError
from tunesmith.api.http import Receive, Scope, Send
from tunesmith.api.limits import MAX_FILE_BYTES, MAX_PART_BYTES
from tunesmith.api.slow_clients import BodyInTime
from tunesmith.core.random_ids import random_hex

_ENVELOPE = 1 << 20  # what a multipart body may have besides the file
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_PART = re.compile(r"/v1/uploads/[^/]+/parts")
_JSON, _FORM = "application/json", "application/x-www-form-urlencoded"


class Site(Protocol):
    """Pages for people beside the endpoints: which requests are theirs, who may make them, and how a refusal looks."""

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a page."""
        ...

    def owns(self, method: str, path: str, headers: Mapping[bytes, str]) -> bool:
        """Whether a request is for a page."""
        ...

    def caller(self, auth: Auth, method: str, path: str, headers: Mapping[bytes, str]) -> Caller:
        """Who asks for it, when they may. Raises APIError."""
        ...

    def refusal(self, error: APIError, path: str, headers: Mapping[bytes, str]) -> Response:
        """What is answered to who may not."""
        ...


class Guard:
    """The outermost application. What it refuses is counted by `refused(status)` and leaves no row: a flood must not fill the disk.

    What belongs to the `site` is handed to it, after the same checks of where a request comes from and how large it is.
    """

    def __init__(
        self,
        app: Any,
        *,
        auth: Auth,
        refused: Callable[[int], None],
        max_body_bytes: int,
        local_only: bool,
        cors: Cors,
        body_s: float,
        site: Site | None = None,
    ) -> None:
        self.app, self.auth, self.refused, self.site = app, auth, refused, site
        self.max_body_bytes, self.local_only, self.cors, self.body_s = max_body_bytes, local_only, cors, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        errors.request_id.set(_request_id(headers))
        more = [(b"x-request-id", errors.request_id.get().encode()), *self.cors.headers(headers.get(b"origin", ""))]
        most = self._most(scope["path"])
        seen, begun, in_time = 0, False, BodyInTime(receive, self.body_s)

        async def send_with_more(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await in_time()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _too_large(most)
            return message

        asked = (scope["method"], scope["path"], headers)
        site = self.site if self.site is not None and self.site.owns(*asked) else None
        try:
            self._check(scope, headers, most, forms=site is not None)
            if is_preflight(scope["method"], headers) and self.cors.allows(headers[b"origin"]):
                await self.cors.preflight(headers)(scope, receive, send_with_more)
                return
            caller = self.auth.caller(*asked) if site is None else site.caller(self.auth, *asked)
            if scope["path"].startswith("/v1/"):
                more += self.auth.spend(caller)
        except APIError as error:
            self.refused(error.status)
            refusal = errors.response(error) if site is None else site.refusal(error, scope["path"], headers)
            await refusal(scope, receive, send_with_more)
            return
        scope.setdefault("state", {}).update(project=caller.project, caller=caller)
        try:
            await (self.app if site is None else site.app)(scope, counted, send_with_more)
        except Exception as error:
            if begun:
                raise
            # Handed on it would end the connection, and with it the client's next request.
            await errors.response(error)(scope, receive, send_with_more)

    def _most(self, path: str) -> int:
        if path == "/v1/files":
            return max(self.max_body_bytes, MAX_FILE_BYTES + _ENVELOPE)
        return max(self.max_body_bytes, MAX_PART_BYTES + _ENVELOPE) if _PART.fullmatch(path) else self.max_body_bytes

    def _check(self, scope: Scope, headers: dict[bytes, str], most: int, *, forms: bool) -> None:
        host = re.sub(r":\d*$", "", headers.get(b"host", ""))
        if self.local_only and host.strip("[]").lower() not in _LOCAL_NAMES:
            raise APIError(403, f"Host '{host}' is not this machine", code="invalid_host")
        origin = headers.get(b"origin", "")
        own = origin.partition("://")[2].lower() == headers.get(b"host", "").lower()
        if self.local_only and origin and not own and not self.cors.allows(origin):
            raise APIError(
                403, f"A page of '{origin[:100]}' may not ask this server; serve.cors_origins names those that may", code="invalid_origin"
            )
        length = headers.get(b"content-length", "0")
        if length.isdigit() and int(length[:18]) > most:
            raise _too_large(most)
        kind = headers.get(b"content-type", "").split(";")[0].strip().lower()
        bodyless = not kind and length == "0" and b"transfer-encoding" not in headers
        kinds = (_JSON, "multipart/form-data", *([_FORM] if forms else []))  # a site's posts name their origin, or are refused
        if scope["method"] == "POST" and kind not in kinds and not bodyless:
            raise APIError(400, f"Content-Type is '{kind[:100]}'; send application/json", code="invalid_content_type")


def _request_id(headers: dict[bytes, str]) -> str:
    given = headers.get(b"x-request-id", "")[:64]
    return given if given and given.isascii() and given.isprintable() else f"req_{random_hex(16)}"


def _too_large(limit: int) -> APIError:
    return APIError(413, f"The request body is larger than {limit} bytes", code="request_too_large")
