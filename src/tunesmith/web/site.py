"""All pages as one application beside the endpoints: its routes, its door, its errors. Knows nothing about what a page shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from tunesmith.api.auth import Auth, Caller
from tunesmith.api.errors import APIError
from tunesmith.api.http import Receive, Scope, Send
from tunesmith.api.serve import temporary
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.temporary_server import Server
from tunesmith.web import (
    data,
    deployments,
    evaluation,
    feedback,
    home,
    jobs,
    monitoring,
    playground,
    reviewing,
    settings,
    signing_in,
    waiting,
    watching,
)
from tunesmith.web.door import Door
from tunesmith.web.page import NAV, Pages, asset, error_page, to_sign_in
from tunesmith.web.workplace import Workplace

_FIRST = frozenset({path.strip("/") for path, _ in NAV} | {"static", "signin", "signout", "errands"})


class PageSite(Pages):
    """The pages of one project. `server` puts a model behind a port, to be compared before it is deployed."""

    def __init__(self, file: Path, served: ProjectContext, server: Server = temporary) -> None:
        super().__init__(Workplace(file, served), Door(served.store), server)
        self._router = Router(_routes())

    def owns(self, method: str, path: str, headers: Mapping[bytes, str]) -> bool:
        """Whether a request is for a page: by its first folder, or because a browser wants a page where nothing else is."""
        first = path.strip("/").partition("/")[0]
        wants_page = method == "GET" and "text/html" in headers.get(b"accept", "")
        return first in _FIRST or (wants_page and first not in ("v1", "metrics", "healthz", "readyz"))

    def caller(self, auth: Auth, method: str, path: str, headers: Mapping[bytes, str]) -> Caller:
        """Who asks for a page. Raises APIError."""
        self.keyed = auth.needed()
        return self.door.caller(auth, method, path, headers)

    def refusal(self, error: APIError, path: str, headers: Mapping[bytes, str]) -> Response:
        """Who is not signed in is led there; everybody else is told."""
        if error.status == 401:
            return to_sign_in(path, b"hx-request" in headers)
        state = {"pages": self, "caller": Caller(scopes=frozenset()), "project": ""}
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "state": state}
        return error_page(Request(scope), error)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a page, or with an error as a page."""
        begun = False
        scope.setdefault("state", {})["pages"] = self

        async def told(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._router(scope, receive, told)
        except Exception as error:
            if begun:
                raise
            await error_page(Request(scope, receive), error)(scope, receive, send)


def _routes() -> list[Route]:
    return [
        Route("/", home.show, methods=["GET"]),
        Route("/static/{name}", asset, methods=["GET"]),
        Route("/signin", signing_in.show, methods=["GET"]),
        Route("/signin", signing_in.sign_in, methods=["POST"]),
        Route("/signout", signing_in.sign_out, methods=["POST"]),
        Route("/errands/{id}", waiting.show, methods=["GET"]),
        *_data(),
        *_measured(),
        *_live(),
        Route("/review", reviewing.show, methods=["GET"]),
        Route("/review", reviewing.said, methods=["POST"]),
        Route("/review/apply", reviewing.applied, methods=["POST"]),
        Route("/playground", playground.show, methods=["GET", "POST"]),
        Route("/settings", settings.show, methods=["GET"]),
        Route("/settings/serve", settings.changed, methods=["POST"]),
        Route("/settings/webhooks", settings.hook, methods=["POST"]),
        Route("/settings/keys", settings.create, methods=["POST"]),
        Route("/settings/keys/{key}/revoke", settings.revoke, methods=["POST"]),
        Route("/settings/keys/{key}/rotate", settings.rotate, methods=["POST"]),
    ]


def _measured() -> list[Route]:
    return [
        Route("/jobs", jobs.listed, methods=["GET"]),
        Route("/jobs", jobs.ordered, methods=["POST"]),
        Route("/jobs/new", jobs.new, methods=["GET"]),
        Route("/jobs/run", jobs.run, methods=["GET"]),
        Route("/jobs/{job}", jobs.one, methods=["GET"]),
        Route("/jobs/{job}/curve.json", jobs.curve, methods=["GET"]),
        Route("/jobs/{job}/pause", jobs.pause, methods=["POST"]),
        Route("/jobs/{job}/resume", jobs.resume, methods=["POST"]),
        Route("/jobs/{job}/cancel", jobs.cancel, methods=["POST"]),
        Route("/evaluation", evaluation.show, methods=["GET"]),
        Route("/evaluation", evaluation.measured, methods=["POST"]),
        Route("/evaluation/run", evaluation.run, methods=["GET"]),
        Route("/evaluation/compare", evaluation.compare, methods=["GET"]),
        Route("/evaluation/rows", evaluation.rows, methods=["GET"]),
        Route("/evaluation/of/{word}", evaluation.one, methods=["GET"]),
        Route("/decision", evaluation.decision, methods=["GET"]),
        Route("/decision/{study}", evaluation.study, methods=["GET"]),
    ]


def _live() -> list[Route]:
    return [
        Route("/deployments", deployments.listed, methods=["GET"]),
        Route("/deployments", deployments.created, methods=["POST"]),
        Route("/deployments/{alias}", deployments.one, methods=["GET"]),
        Route("/deployments/{alias}/promote", deployments.promoted, methods=["POST"]),
        Route("/deployments/{alias}/rollback", deployments.rolled_back, methods=["POST"]),
        Route("/deployments/{alias}/rollout/{act}", deployments.rollout_changed, methods=["POST"]),
        Route("/deployments/{alias}/experiment", deployments.experiment_begun, methods=["POST"]),
        Route("/deployments/{alias}/experiment/end", deployments.experiment_ended, methods=["POST"]),
        *_watched(),
        Route("/monitoring", monitoring.show, methods=["GET"]),
        Route("/monitoring/log", monitoring.log, methods=["GET"]),
        Route("/monitoring/log/{id}", monitoring.one, methods=["GET"]),
        Route("/monitoring/log/{id}/nearest", monitoring.nearest, methods=["GET"]),
        Route("/monitoring/log/{id}/feedback", feedback.say, methods=["POST"]),
    ]


def _watched() -> list[Route]:
    return [
        Route("/monitoring/feedback", feedback.listed, methods=["GET"]),
        Route("/monitoring/feedback/harvest", feedback.harvest, methods=["POST"]),
        Route("/monitoring/watch", watching.show, methods=["GET"]),
        Route("/monitoring/watch/score", watching.score, methods=["POST"]),
        Route("/monitoring/drift", watching.drift, methods=["GET"]),
        Route("/monitoring/alerts", watching.alerts, methods=["GET"]),
        Route("/monitoring/alerts/look", watching.look_now, methods=["POST"]),
        Route("/monitoring/alerts/test", watching.test, methods=["POST"]),
        Route("/monitoring/alerts/silence", watching.silence, methods=["POST"]),
    ]


def _data() -> list[Route]:
    row = "/data/{version}/{part}/{place:int}"
    return [
        Route("/data", data.versions, methods=["GET"]),
        Route("/data/compare", data.compare, methods=["GET"]),
        Route("/data/import", data.brought, methods=["POST"]),
        Route("/data/import/{file}", data.looked_at, methods=["POST"]),
        Route("/data/{version}", data.rows, methods=["GET"]),
        Route("/data/{version}/ledger", data.ledger, methods=["GET"]),
        Route("/data/{version}/leakage", data.leakage, methods=["GET"]),
        Route("/data/{version}/clean", data.cleaned, methods=["POST"]),
        Route("/data/{version}/split", data.divided, methods=["POST"]),
        Route("/data/{version}/against/{other}", data.changes, methods=["GET"]),
        Route(row, data.row, methods=["GET"]),
        Route(f"{row}/text", data.text, methods=["GET"]),
        Route(f"{row}/tokens", data.tokens, methods=["GET"]),
    ]
