"""What is known of whether the variants of an alias are what was deployed: from the store, or by looking through a server now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import NotFound, TunesmithError, nearest
from tunesmith.core.identity import IdentityCheck, IdentityReference
from tunesmith.deploy.identity import names_answers
from tunesmith.flow.identity import Asking, checked, unknown
from tunesmith.store.deployments import Deployments
from tunesmith.store.identities import Identities
from tunesmith.store.store import Store

_NOT_LOADED = "could not be loaded: "

# How a variant is asked through a server: (alias, variant, reference) → its answers.
Through = Callable[[str, str, IdentityReference], Asking]


@dataclass(frozen=True)
class VariantIdentity:
    """One variant: what its exact weights answered (None: nobody asked them), and the looks at it, the newest first."""

    variant: Variant
    reference: IdentityReference | None
    looks: tuple[IdentityCheck, ...]

    @property
    def differs(self) -> bool:
        """Whether the newest look that came to a verdict found another model."""
        verdicts = [look.verdict for look in self.looks if look.verdict != "unknown"]
        return verdicts[:1] == ["differs"]

    def text(self) -> str:
        """For people."""
        if self.reference is None:
            return f"{self.variant.name}: not known: no probes were asked when it was deployed (deploy it again)"
        kind = "with log-probabilities" if self.reference.logprobs else "by answers alone"
        if not self.looks:
            return f"{self.variant.name}: {len(self.reference.probes)} probes {kind}, not yet looked at"
        newest = self.looks[0]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(newest.created))
        return f"{self.variant.name}: {newest.text()}; {newest.moment} at {when} by {newest.server or 'nobody named'}, {kind}"


def identities(alias: str, store: Store) -> tuple[Deployment, list[VariantIdentity]]:
    """The deployment of an alias, and what is known of each of its variants. Raises NotFound."""
    in_force = Deployments(store).in_force()
    if alias not in in_force:
        raise NotFound(f"nothing is deployed as '{alias}'", allowed=", ".join(in_force) or "none", remedy=nearest(alias, in_force))
    deployment, looks = in_force[alias], Identities(store).of(alias)
    known = []
    for variant in deployment.variants:
        mine = tuple(each for each in looks if each.variant == variant.name and each.deployment == deployment.version)
        known.append(VariantIdentity(variant, Identities(store).reference(names_answers(variant)), mine))
    return deployment, known


def note_loading(deployment: Deployment, variant: Variant, why: str | None, store: Store) -> None:
    """Write down that a server could not load a variant and why, or (None) that it could again."""
    look = unknown(deployment, variant, "loaded")
    Identities(store).put(replace(look, why="loaded again, not yet looked at" if why is None else f"{_NOT_LOADED}{why}"))


def not_loaded(store: Store) -> dict[tuple[str, int, str], str]:
    """(alias, version, variant) of what is in force and could not be loaded by the server that tried last, with why."""
    in_force = {(alias, deployment.version) for alias, deployment in Deployments(store).in_force().items()}
    return {
        (look.alias, look.deployment, look.variant): look.why.removeprefix(_NOT_LOADED)
        for look in Identities(store).newest()
        if (look.alias, look.deployment) in in_force and look.why.startswith(_NOT_LOADED)
    }


def look_through(alias: str, through: Through, server: str, store: Store) -> None:
    """Look at every variant of an alias through a server, and keep what is found. Raises NotFound."""
    deployment, known = identities(alias, store)
    for each in known:
        if each.reference is None:
            continue
        check = unknown(deployment, each.variant, "asked", server)
        try:
            check = checked(through(alias, each.variant.name, each.reference), each.reference, check)
        except TunesmithError as error:
            check = replace(check, why=error.what)
        Identities(store).put(check)
