"""The servers of `serve.upstreams` as models that are asked here: for evaluation, judges and graders. Knows nothing about passing requests
through."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

from tunesmith.core.errors import UsageError
from tunesmith.deploy.serve_config import Elsewhere
from tunesmith.models.around import Paced
from tunesmith.models.base import Model


def asked_upstreams(upstreams: Mapping[str, Elsewhere], concurrency: int = 8, rate: float | None = None) -> dict[str, Callable[[], Model]]:
    """What makes a model of each; nothing is connected, and no key looked for, before one is asked for."""
    return {name: partial(_model, name, elsewhere, concurrency, rate) for name, elsewhere in upstreams.items()}


def _model(name: str, elsewhere: Elsewhere, concurrency: int, rate: float | None) -> Model:
    from tunesmith.models.openai_api import OpenAIModel

    asked = OpenAIModel(
        elsewhere.model,
        base_url=elsewhere.base_url,
        api_key=key_of(name, elsewhere),
        name=name,
        concurrency=concurrency,
        timeout_s=elsewhere.timeout_s,
    )
    return asked if rate is None else Paced(asked, rate, concurrency)


def key_of(name: str, elsewhere: Elsewhere) -> str:
    """The key of an upstream from the environment. Raises UsageError where it is not set."""
    if elsewhere.api_key_from is None:
        return "none"
    if elsewhere.api_key_from not in os.environ:
        raise UsageError(
            f"the upstream '{name}' takes its key from {elsewhere.api_key_from}, which is not set",
            remedy=f"export {elsewhere.api_key_from}=…",
        )
    return os.environ[elsewhere.api_key_from]
