"""Settings of the server: keys and their roles, webhooks, how long things are kept. Secrets are shown once, or not at all."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.api.state import state_of
from tunesmith.core.errors import UsageError
from tunesmith.store.keys import SCOPES, Keys
from tunesmith.web.page import back, page, pages_of

_ROLES = {
    "read": "sees jobs, data, evaluations, deployments and the log",
    "train": "reads, starts and stops jobs, judges rows",
    "serve": "asks models, through the API and the playground",
    "admin": "everything: deploys, makes and ends keys, sees all projects",
}


async def show(request: Request) -> Response:
    """GET /settings."""
    return await _shown(request)


async def create(request: Request) -> Response:
    """POST /settings/keys: a new key, shown this once."""
    form = await request.form()
    name, project = str(form.get("name", "")).strip()[:100], str(form.get("project", "")).strip() or "default"
    scopes = [str(scope) for scope in form.getlist("scope")]
    if not name:
        raise UsageError("a key without a name", where="name", allowed="who or what it is for")
    keys = Keys(pages_of(request).place.store)
    _, secret = await away(lambda: keys.create(name, project=project, scopes=scopes))
    return await _shown(request, secret=secret)


async def revoke(request: Request) -> Response:
    """POST /settings/keys/ID/revoke."""
    row = await away(Keys(pages_of(request).place.store).revoke, request.path_params["key"])
    return back("/settings", f"The key '{row['name']}' has ended.")


async def rotate(request: Request) -> Response:
    """POST /settings/keys/ID/rotate: a new key in its place, shown this once."""
    keys = Keys(pages_of(request).place.store)
    _, secret = await away(lambda: keys.rotate(request.path_params["key"]))
    return await _shown(request, secret=secret)


async def _shown(request: Request, secret: str = "") -> Response:
    state, pages = state_of(request), pages_of(request)
    rows = await away(Keys(pages.place.store).listed)
    hooks: list[dict[str, Any]] = [
        {"url": hook.url.partition("?")[0], "events": ", ".join(hook.events) or "all"} for hook in state.webhooks
    ]
    serve = pages.place.project.serve
    kept = [
        (name.replace("_", " "), "no limit" if getattr(serve, name) is None else str(getattr(serve, name)))
        for name in serve.__struct_fields__
        if name in _KEPT
    ]
    return page(request, "settings", keys=rows, roles=_ROLES, scopes=SCOPES, hooks=hooks, secret=secret, kept=kept, keyed=pages.keyed)


_KEPT = ("retention_days", "sample", "redact", "durability", "requests_per_minute", "workers", "host", "port", "max_body_bytes")
