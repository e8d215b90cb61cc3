"""Every failure as OpenAI's error object, whatever raised it; the only place where errors become HTTP.

Statuses: 400 for what the request asks wrongly (never 422), 401/403 keys, 404, 405, 413, 429 with Retry-After, 500. Never 409: OpenAI's
clients repeat a POST that was answered so.
"""

from __future__ import annotations

import logging
import traceback
from contextvars import ContextVar
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.core import wire
from tunesmith.core.errors import ContextExceeded, DataError, GateRefused, NotFound, TunesmithError, UsageError
from tunesmith.core.terminal import printable
from tunesmith.deploy.engine import Overloaded, Unloaded
from tunesmith.store.paging import Missing, Refused

_log = logging.getLogger("tunesmith.api")
# The id of the request that is being answered; what is logged of it and what its client is told name it.
request_id: ContextVar[str] = ContextVar("request_id", default="")
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class APIError(Exception):
    """A failure with its status and the four keys of OpenAI's error object."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return wire.error_body(self.message, kind, self.param, self.code)


def as_api_error(error: BaseException) -> APIError:
    """What a client is told about an error. Only the errors that Tunesmith raises on purpose are told in their own words."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, Overloaded):
        return APIError(429, str(error), code="rate_limit_exceeded", headers={"retry-after": str(error.retry_after_s)})
    if isinstance(error, Unloaded):
        return APIError(503, error.what, param="model", code="model_not_loaded")
    if isinstance(error, Missing):
        return APIError(404, error.what, param=error.param, code=error.code)
    if isinstance(error, (wire.BadRequest, Refused)):
        return APIError(400, str(error), param=error.param, code=error.code)
    if isinstance(error, ContextExceeded):
        return APIError(400, str(error), param=error.param, code="context_length_exceeded")
    if isinstance(error, NotFound):
        return APIError(404, error.what, param="model", code="model_not_found")
    if isinstance(error, (UsageError, DataError)):
        return APIError(400, str(error))
    if isinstance(error, GateRefused):
        return APIError(409, str(error))
    if isinstance(error, HTTPException):
        return APIError(error.status_code, _words(error), headers=dict(error.headers or {}))
    if isinstance(error, TunesmithError):
        return APIError(500, str(error))
    if isinstance(error, RecursionError):
        return APIError(400, "The request is nested too deeply", code="invalid_value")
    named = f" of {request_id.get()}" if request_id.get() else ""
    return APIError(500, f"The server had an error while processing your request; its log has the details{named}")


def _words(error: HTTPException) -> str:
    return {404: "Unknown URL", 405: "Not allowed: the URL exists, the method does not"}.get(error.status_code, error.detail)


def noted(error: BaseException) -> APIError:
    """What a client is told; what nobody expected is logged with its trace."""
    problem = as_api_error(error)
    if problem.status >= 500:
        trace = "".join(traceback.format_exception(error))
        _log.error("request %s failed: %s", request_id.get() or "(none)", printable(f"{problem.message}\n{trace}"))
    return problem


def response(error: BaseException) -> Response:
    """An error as a response."""
    problem = noted(error)
    return Response(msgspec.json.encode(problem.body), problem.status, problem.headers, media_type="application/json")


async def handler(_request: Request, error: Exception) -> Response:
    """For Starlette's table of exception handlers."""
    return response(error)
