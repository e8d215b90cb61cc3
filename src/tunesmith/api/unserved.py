"""OpenAI's endpoints that this server does not have: each is refused by its name, so that nobody looks for a wrong address."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tunesmith.api.errors import APIError

_SERVED = (
    "/v1/chat/completions, /v1/responses, /v1/completions, /v1/embeddings, /v1/models, /v1/files, /v1/uploads, /v1/batches, /v1/fine_tuning"
)
# Their paths below /v1, and what they would do.
_NAMES = {
    "images": "images are neither made nor read here",
    "audio": "sound is neither made nor read here",
    "videos": "videos are neither made nor read here",
    "moderations": "no moderation model is served here",
    "realtime": "there are no realtime sessions here",
    "assistants": "there are no assistants here: chat completions with tools do what they did",
    "threads": "there are no assistants and no threads here: chat completions with tools do what they did",
    "vector_stores": "there are no vector stores here: /v1/embeddings gives vectors",
    "evals": "evaluations are run by `tunesmith eval`, not over HTTP",
    "containers": "there are no containers here",
    "responses/compact": "nothing compacts a context here: 'truncation': 'auto' of /v1/responses leaves out what is oldest",
    "responses/input_tokens": "nothing counts tokens here before a model is asked: 'usage' of the answer does",
    "conversations": "there are no conversation objects here: 'previous_response_id' of /v1/responses goes on from a kept response",
}
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


async def refuse(request: Request) -> Response:
    """Say what is not served. Raises APIError 404."""
    path = request.url.path.removeprefix("/v1/")
    name = next(name for name in _NAMES if path == name or path.startswith(f"{name}/"))
    message = f"{request.url.path[:200]} is not served: {_NAMES[name]}\n  allowed: {_SERVED}"
    raise APIError(404, message, code="unsupported_endpoint")


def routes() -> list[Route]:
    """A route for each of them, and for all below it."""
    return [Route(f"/v1/{name}{rest}", refuse, methods=_METHODS) for name in _NAMES for rest in ("", "/{rest:path}")]
