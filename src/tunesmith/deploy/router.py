"""A name → its deployment → the variant that answers → its model, once a request; knows nothing about how models answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import ConfigError, NotFound, TunesmithError, nearest
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Message, digest
from tunesmith.deploy.engine import Unloaded
from tunesmith.deploy.strategy import AskedState, VariantChoice, asked_for, choose
from tunesmith.models.base import Model, passing, ref_of

T = TypeVar("T")
OVERRIDE = "override"  # the strategy of a request that somebody sent to a variant by its name
_NOTHING_KNOWN = AskedState()


@dataclass(frozen=True, slots=True)
class Target:
    """Who answers one request: the variant of which version of a deployment, and its model.

    `deployment` is None for what answers without having been deployed: a base, an upstream, what a job made. `propensity` is the
    probability with which the `strategy` chose this variant. `instead` answer in its place, in this order, when it fails, `reserve` only
    where its weights cannot be loaded; `copies` answer too and are never shown. `fingerprint` is what clients may know of what answers: of
    an alias with several variants nothing that differs between them; `several` says that it is one of these, `experiment` which one the
    request counts in.
    """

    variant: Variant
    model: Model
    deployment: int | None = None
    propensity: float | None = None
    strategy: str = ""
    fingerprint: str = ""
    instead: tuple[Target, ...] = ()
    reserve: tuple[Target, ...] = ()
    copies: tuple[Target, ...] = ()
    several: bool = False
    experiment: str | None = None

    @property
    def defaults(self) -> Mapping[str, float]:
        """How this variant draws what a request leaves open."""
        return self.variant.sampling

    def instructed(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages with the variant's instruction in place of their own, where it has one."""
        return self.variant.instructed(messages)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What answers to one name: version 0 stands for what was never deployed."""

    deployment: Deployment
    models: Mapping[str, Model]
    since: float
    shared: str = ""
    """What clients may know of several variants: nothing that differs between them."""

    def target(self, key: str, known: AskedState, wanted: str | None) -> Target:
        deployment = self.deployment
        choice = choose(key, deployment, known) if wanted is None else asked_for(wanted, deployment)
        if not deployment.version:
            model = self.models[choice.variant.name]
            return Target(choice.variant, model, fingerprint=model.digest[:12])
        return self._chosen(choice, deployment.strategy if wanted is None else OVERRIDE)

    def _chosen(self, choice: VariantChoice, strategy: str) -> Target:
        deployment, variant = self.deployment, choice.variant
        model = self.models[variant.name]
        own = Target(
            variant,
            model,
            deployment.version,
            choice.propensity,
            strategy,
            self.shared or model.digest[:12],
            several=bool(self.shared),
            experiment=choice.experiment,
        )
        if not choice.instead and not choice.reserve and not choice.copies:
            return own
        instead, reserve, copies = (
            tuple(replace(own, variant=other, model=self.models[other.name]) for other in others)
            for others in (choice.instead, choice.reserve, choice.copies)
        )
        return replace(own, instead=instead, reserve=reserve, copies=copies)


class Router:
    """Names that clients ask for (aliases) → deployments and the models of their variants. Changes take effect with the next request."""

    def __init__(self, models: Mapping[str, Model] | None = None) -> None:
        self._entries: dict[str, _Entry] = {}
        self._failed: dict[str, TunesmithError] = {}
        self._absent: dict[str, str] = {}
        for alias, model in (models or {}).items():
            self.put(alias, model)

    def put(self, alias: str, model: Model) -> None:
        """Let `model` answer to `alias` from now on, without a deployment. Its digest is computed here, since that reads the weights."""
        variant = undeployed(model, upstream=alias if passing(model) is not None else None, made=ref_of(model))
        self._put(alias, Deployment(alias=alias, version=0, variants=(variant,)), {variant.name: model})

    def deploy(self, deployment: Deployment, models: Mapping[str, Model]) -> None:
        """Let a deployment answer to its alias from now on; `models` has each variant's, by the variant's name. Raises ConfigError."""
        names = {variant.name for variant in deployment.variants}
        if names != set(models):
            raise ConfigError(f"the deployment of '{deployment.alias}' comes with models for {sorted(models)}", allowed=f"{sorted(names)}")
        self._put(deployment.alias, deployment, models)

    def fail(self, alias: str, error: TunesmithError) -> None:
        """Remember why nothing can answer to a deployed alias; who asks for it is told."""
        self._failed = {**self._failed, alias: error}

    def explain(self, alias: str, why: str) -> None:
        """Remember why a name that clients may well ask for answers nothing; who asks for it is told."""
        self._absent = {**self._absent, alias: why}

    def _put(self, alias: str, deployment: Deployment, models: Mapping[str, Model]) -> None:
        for model in models.values():
            _ = model.digest
        shared = digest(alias, deployment.version)[:12] if len(deployment.variants) > 1 else ""
        entry = _Entry(deployment, dict(models), time.time(), shared)
        self._failed = _without(self._failed, alias)
        self._entries = {**self._entries, alias: entry}  # replaced whole: readers in other threads see the old or the new

    def drop(self, alias: str) -> None:
        """Take a name away, also one whose model could not be loaded. Raises NotFound."""
        if alias not in self._failed:
            self.find(alias)
        self._failed, self._entries = _without(self._failed, alias), _without(self._entries, alias)

    def has(self, alias: str) -> bool:
        """Whether something answers to the name."""
        return alias in self._entries

    def known(self, alias: str) -> bool:
        """Whether the name is served, or would be if its model could be loaded."""
        return alias in self._entries or alias in self._failed

    def deployment(self, alias: str) -> Deployment | None:
        """What the name answers with, where it was deployed."""
        entry = self._entries.get(alias)
        return entry.deployment if entry is not None and entry.deployment.version else None

    def deployments(self) -> list[Deployment]:
        """The deployment of every alias that has one and answers."""
        return [entry.deployment for entry in self._entries.values() if entry.deployment.version]

    def resident(self, alias: str, variant: str) -> bool:
        """Whether a variant's model is in memory, or elsewhere: asking it loads nothing."""
        model = self._entries[alias].models.get(variant) if alias in self._entries else None
        return model is not None and bool(getattr(model, "in_memory", True))

    def passes(self, alias: str) -> bool:
        """Whether other servers answer to the name, whichever variant is chosen."""
        return alias in self._entries and all(passing(model) is not None for model in self._entries[alias].models.values())

    def target(self, alias: str, key: str = "", known: AskedState = _NOTHING_KNOWN, *, wanted: str | None = None) -> Target:
        """Who answers a request to `alias` whose user or conversation is `key`, of which so much is `known`; with `wanted` the variant of
        that name. Raises NotFound with the nearest name, Unloaded for an alias whose model could not be loaded."""
        entry = self._entries.get(alias)
        if entry is None and alias in self._failed:
            raise Unloaded(f"The model '{alias}' could not be loaded: {self._failed[alias].what}", remedy="see the server's first lines")
        if entry is None:
            why = f": {self._absent[alias]}" if alias in self._absent else ""
            raise NotFound(
                f"The model '{alias}' does not exist{why}", allowed=", ".join(self._entries) or "none", remedy=nearest(alias, self._entries)
            )
        return entry.target(key, known, wanted)

    def find(self, alias: str) -> Model:
        """The model that answers to a name when nobody in particular asks: of several variants the first. Raises NotFound with the nearest
        name."""
        entry = self._entries.get(alias)
        return self.target(alias, wanted=entry.deployment.variants[0].name if entry is not None else None).model

    def listed(self) -> list[tuple[str, float]]:
        """(name, since when) of every alias, in the order in which they came."""
        return [(alias, entry.since) for alias, entry in self._entries.items()]

    def models(self) -> Iterator[Model]:
        """Every model of every variant."""
        for entry in self._entries.values():
            yield from entry.models.values()


def _without(table: Mapping[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in table.items() if key != name}


def undeployed(model: Any, *, upstream: str | None = None, made: ModelRef | None = None) -> Variant:
    """The variant that stands for a model which answers without a deployment: an upstream's by its name, what a job made, or a base."""
    if upstream is not None:
        return Variant(name=model.name, upstream=upstream)
    return Variant(name=model.name, model=made or ModelRef(base=model.name))
