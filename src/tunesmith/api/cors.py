"""Pages of other origins that a configuration lets in: their preflights are answered, and browsers may read what they get. Knows no
endpoint, and lets nobody in who is not named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import Response

Headers = list[tuple[bytes, bytes]]
_METHODS = "GET, POST, DELETE, OPTIONS"
_SHOWN = "x-request-id, retry-after, x-tunesmith-ignored"
_KEPT_S = 600  # how long a browser may remember a preflight's answer


class Cors:
    """The origins of `serve.cors_origins`, such as `https://app.example.org`; `*` is every origin."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin (the header as it came) may ask."""
        return bool(origin) and ("*" in self._origins or origin in self._origins)

    def headers(self, origin: str) -> Headers:
        """What every answer to such a page says."""
        if not self.allows(origin):
            return []
        shown = (("access-control-allow-origin", origin), ("vary", "Origin"), ("access-control-expose-headers", _SHOWN))
        return [(name.encode(), value.encode("latin-1")) for name, value in shown]

    def preflight(self, headers: Mapping[bytes, str]) -> Response:
        """The answer to a browser that asks whether it may ask."""
        told = {
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": headers.get(b"access-control-request-headers", "authorization, content-type"),
            "access-control-max-age": str(_KEPT_S),
        }
        if headers.get(b"access-control-request-private-network") == "true":
            told["access-control-allow-private-network"] = "true"
        return Response(status_code=204, headers=told)


def is_preflight(method: str, headers: Mapping[bytes, str]) -> bool:
    """Whether a request is a browser's question before a request."""
    return method == "OPTIONS" and b"access-control-request-method" in headers and b"origin" in headers
