"""What the endpoints of one application share: who answers to a name, where things are kept. Knows nothing about any endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request

from tunesmith.api.auth import Auth
from tunesmith.api.errors import APIError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.answered import Answered
from tunesmith.deploy.bases import Bases
from tunesmith.deploy.engine import Answering
from tunesmith.deploy.router import Router, Target, undeployed
from tunesmith.deploy.serve_config import Webhook
from tunesmith.models.base import Model
from tunesmith.models.catalog import Catalog
from tunesmith.models.encoder import Encoder
from tunesmith.models.local import LocalModel
from tunesmith.models.upstream import Upstream
from tunesmith.monitor.metrics import ServerMetrics
from tunesmith.store.permissions import TunedModels
from tunesmith.store.store import Store


@dataclass(slots=True)
class State:
    """Shared by all requests. `answered` is where they end, `ready` what /readyz says; without a `store` there are no files and jobs.

    `names` maps what clients call a model (one of OpenAI's names) to a local base.
    """

    router: Router
    answering: Answering
    metrics: ServerMetrics
    answered: Answered
    default_max_tokens: int
    bases: Bases
    auth: Auth
    store: Store | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    webhooks: Sequence[Webhook] = ()
    encoder_names: Mapping[str, str] = field(default_factory=dict)
    base64_embeddings: bool = True
    python_graders: bool = False
    ready: bool = True
    _encoders: dict[str, Encoder] = field(default_factory=dict)
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def target(self, name: str, project: str, key: str = "") -> Target:
        """Who answers to a name: a served alias, a mapped name, or what a job of the project made. `key` is whom a strategy keeps with
        one variant. Raises NotFound."""
        if self.router.has(name):
            return self.router.target(name, key)
        if self.store is not None and name.startswith("ft:"):
            row = await asyncio.to_thread(TunedModels(self.store).find, name, project)
            if row is not None:
                model = await asyncio.to_thread(self.bases.tuned, name, row["base"], self.store.folder / row["adapter"])
                made = ModelRef(base=row["base"], adapter=row["adapter"], made_by=f"job:{row['job']}")
                return Target(undeployed(model, made=made), model)
        if name in self.names:
            base = self.names[name]
            if self.router.has(base):
                return self.router.target(base, key)
            loaded = await asyncio.to_thread(self.bases.base, base)
            return Target(undeployed(loaded), loaded)
        return self.router.target(name)  # raises, with the nearest name

    async def find(self, name: str, project: str) -> Model:
        """The model that answers to a name when no client asks. Raises NotFound."""
        return (await self.target(name, project)).model

    def passed_to(self, name: str, key: str = "") -> Target | None:
        """Who answers to a name, where that is another server."""
        alias = name if self.router.has(name) else self.names.get(name, "")
        target = self.router.target(alias, key) if self.router.has(alias) else None
        return target if target is not None and isinstance(target.model, Upstream) else None

    def base_of(self, name: str) -> str:
        """The base that a job on `name` trains: mapped, served without an adapter, or in the catalogue. Raises BadRequest."""
        wanted = self.names.get(name, name)
        if self.router.has(wanted):
            model = self.router.find(wanted)
            if isinstance(model, LocalModel) and model.adapter is None:
                return str(model.base)
        if name in self.names or wanted in Catalog().listing.models:
            return wanted
        known = [*self.names, *(alias for alias, _ in self.router.listed()), *Catalog().listing.models]
        raise BadRequest(
            f"Model '{name[:200]}' is not available for fine-tuning or does not exist",
            param="model",
            code="model_not_available",
            allowed=", ".join(dict.fromkeys(known)),
        )

    async def encoder(self, name: str) -> Encoder:
        """The encoder of that name, the catalogue's or a mapped one; loaded when it is first asked. Raises BadRequest."""
        known = {**{one: one for one in Catalog().listing.encoders}, **self.encoder_names}
        if name not in known:
            said, allowed = f"The model '{name[:200]}' gives no embeddings", ", ".join(known)
            raise BadRequest(said, param="model", code="model_not_found", allowed=allowed)
        wanted = known[name]
        async with self._loading:
            if wanted not in self._encoders:
                self._encoders[wanted] = await asyncio.to_thread(_encoder, wanted)
        return self._encoders[wanted]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that must outlive its request."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait for what `spawn` started."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _encoder(name: str) -> Encoder:
    folder, catalog = Path(name).expanduser(), Catalog()
    folder = folder if folder.is_dir() else catalog.encoder(name)
    return Encoder(folder, name=name, digest=catalog.digest(folder))


def state_of(request: Request) -> State:
    """The state of the application that a request came to."""
    return cast(State, request.app.state.tunesmith)


def store_of(request: Request) -> Store:
    """Its store. Raises NotFound where the server keeps nothing."""
    store = state_of(request).store
    if store is None:
        raise APIError(404, "This server keeps no files and jobs: it was started without a store", code="no_store")
    return store
