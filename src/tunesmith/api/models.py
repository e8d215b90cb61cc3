"""GET /v1/models, one of them, and DELETE of what a job made; knows nothing about how they answer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.errors import APIError
from tunesmith.api.http import away, project_of, reply
from tunesmith.api.state import State, state_of
from tunesmith.core import wire
from tunesmith.store.permissions import TunedModels

_STARTED = 1_700_000_000  # a mapped name has no age of its own


async def list_models(request: Request) -> Response:
    """Every name that answers. The list is not paged, as OpenAI's is not."""
    state = state_of(request)
    listed = [wire.model_object(name, since) for name, since in state.router.listed()]
    listed += [wire.model_object(name, _STARTED) for name in state.names if not state.router.has(name)]
    if state.store is not None:
        rows = await away(TunedModels(state.store).listed, project_of(request))
        listed += [wire.model_object(row["id"], row["created"], row["project"]) for row in rows]
    return reply({"object": "list", "data": listed})


async def retrieve(request: Request) -> Response:
    """One name. Raises NotFound."""
    state, name = state_of(request), request.path_params["model"]
    found = await _object(state, name, project_of(request))
    if found is None:
        state.router.find(name)  # raises, with the nearest name
    return reply(found)


async def _object(state: State, name: str, project: str) -> dict[str, object] | None:
    if state.router.has(name):
        return wire.model_object(name, dict(state.router.listed())[name])
    if state.store is not None and (row := await away(TunedModels(state.store).find, name, project)) is not None:
        return wire.model_object(name, row["created"], row["project"])
    return wire.model_object(name, _STARTED) if name in state.names else None


async def delete(request: Request) -> Response:
    """Take a fine-tuned model's name away. Bases and aliases belong to the operator: 403."""
    state, name = state_of(request), request.path_params["model"]
    project = project_of(request)
    if state.store is not None and await away(TunedModels(state.store).delete, name, project):
        state.forget(name)
        return reply({"id": name, "object": "model", "deleted": True})
    if state.router.known(name) or await _object(state, name, project) is not None:
        raise APIError(403, f"'{name}' is no fine-tuned model of this project", param="model", code="model_not_deletable")
    state.router.find(name)  # raises, with the nearest name
    raise AssertionError(name)
