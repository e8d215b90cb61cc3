"""Words for models on pages: which one may choose from, and what they mean on this server."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request

from tunesmith.api.state import state_of
from tunesmith.models.resolve import Models
from tunesmith.store.jobs import Jobs
from tunesmith.web.page import caller_of, pages_of


def models_of(request: Request) -> Models:
    """What words mean on this server, with the weights that it has in memory and the project's newest run."""
    return replace(state_of(request).models, run=pages_of(request).place.context().last_trained)


def known_words(request: Request) -> list[str]:
    """Words for models that one may choose from: what the last run trained, what jobs made, what is served."""
    place, state = pages_of(request).place, state_of(request)
    done = ["run"] if place.store.stages("train") else []
    jobs, _ = Jobs(place.store).listed(caller_of(request).sees, limit=50)
    made = [job["fine_tuned_model"] for job in jobs if job["fine_tuned_model"]]
    return list(dict.fromkeys([*done, *made, place.project.base, *(name for name, _ in state.router.listed())]))
