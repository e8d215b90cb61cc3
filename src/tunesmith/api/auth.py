"""Who may do what: the key of a request, its scopes against the route, and how often; knows nothing about what routes do.

A path that is not in `RULES` needs the scope admin: a route that somebody adds is closed until it is named here. Paths are the ones that
routing sees (`scope["path"]`), so what is authorised is what is served.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.api.errors import APIError
from tunesmith.store.keys import DEFAULT_PROJECT, SCOPES, Keys, hashed
from tunesmith.store.store import Store

_TRUST_S = 2.0  # how long a look into the store is believed, and so how long a revoked key lives on
_REMEMBERED = 10_000
TRAINING = frozenset({"fine-tune", "fine-tune-results"})
OPEN = frozenset({"/healthz", "/readyz"})
# (methods, path, the scopes of which one suffices); admin may do everything, train includes read.
_READ, _TRAIN, _SERVE = frozenset({"read", "train"}), frozenset({"train"}), frozenset({"serve"})
RULES = tuple(
    (frozenset(methods.split()), re.compile(path), scopes)
    for methods, path, scopes in (
        ("GET", r"/v1/models(/.+)?", _READ | _SERVE),
        ("DELETE", r"/v1/models/.+", _TRAIN),
        ("GET POST DELETE", r"/v1/(chat/completions|responses|batches)(/.*)?", _SERVE),
        ("POST", r"/v1/(completions|embeddings)", _SERVE),
        ("GET", r"/v1/files(/.+)?", _READ | _SERVE),
        ("POST DELETE", r"/v1/files(/.+)?", _TRAIN | _SERVE),
        ("POST", r"/v1/uploads(/.+)?", _TRAIN | _SERVE),
        ("GET", r"/v1/fine_tuning/jobs(/.+)?", _READ),
        ("POST", r"/v1/fine_tuning/jobs(/.+)?", _TRAIN),
        ("POST", r"/v1/fine_tuning/alpha/graders/(run|validate)", _TRAIN),
        ("GET", r"/metrics", _READ),
    )
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `key` names the key for rate limits (None: there are no keys)."""

    project: str = DEFAULT_PROJECT
    scopes: frozenset[str] = frozenset(SCOPES)
    key: str | None = None

    @property
    def hidden(self) -> frozenset[str]:
        """The purposes of files that this caller may neither see nor make: of what trains and what was trained a key that only asks models
        sees nothing."""
        return frozenset() if self.scopes & {"read", "train", "admin"} else TRAINING

    @property
    def sees(self) -> str | None:
        """The project whose figures this caller may see (None: every project's)."""
        return None if "admin" in self.scopes else self.project


class Auth:
    """Recognises callers. Without a store, or without a key in it, everybody is the project `default` with every scope."""

    def __init__(self, store: Store | None, requests_per_minute: int | None = None) -> None:
        self._keys = Keys(store) if store is not None else None
        self._rate = requests_per_minute
        self._callers: dict[str, tuple[Caller | None, float]] = {}
        self._needed: tuple[bool, float] = (True, 0.0)
        self._buckets: dict[str, tuple[float, float]] = {}

    def needed(self) -> bool:
        """Whether requests need a key."""
        if self._keys is None:
            return False
        if self._needed[1] < time.monotonic():
            self._needed = (self._keys.exist(), time.monotonic() + _TRUST_S)
        return self._needed[0]

    def caller(self, method: str, path: str, headers: Mapping[bytes, str]) -> Caller:
        """Who asks for a route, when they may. Raises APIError 401 or 403."""
        if path in OPEN or not self.needed():
            return Caller()
        word, _, secret = headers.get(b"authorization", "").partition(" ")
        if word.lower() != "bearer" or not secret.strip():
            raise APIError(401, "You didn't provide an API key: send it as 'Authorization: Bearer KEY'", code="missing_api_key")
        caller = self._recognised(secret.strip())
        if caller is None:
            raise APIError(401, "Incorrect API key provided", code="invalid_api_key")
        wanted = next((scopes for methods, rule, scopes in RULES if method in methods and rule.fullmatch(path)), frozenset[str]())
        if "admin" not in caller.scopes and not wanted & caller.scopes:
            names = ", ".join(sorted(wanted | {"admin"}))
            raise APIError(403, f"This key may not do that: it needs one of the scopes {names}", code="insufficient_permissions")
        return caller

    def _recognised(self, secret: str) -> Caller | None:
        if self._keys is None or len(secret) > 512:
            return None
        name, now = hashed(secret), time.monotonic()
        if name not in self._callers or self._callers[name][1] < now:
            row = self._keys.recognised(secret)
            caller = None if row is None else Caller(row["project"], frozenset(row["scopes"]), row["id"])
            if len(self._callers) >= _REMEMBERED:
                self._callers.clear()
            self._callers[name] = (caller, now + _TRUST_S)
        return self._callers[name][0]

    def spend(self, caller: Caller) -> list[tuple[bytes, bytes]]:
        """Count one request; returns the headers that say what is left. Raises APIError 429 with Retry-After when nothing is.

        A bucket of `requests_per_minute` tokens that fills evenly, one for each key.
        """
        if self._rate is None:
            return []
        now, name = time.monotonic(), caller.key or ""
        tokens, seen = self._buckets.get(name, (float(self._rate), now))
        tokens = min(self._rate, tokens + (now - seen) * self._rate / 60)
        wait_s = (1 - tokens) * 60 / self._rate
        if tokens >= 1:
            tokens -= 1
        self._buckets[name] = (tokens, now)
        if wait_s > 0:
            raise APIError(
                429,
                f"Rate limit reached: {self._rate} requests per minute",
                code="rate_limit_exceeded",
                headers={"retry-after": str(max(1, round(wait_s + 0.5))), "x-ratelimit-remaining-requests": "0"},
            )
        limits = {"limit": f"{self._rate}", "remaining": f"{int(tokens)}", "reset": f"{(self._rate - tokens) * 60 / self._rate:.3f}s"}
        return [(f"x-ratelimit-{word}-requests".encode(), value.encode()) for word, value in limits.items()]
