"""What the endpoints of one application share: who answers to a name, where things are kept. Knows nothing about any endpoint."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request

from tunesmith.api.auth import Auth
from tunesmith.api.errors import APIError
from tunesmith.api.reload import Reload
from tunesmith.api.shadow import Shadows
from tunesmith.core.errors import NotFound, StoreError, UsageError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.passages import Retrieval
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.answered import Answered, Exchange
from tunesmith.deploy.engine import Answering
from tunesmith.deploy.router import Router, Target, undeployed
from tunesmith.deploy.serve_config import Webhook
from tunesmith.deploy.strategy import AskedState
from tunesmith.models.base import Encoding, Model, batching, grounding, ref_of
from tunesmith.models.resolve import Models
from tunesmith.models.retrieval import asked_with
from tunesmith.monitor.metrics import ServerMetrics
from tunesmith.store.interactions import Interactions
from tunesmith.store.store import Store

_log = logging.getLogger("tunesmith.api")
_REMEMBERED = 1 << 16  # conversations whose variant is in memory
NOTHING_KNOWN = AskedState()
Watch = tuple[Callable[[], object], float]
"""What looks at alerts, and after how many seconds again."""


@dataclass(slots=True)
class State:
    """Shared by all requests. `answered` is where they end, `ready` what /readyz says; without a `store` there are no files and jobs.

    `log` is the store that the log of requests is in, `reload` what looks for new deployments (None: there are none to come),
    `retention_days` how long its rows are kept (None: for ever).

    `inside(project)` is the application behind its door, for what the server itself asks once it runs (None: before).

    `chats_only` has the other servers that were found without /responses, and until when (`time.monotonic`) that is believed.

    `models` says what a word means; `names` maps what clients call a model (one of OpenAI's names) to such a word.
    """

    router: Router
    answering: Answering
    metrics: ServerMetrics
    answered: Answered
    shadows: Shadows
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
    log: Store | None = None
    reload: Reload | None = None
    retention_days: float | None = None
    inside: Callable[[str], Any] | None = None
    watch: Watch | None = None
    _assigned: OrderedDict[tuple[str, str, str], AskedState] = field(default_factory=OrderedDict)
    _encoders: dict[str, Encoding] = field(default_factory=dict)
    _loaded: dict[tuple[ModelRef, Retrieval | None], Model] = field(default_factory=dict)
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def target(self, name: str, project: str, key: str = "", known: AskedState = NOTHING_KNOWN, wanted: str | None = None) -> Target:
        """Who answers to a name: a served alias, a mapped name, or what a job of the project made. `key` is whom a strategy keeps with
        one variant, `known` what it knows of the request; `wanted` names a variant in its stead. Raises NotFound."""
        if self.router.has(name):
            return self.router.target(name, key, known, wanted=wanted)
        if name.startswith("ft:") and self.store is not None:
            return await asyncio.to_thread(self._target, name, name, project)
        if name in self.names:
            word = self.names[name]
            if self.router.has(word):
                return self.router.target(word, key, known, wanted=wanted)
            return await asyncio.to_thread(self._target, word, word, project)
        return self.router.target(name)  # raises, with the nearest name

    async def known_of(self, exchange: Exchange, name: str) -> AskedState:
        """What the strategy of a name may know of a request: the variant that its conversation has, seen here or by another server."""
        deployment = self.router.deployment(name if self.router.has(name) else self.names.get(name, name))
        if deployment is None or len(deployment.variants) == 1 or exchange.conversation is None:
            return NOTHING_KNOWN
        place = (exchange.project, exchange.alias, exchange.conversation)
        known = self._assigned.get(place)
        if known is None and exchange.continued and self.log is not None:
            row = await asyncio.to_thread(Interactions(self.log).assigned, exchange.conversation, exchange.alias, exchange.project)
            known = None if row is None else AskedState(*row)
        return known or NOTHING_KNOWN

    def note_assigned(self, exchange: Exchange) -> None:
        """Remember which variant a conversation has, also before its first row is written."""
        if exchange.variant is None or exchange.conversation is None or exchange.deployment is None or exchange.propensity is None:
            return
        place = (exchange.project, exchange.alias, exchange.conversation)
        self._assigned[place] = AskedState(exchange.variant.name, exchange.propensity, exchange.experiment)
        self._assigned.move_to_end(place)
        if len(self._assigned) > _REMEMBERED:
            self._assigned.popitem(last=False)

    async def refresh(self, name: str = "") -> None:
        """Take into effect what was deployed meanwhile, by this server or any other process; for `name`, wait until it can answer."""
        if self.reload is not None:
            await self.reload.refresh(name)

    def let_go(self) -> None:
        """Let go of weights and batches that nothing answers with any longer."""
        models = [*self.router.models(), *self._loaded.values()]
        self.answering.keep(models)
        own = (model if (looking := grounding(model)) is None else looking.model for model in models)
        engines = [engine for model in own if (engine := batching(model)) is not None]
        self.spawn(asyncio.to_thread(self.models.weights.keep, engines))  # collecting what is let go takes its time

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
                model: Model = models.served(ref, name)
                model = model if retrieval is None else models.grounded(model, retrieval)
                _ = model.digest  # reads the weights: here, in a thread of its own
            except (StoreError, UsageError) as error:
                _log.error("'%s' cannot be loaded: %s", name, error)
                what = f"The model '{name}' cannot be loaded; the server's log has the reason"
                raise APIError(503, what, param="model", code="model_not_loaded") from error
            self._loaded[key] = model
        return Target(undeployed(self._loaded[key], made=ref), self._loaded[key], fingerprint=self._loaded[key].digest[:12])

    async def find(self, name: str, project: str) -> Model:
        """The model that answers to a name when no client asks. Raises NotFound."""
        return (await self.target(name, project)).model

    def passed_to(self, name: str, key: str = "", known: AskedState = NOTHING_KNOWN) -> Target | None:
        """Who answers to a name, where that is another server; of several variants only where others answer for all of them."""
        alias = name if self.router.has(name) else self.names.get(name, "")
        if not self.router.passes(alias):
            return None
        return self.router.target(alias, key, known)

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
        deployment = self.router.deployment(wanted) if self.router.has(wanted) else None
        if deployment is None:
            return wanted
        return f"{wanted}@{deployment.version}" + (f":{deployment.variants[0].name}" if len(deployment.variants) > 1 else "")

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
