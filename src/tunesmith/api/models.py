"""GET /v1/models and /v1/models/{model}; knows nothing about weights."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.state import state_of
from tunesmith.core import wire


async def list_models(request: Request) -> Response:
    """Every name that answers. The list is not paged, as OpenAI's is not."""
    listed = state_of(request).router.listed()
    body = {"object": "list", "data": [wire.model_object(name, since) for name, since in listed]}
    return Response(msgspec.json.encode(body), media_type="application/json")


async def retrieve(request: Request) -> Response:
    """One name. Raises NotFound."""
    router, name = state_of(request).router, request.path_params["model"]
    router.find(name)
    return Response(msgspec.json.encode(wire.model_object(name, dict(router.listed())[name])), media_type="application/json")
