"""What the endpoints of one application share: who answers to a name, where things are kept. Knows nothing about any endpoint."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request

from tunesmith.api.auth import Auth
from tunesmith.api.errors import APIError
from tunesmith.core.errors import NotFound, StoreError, UsageError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.passages import Retrieval
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.answered import Answered
from tunesmith.deploy.engine import Answering
from tunesmith.deploy.router import Router, Target, undeployed
from tunesmith.deploy.serve_config import Webhook
from tunesmith.models.base import Encoding, Model, passing, ref_of
from tunesmith.models.resolve import Models
from tunesmith.models.retrieval import asked_with
from tunesmith.monitor.metrics import ServerMetrics
from tunesmith.store.store import Store

_log = logging.getLogger("tunesmith.api")


@dataclass(slots=True)
class State:
    """Shared by all requests. `answered` is where they end, `ready` what /readyz says; without a `store` there are no files and jobs.

    `chats_only` has the other servers that were found without /responses, and until when (`time.monotonic`) that is believed.

    `models` says what a word means; `names` maps what clients call a model (one of OpenAI's names) to such a word.
    """

    router: Router
    answering: Answering
    metrics: ServerMetrics
    answered: Answered
    default_max_tokens: int
    models: Models
    auth: Auth
    store: Store | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    webhooks: Sequence[Webhook] = ()
    encoder_names: Mapping[str, str] = field(default_factory=dict)
    base64_embeddings: bool = True
    python_graders: bool = False
    ready: bool = True
    chats_only: dict[str, float] = field(default_factory=dict)
    _encoders: dict[str, Encoding] = field(default_factory=dict)
    _loaded: dict[tuple[ModelRef, Retrieval | None], Model] = field(default_factory=dict)
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def target(self, name: str, project: str, key: str = "") -> Target:
        """Who answers to a name: a served alias, a mapped name, or what a job of the project made. `key` is whom a strategy keeps with
        one variant. Raises NotFound."""
        if self.router.has(name):
            return self.router.target(name, key)
        if name.startswith("ft:") and self.store is not None:
            return await asyncio.to_thread(self._target, name, name, project)
        if name in self.names:
            word = self.names[name]
            return self.router.target(word, key) if self.router.has(word) else await asyncio.to_thread(self._target, word, word, project)
        return self.router.target(name)  # raises, with the nearest name

    def _target(self, word: str, name: str, project: str) -> Target:
        """What a word means, loaded once whoever asks. Raises NotFound."""
        models, (plain, retrieval) = replace(self.models, project=project), asked_with(word)
        try:
            ref = models.ref(plain)
        except NotFound:
            if word.startswith("ft:"):
                return self.router.target(word)  # raises as for any name that does not exist
            raise
        key = (ref, retrieval)
        if key not in self._loaded:
            try:
                model: Model = models.load(ref, name)
                model = model if retrieval is None else models.grounded(model, retrieval)
                _ = model.digest  # reads the weights: here, in a thread of its own
            except (StoreError, UsageError) as error:
                _log.error("'%s' cannot be loaded: %s", name, error)
                what = f"The model '{name}' cannot be loaded; the server's log has the reason"
                raise APIError(503, what, param="model", code="model_not_loaded") from error
            self._loaded[key] = model
        return Target(undeployed(self._loaded[key], made=ref), self._loaded[key])

    async def find(self, name: str, project: str) -> Model:
        """The model that answers to a name when no client asks. Raises NotFound."""
        return (await self.target(name, project)).model

    def passed_to(self, name: str, key: str = "") -> Target | None:
        """Who answers to a name, where that is another server."""
        alias = name if self.router.has(name) else self.names.get(name, "")
        target = self.router.target(alias, key) if self.router.has(alias) else None
        return target if target is not None and passing(target.model) is not None else None

    def base_of(self, name: str, project: str) -> ModelRef:
        """What a job on `name` starts from: a mapped or served name, what a job made, or a base of the catalogue. Raises BadRequest."""
        wanted = self.names.get(name, name)
        if self.router.has(wanted):
            ref = ref_of(self.router.find(wanted))
            if ref is not None:
                return ref
        elif name in self.names or wanted in self.models.catalog.listing.models or wanted.startswith("ft:"):
            try:
                return replace(self.models, project=project).ref(wanted)
            except NotFound:
                pass
        known = [*self.names, *(alias for alias, _ in self.router.listed()), *self.models.catalog.listing.models]
        raise BadRequest(
            f"Model '{name[:200]}' is not available for fine-tuning or does not exist",
            param="model",
            code="model_not_available",
            allowed=", ".join(dict.fromkeys(known)),
        )

    def grading(self, name: str, project: str) -> str:
        """The word by which a worker finds the model `name` that a job's grader asks: of an alias, the version that answers now. Raises
        BadRequest for a name that is no model here."""
        ref = self.base_of(name, project)
        wanted = self.names.get(name, name)
        if wanted.startswith("ft:") or ref.trained is None:
            return wanted if wanted.startswith("ft:") or not ref.base.startswith(".") else str(self.models.folders(ref)[0])
        version = self.router.target(wanted).deployment if self.router.has(wanted) else None
        return wanted if version is None else f"{wanted}@{version}"

    async def encoder(self, name: str) -> Encoding:
        """The encoder of that name, the catalogue's or a mapped one; loaded when it is first asked. Raises BadRequest."""
        known = {**{one: one for one in self.models.catalog.listing.encoders}, **self.encoder_names}
        if name not in known:
            said, allowed = f"The model '{name[:200]}' gives no embeddings", ", ".join(known)
            raise BadRequest(said, param="model", code="model_not_found", allowed=allowed)
        wanted = known[name]
        async with self._loading:
            if wanted not in self._encoders:
                self._encoders[wanted] = await asyncio.to_thread(self._encoder, wanted)
        return self._encoders[wanted]

    def _encoder(self, name: str) -> Encoding:
        from tunesmith.models.encoder import Encoder

        folder, catalog = Path(name).expanduser(), self.models.catalog
        folder = folder if folder.is_dir() else catalog.encoder(name)
        return Encoder(folder, name=name, digest=catalog.digest(folder))

    def forget(self, name: str) -> None:
        """Do not keep a fine-tuned model in memory under its name any longer."""
        self._loaded = {key: model for key, model in self._loaded.items() if model.name != name}

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that must outlive its request."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait for what `spawn` started."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def state_of(request: Request) -> State:
    """The state of the application that a request came to."""
    return cast(State, request.app.state.tunesmith)


def store_of(request: Request) -> Store:
    """Its store. Raises NotFound where the server keeps nothing."""
    store = state_of(request).store
    if store is None:
        raise APIError(404, "This server keeps no files and jobs: it was started without a store", code="no_store")
    return store
