"""Settings of the server: keys and their roles, webhooks, how long things are kept. Secrets are shown once, or not at all."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away
from tunesmith.api.state import state_of
from tunesmith.core.errors import UsageError
from tunesmith.flow.settings import add_webhook, end_webhook, set_key, stamp_of
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


async def changed(request: Request) -> Response:
    """POST /settings/serve: what the server keeps and takes, written into the project's file."""
    form, file = await request.form(), pages_of(request).place.file
    name, text = str(form.get("key", "")), str(form.get("value", "")).strip()
    if name not in _CHANGED:
        raise UsageError(f"no setting '{name[:60]}' of this page", allowed=", ".join(_CHANGED))
    value: Any = text.replace(",", " ").split() if name == "log.redact" else None if not text else _number(text, name)
    await away(lambda: set_key(file, f"serve.{name}", value, seen=str(form.get("seen", ""))))
    return back("/settings", f"serve.{name} is {text or 'none'}; the server takes it when it starts again.")


async def hook(request: Request) -> Response:
    """POST /settings/webhooks: tell an address of events, its secret shown this once; or no longer."""
    form, file = await request.form(), pages_of(request).place.file
    url, seen = str(form.get("url", "")).strip(), str(form.get("seen", ""))
    if form.get("end"):
        await away(lambda: end_webhook(file, url, seen=seen))
        return back("/settings", f"{url} is told no longer, once the server has started again.")
    secret = await away(lambda: add_webhook(file, url, str(form.get("events", "")).replace(",", " ").split(), seen=seen))
    return await _shown(request, secret=secret)


def _number(text: str, name: str) -> float | int:
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError as error:
        raise UsageError(f"{name} is {text[:40]!r}", allowed="a number, or nothing") from error


async def _shown(request: Request, secret: str = "") -> Response:
    pages = pages_of(request)
    rows = await away(Keys(pages.place.store).listed)
    written = await away(lambda: pages.place.context().project.serve)
    hooks: list[dict[str, Any]] = [
        {"url": hook.url, "shown": hook.url.partition("?")[0], "events": ", ".join(hook.events) or "all"} for hook in written.webhooks
    ]
    values = {name: _value(written, name) for name in _CHANGED}
    fixed = [(name.replace("_", " "), str(getattr(written, name))) for name in _FIXED]
    return page(
        request,
        "settings",
        keys=rows,
        roles=_ROLES,
        scopes=SCOPES,
        hooks=hooks,
        secret=secret,
        values=values,
        meanings=_CHANGED,
        fixed=[*fixed, ("survives", written.log.survives)],
        keyed=pages.keyed,
        seen=await away(stamp_of, pages.place.file),
        running=_running(state_of(request)),
    )


def _value(serve: Any, name: str) -> str:
    value = serve
    for part in name.split("."):
        value = getattr(value, part)
    return "" if value is None else ", ".join(value) if isinstance(value, tuple) else f"{value:g}"


def _running(state: Any) -> str:
    """How long the running server keeps requests, which may differ from the file until it starts again."""
    return "for ever" if state.retention_days is None else f"{state.retention_days:g} days"


# What the page changes: keys of `serve:` → what they mean.
_CHANGED = {
    "log.retention_days": "days that requests and what was said of them are kept (nothing: for ever)",
    "log.sample": "share of the requests whose rows are kept, 0 to 1",
    "log.redact": "kinds of personal data that no row keeps, such as email, phone",
    "requests_per_minute": "requests a minute of each key (nothing: no limit)",
}
_FIXED = ("host", "port", "workers", "max_body_bytes")
