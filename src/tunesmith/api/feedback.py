"""`/v1/feedback`: what clients say of answers, before or long after; knows nothing about what is made of it."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.http import away, limit_of, listing, project_of, reply
from tunesmith.api.state import store_of
from tunesmith.core import wire
from tunesmith.core.errors import UsageError
from tunesmith.core.feedback import FeedbackBody, body_of
from tunesmith.core.types import Feedback, digest
from tunesmith.core.wire import BadRequest
from tunesmith.flow.feedback import say
from tunesmith.store.feedback import FeedbackLog
from tunesmith.store.paging import new_id


def _object(word: Feedback) -> dict[str, Any]:
    body = body_of(word)
    given = {"interaction": word.interaction, word.kind: getattr(body, word.kind)}
    texts = {name: getattr(word, name) for name in ("name", "by", "comment") if getattr(word, name)}
    return {"id": word.id, "object": "feedback", "created": word.created, "kind": word.kind, **given, **texts}


async def create(request: Request) -> Response:
    """POST /feedback: 200 also where the same word is there already. 404 for an answer that the log does not have."""
    asked = wire.convert(wire.decode_object(await request.body()), FeedbackBody)
    key, project = request.headers.get("idempotency-key"), project_of(request)
    own_id = f"fb-{digest(project, key)}" if key else new_id("fb-")
    try:
        word = asked.feedback(time.time(), source="api", project=project, own_id=own_id)
    except UsageError as error:
        raise BadRequest(error.what, code="invalid_value", allowed=error.allowed) from error
    return reply(_object(await away(say, store_of(request), word)))


async def list_feedback(request: Request) -> Response:
    """GET /feedback: the words about one answer (`?interaction=`), or the last ones."""
    query = request.query_params
    limit = min(limit_of(query, 20), 1000)
    log = FeedbackLog(store_of(request))
    rows = await away(log.listed, project=project_of(request), interaction=query.get("interaction"), limit=limit + 1)
    return reply(listing(map(_object, rows[:limit]), len(rows) > limit, ends=True))


async def retrieve(request: Request) -> Response:
    """GET /feedback/{id}."""
    return reply(_object(await away(FeedbackLog(store_of(request)).find, request.path_params["feedback"], project_of(request))))
