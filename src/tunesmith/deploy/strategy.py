"""Which variant of a deployment answers a request: one pure function a strategy, of the request's key, the deployment and the state. Knows
nothing about models, names or the log.

A strategy that is added here, and in `core.deployment.StrategyName`, is taken everywhere: nobody else asks which one it is. What a strategy
says is who answers, who answers in its place when it fails, and who answers too without being shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tunesmith.core.deployment import Deployment, Enrolment, Variant
from tunesmith.core.errors import ConfigError, NotFound, nearest

_FNV_OFFSET, _FNV_PRIME = 0x811C9DC5, 0x01000193
_BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class AskedState:
    """What is known when a variant is chosen: `assigned` is the variant that the request's conversation was assigned before, with the
    `propensity` that it had then, and for which `experiment`."""

    assigned: str | None = None
    propensity: float | None = None
    experiment: str | None = None


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """The variant that a request is assigned, and the probability with which it was chosen: what later estimates divide by (None: it was
    not drawn, somebody asked for it). `instead` answer in this order when it fails, `reserve` only where its weights cannot be loaded;
    `copies` answer too and are never shown. `experiment` is the one that the request counts in."""

    variant: Variant
    propensity: float | None = 1.0
    instead: tuple[Variant, ...] = ()
    reserve: tuple[Variant, ...] = ()
    copies: tuple[Variant, ...] = ()
    experiment: str | None = None


# The key is what stays the same while one variant should: the client's word for its user, else the conversation, else the request.
Strategy = Callable[[str, Deployment, AskedState], VariantChoice]


def first_variant(_key: str, deployment: Deployment, _state: AskedState) -> VariantChoice:
    """`one`: the first variant answers everything; the others are kept for whoever names them."""
    return VariantChoice(deployment.variants[0])


def split(key: str, deployment: Deployment, state: AskedState) -> VariantChoice:
    """`split`: each variant is assigned its share of the keys, always the same keys; a conversation keeps the variant that it was assigned,
    whatever the weights are by now, and the propensity that it was assigned with. Where a variant's weights cannot be loaded the others
    answer on its account. While an experiment runs only those who are enrolled are drawn, the others have the first variant, and where
    one variant fails the others answer.
    """
    choice = _drawn(key, deployment, state)
    others = [each for each in deployment.variants if each is not choice.variant and each.weight]
    return replace(choice, reserve=tuple(sorted(others, key=lambda each: -each.weight)))


def _drawn(key: str, deployment: Deployment, state: AskedState) -> VariantChoice:
    enrolment = deployment.enrolment
    total = sum(variant.weight for variant in deployment.variants)
    shares = [variant.weight / total for variant in deployment.variants]
    if state.assigned is not None and (held := deployment.variant(state.assigned)) is not None:
        if enrolment is None or state.experiment != enrolment.experiment:  # what began before the experiment is not drawn by it
            return VariantChoice(held, state.propensity)
        return _counted(VariantChoice(held, state.propensity), deployment)
    if enrolment is not None and not enrolled(key, enrolment):
        return VariantChoice(deployment.variants[0])
    at, end = bucket(deployment.alias if enrolment is None else enrolment.experiment, key), 0.0
    for variant, share in zip(deployment.variants, shares, strict=True):
        end += share
        if share and at < end:
            return _counted(VariantChoice(variant, share), deployment)
    last = max(i for i, share in enumerate(shares) if share)  # the shares may add up to a little less than 1
    return _counted(VariantChoice(deployment.variants[last], shares[last]), deployment)


def enrolled(key: str, enrolment: Enrolment) -> bool:
    """Whether a request with this key takes part in an experiment."""
    return enrolment.low <= bucket(enrolment.layer, key) < enrolment.high


def _counted(choice: VariantChoice, deployment: Deployment) -> VariantChoice:
    """The choice as the deployment's experiment has it, if there is one."""
    if deployment.enrolment is None:
        return choice
    others = tuple(variant for variant in deployment.variants if variant is not choice.variant)
    copies = deployment.variants[:1] if deployment.enrolment.baseline else ()
    return replace(choice, instead=others, copies=copies, experiment=deployment.enrolment.experiment)


def fallback(_key: str, deployment: Deployment, _state: AskedState) -> VariantChoice:
    """`fallback`: the first variant answers, and the next where it fails or takes longer than it may."""
    return VariantChoice(deployment.variants[0], instead=deployment.variants[1:])


def shadow(key: str, deployment: Deployment, _state: AskedState) -> VariantChoice:
    """`shadow`: the first variant answers; each other one gets a copy of its share of the requests."""
    copied = [variant for variant in deployment.variants[1:] if bucket(f"{deployment.alias}/{variant.name}", key) < variant.weight]
    experiment = deployment.enrolment.experiment if deployment.enrolment is not None and copied else None
    return VariantChoice(deployment.variants[0], copies=tuple(copied), experiment=experiment)


STRATEGIES: Mapping[str, Strategy] = {"one": first_variant, "split": split, "fallback": fallback, "shadow": shadow}


def answering(deployment: Deployment) -> list[Variant]:
    """The variants whose answers clients may see, whichever they are assigned."""
    if deployment.strategy == "split":
        return [variant for variant in deployment.variants if variant.weight]
    return list(deployment.variants if deployment.strategy == "fallback" else deployment.variants[:1])


def choose(key: str, deployment: Deployment, state: AskedState) -> VariantChoice:
    """The deployment's own strategy, applied. Raises ConfigError for a strategy that nobody wrote."""
    strategy = STRATEGIES.get(deployment.strategy)
    if strategy is None:
        raise ConfigError(f"the deployment of '{deployment.alias}' has the strategy '{deployment.strategy}'", allowed=", ".join(STRATEGIES))
    return strategy(key, deployment, state)


def asked_for(name: str, deployment: Deployment) -> VariantChoice:
    """The variant that somebody names, whatever the strategy. Raises NotFound."""
    variant = deployment.variant(name)
    if variant is None:
        names = [each.name for each in deployment.variants]
        raise NotFound(f"'{deployment.alias}' has no variant '{name}'", allowed=", ".join(names), remedy=nearest(name, names))
    return VariantChoice(variant, propensity=None)


def bucket(seed: str, value: str) -> float:
    """Where `value` falls in [0, 1), in steps of 1/10,000: GrowthBook's hash, version 2 (its SDKs' published test vectors)."""
    return _fnv32a(str(_fnv32a(seed + value))) % _BUCKETS / _BUCKETS


def _fnv32a(text: str) -> int:
    """FNV-1a, 32 bits, over the code points as GrowthBook has it (UTF-16 code units in its JavaScript)."""
    number = _FNV_OFFSET
    for unit in memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H"):
        number = (number ^ unit) * _FNV_PRIME & 0xFFFFFFFF
    return number
