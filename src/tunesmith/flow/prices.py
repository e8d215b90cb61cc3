"""What the tokens of a served model cost: the project's own price, else the shipped list's for a hosted model, nothing for a model here.
Knows nothing about requests."""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.core.deployment import Variant
from tunesmith.deploy.serve_config import ServeConfig, TokenPrice
from tunesmith.flow.datasets.tokens import price_of as listed

_FREE = TokenPrice(input=0.0)


def prices_of(config: ServeConfig) -> Callable[[str, Variant], TokenPrice | None]:
    """The price of an alias that a variant answers to; None where nobody knows it."""

    def price(alias: str, variant: Variant) -> TokenPrice | None:
        if alias in config.prices:
            return config.prices[alias]
        name = variant.upstream
        if name is None:
            return _FREE
        upstream = config.upstreams.get(name)
        if upstream is not None and upstream.price is not None:
            return upstream.price
        hosted = listed(upstream.model if upstream is not None else variant.name)
        return TokenPrice(input=hosted.input, output=hosted.output) if hosted is not None else None

    return price
