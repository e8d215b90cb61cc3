"""Which variant of a deployment answers a request: one pure function a strategy, of the request's key, the deployment and the state. Knows
nothing about models, names or the log.

A strategy that is added here, and in `core.deployment.Deployment.strategy`, is taken everywhere: nobody else asks which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import ConfigError

# What is known of each variant when one is chosen, by its name, for strategies that learn. The strategy `one` reads none of it.
State = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """The variant that answers, and the probability with which it was chosen: what later estimates divide by."""

    variant: Variant
    propensity: float = 1.0


# The key is what stays the same while one variant should: the client's word for its user, else the conversation.
Strategy = Callable[[str, Deployment, State], VariantChoice]


def first_variant(_key: str, deployment: Deployment, _state: State) -> VariantChoice:
    """The first variant answers everything; the others are kept for whoever names them."""
    return VariantChoice(deployment.variants[0])


STRATEGIES: Mapping[str, Strategy] = {"one": first_variant}


def choose(key: str, deployment: Deployment, state: State) -> VariantChoice:
    """The deployment's own strategy, applied. Raises ConfigError for a strategy that nobody wrote."""
    strategy = STRATEGIES.get(deployment.strategy)
    if strategy is None:
        raise ConfigError(f"the deployment of '{deployment.alias}' has the strategy '{deployment.strategy}'", allowed=", ".join(STRATEGIES))
    return strategy(key, deployment, state)
