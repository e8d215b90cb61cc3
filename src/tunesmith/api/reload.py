"""What is deployed, loaded and put in force while the server runs: a change takes effect with the next request. Knows nothing about HTTP.

Whoever changes a deployment writes a version into the store, this server, another one or the command line; each request asks the store for
the newest version first. Weights that are not in memory are loaded beside the requests: until they are there the version before answers,
and a name that had none waits. What no deployment needs any longer is let go once its last answer is whole.

A variant that cannot be loaded keeps no other variant of its name from answering: where the version is the one in force and no other can
take its place, something stands for that variant that refuses what it is asked, and is said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import NotFound, StoreError, TunesmithError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.passages import Retrieval
from tunesmith.deploy.router import Router
from tunesmith.deploy.strategy import answering
from tunesmith.deploy.unloadable import Unloadable
from tunesmith.flow.identity import verified
from tunesmith.flow.identity_status import not_loaded, note_loading
from tunesmith.models.base import Model, grounding, loaded
from tunesmith.models.resolve import Models
from tunesmith.store.deployments import Deployments, NewestVersion
from tunesmith.store.store import Store

_log = logging.getLogger("tunesmith.api")
_LOOK_S = 0.5  # how often is looked while nobody asks, so that weights are there when somebody does
_Key = tuple[str, ModelRef | None, str | None, Retrieval | None]


@dataclass
class Reload:
    """The deployments of the store of `models`, as `router` has them. `upstreams` are the servers that variants name; `on_deployed` is
    called when models may have fallen out of use. `only` names the one alias that is served (None: all)."""

    router: Router
    models: Models
    upstreams: Mapping[str, Model]
    on_deployed: Callable[[], None] = field(default=lambda: None)
    only: str | None = None
    _loaded: dict[_Key, Model] = field(default_factory=dict)
    _missing: dict[_Key, str] = field(default_factory=dict)
    _noted: dict[tuple[str, int, str], str | None] = field(default_factory=dict)
    _newest: int = 0
    _seen: int | None = None
    _look_up: NewestVersion | None = None
    _wanted: dict[str, int] = field(default_factory=dict)
    _loading: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def start(self) -> list[str]:
        """Let every alias in force answer with the models of its variants; what is to be said: who cannot be loaded and why, and who
        computes otherwise than when it was deployed."""
        lines = []
        if self.models.store is not None:
            self._newest = Deployments(self.models.store).newest()
            self._noted.update(not_loaded(self.models.store))
        newest_first = sorted(self._in_force().values(), key=lambda deployment: -deployment.version)
        for number, deployment in enumerate(newest_first):
            alias = deployment.alias
            self._wanted[alias] = deployment.version
            try:
                models = self._load(deployment, now=number < self.models.weights.max_adapters)
                lines += [*self._put(deployment, models), *self._tell(deployment)]
            except TunesmithError as error:
                self.router.fail(alias, error)
                lines.append(f"NOT SERVED: '{alias}' (version {deployment.version}): {error}")
        return lines

    async def refresh(self, name: str = "") -> None:
        """Take into effect what has changed in the store; of `name`, wait until something answers to it. A store that does not answer
        changes nothing."""
        try:
            await self._look()
        except StoreError as error:
            _log.error("what is deployed could not be looked up: %s", error)
        if (loading := self._loading.get(name)) is not None and not self.router.has(name):
            await asyncio.shield(loading)

    async def watch(self) -> None:
        """Look for changes as long as the server runs."""
        while True:
            await self.refresh()
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> None:
        store = self.models.store
        if store is None:
            return
        if await self._changed(store):
            async with self._lock:
                newest = await asyncio.to_thread(Deployments(store).newest)
                in_force = await asyncio.to_thread(self._in_force)
                if newest == self._newest:
                    return
                for alias, deployment in in_force.items():
                    if self._wanted.get(alias) != deployment.version and alias not in self.upstreams:
                        self._change(alias, deployment)
                self._newest = newest

    async def _changed(self, store: Store) -> bool:
        """Whether there is a newer version. SQLite answers out of its cache, sooner than a thread begins; requests that were read together
        are answered by one look: it came after all of them."""
        if not Deployments(store).local:
            return await asyncio.to_thread(Deployments(store).newest) != self._newest
        if self._seen is None:
            if self._look_up is None:
                self._look_up = NewestVersion(store)
            self._seen = self._look_up()
            asyncio.get_running_loop().call_soon(self._forget)
        return self._seen != self._newest

    def _forget(self) -> None:
        self._seen = None

    def _change(self, alias: str, deployment: Deployment) -> None:
        """Put a version in force: now where its models are in memory, else once they are."""
        self._wanted[alias] = deployment.version
        if all(self._key(variant, alias) in self._loaded or variant.upstream is not None for variant in deployment.variants):
            try:
                self._put(deployment, self._load(deployment))
            except TunesmithError as error:
                self._refuse(deployment, error)
            else:
                self.on_deployed()
            return
        self._loading[alias] = asyncio.ensure_future(self._change_later(alias, deployment))

    async def _change_later(self, alias: str, deployment: Deployment) -> None:
        try:
            models = await asyncio.to_thread(partial(self._load, deployment, verify=True))
            if self._wanted[alias] == deployment.version:  # else a newer one came while this one was loaded
                for line in [*self._put(deployment, models), *self._tell(deployment)]:
                    _log.warning("%s", line)
                self.on_deployed()
        except TunesmithError as error:
            self._refuse(deployment, error)
        except Exception as error:
            self._refuse(deployment, TunesmithError(str(error)))
            raise
        finally:
            if self._wanted[alias] == deployment.version:
                self._loading.pop(alias, None)

    def _refuse(self, deployment: Deployment, error: TunesmithError) -> None:
        """What cannot be loaded changes nothing for a name that answers; one that does not is told why."""
        alias = deployment.alias
        stays = f"; version {before.version} goes on answering" if (before := self.router.deployment(alias)) is not None else ""
        _log.error("NOT SERVED: '%s' (version %s): %s%s", alias, deployment.version, error, stays)
        if not self.router.has(alias):
            self.router.fail(alias, error)

    def _in_force(self) -> dict[str, Deployment]:
        in_force = Deployments(self.models.store).in_force() if self.models.store is not None else {}
        return {alias: deployment for alias, deployment in in_force.items() if self.only in (None, alias)}

    def _key(self, variant: Variant, alias: str) -> _Key:
        return alias, variant.model, variant.upstream, variant.retrieval

    def _load(self, deployment: Deployment, *, verify: bool = False, now: bool = True) -> dict[str, Model]:
        """The models of the variants by their names; those in memory are taken as they are, others are loaded `now` or when they are asked.
        With `verify` one that answers probes otherwise than what was deployed is refused.

        For one that cannot be loaded something stands that refuses, where clients have another variant, and nothing answers to the alias
        yet or that one could not be loaded before either. Else raises what loading it raised."""
        models: dict[str, Model] = {}
        failed: list[TunesmithError] = []
        for variant in deployment.variants:
            key = self._key(variant, deployment.alias)
            if key not in self._loaded:
                try:
                    self._loaded[key] = self._one(deployment, variant, verify=verify, now=now)
                except TunesmithError as error:
                    failed.append(error)
                    self._note(deployment, variant, error.what)
                    if self.router.has(deployment.alias) and key not in self._missing:
                        raise
                    self._missing[key] = error.what
                    digest = variant.model.digest if variant.model is not None else ""
                    models[variant.name] = Unloadable(deployment.alias, digest, error.what, variant.model)
                    continue
                self._note(deployment, variant, None)
            self._missing.pop(key, None)
            models[variant.name] = self._loaded[key]
        if failed and not self._sound(deployment):
            raise failed[0]
        return models

    def _sound(self, deployment: Deployment) -> list[str]:
        """The variants that clients have answers of and that could be loaded."""
        return [each.name for each in answering(deployment) if self._key(each, deployment.alias) not in self._missing]

    def _one(self, deployment: Deployment, variant: Variant, *, verify: bool, now: bool) -> Model:
        """The model of a variant. Raises TunesmithError, whatever a library raises of damaged files."""
        try:
            model = self._model(variant, deployment.alias)
            if now:
                _ = loaded(_own(model)).digest  # reads the weights
            if verify and self.models.store is not None:
                verified(variant, model, deployment, self.models.store, "loaded")
        except TunesmithError:
            raise
        except Exception as error:
            _log.exception("'%s' (version %s), variant '%s' could not be loaded", deployment.alias, deployment.version, variant.name)
            raise TunesmithError(f"{type(error).__name__}: {error}") from error
        return model

    def _tell(self, deployment: Deployment) -> list[str]:
        """What is to be said of the variants that could not be loaded."""
        sound = self._sound(deployment)
        instead = f"{', '.join(sound)} answer{'s' if len(sound) == 1 else ''}"
        return [
            f"NOT SERVED: '{deployment.alias}' (version {deployment.version}), variant '{variant.name}': {why}; {instead}"
            for variant in deployment.variants
            if (why := self._missing.get(self._key(variant, deployment.alias))) is not None
        ]

    def _note(self, deployment: Deployment, variant: Variant, why: str | None) -> None:
        """Write down that a variant could not be loaded, or (None) can be again, for who looks from another process."""
        place, store = (deployment.alias, deployment.version, variant.name), self.models.store
        if store is not None and self._noted.get(place) != why:
            note_loading(deployment, variant, why, store)
            self._noted[place] = why

    def _model(self, variant: Variant, alias: str) -> Model:
        if variant.model is not None:
            model: Model = self.models.served(variant.model, alias)
        elif variant.upstream is None or variant.upstream not in self.upstreams:
            raise NotFound(f"no upstream '{variant.upstream}'", where="serve.upstreams", allowed=", ".join(self.upstreams) or "none")
        else:
            model = self.upstreams[variant.upstream]
        return model if variant.retrieval is None else self.models.grounded(model, variant.retrieval)

    def _put(self, deployment: Deployment, models: Mapping[str, Model]) -> list[str]:
        """Let the version answer, and forget the models that only the versions before had; what is to be said of it."""
        alias = deployment.alias
        self.router.deploy(deployment, models)
        needed = {self._key(variant, alias) for variant in deployment.variants}
        self._loaded = {key: model for key, model in self._loaded.items() if key[0] != alias or key in needed}
        self._missing = {key: why for key, why in self._missing.items() if key[0] != alias or key in needed}
        return [
            f"'{alias}' computes otherwise than when version {deployment.version} was deployed: other files, precision or template"
            for variant in deployment.variants
            if variant.model is not None and variant.model.digest not in ("", _own(models[variant.name]).digest)
        ]


def _own(model: Model) -> Model:
    """The weights' model, without what it looks up."""
    looking = grounding(model)
    return model if looking is None else looking.model
