"""What a job starts from: a base, whole weights that an earlier job trained, or its adapter, with which training goes on. Knows nothing
about queues and files."""

from __future__ import annotations

from typing import Any

import msgspec

from tunesmith.core.config import convert
from tunesmith.core.errors import ConfigError, NotFound
from tunesmith.core.model_ref import ModelRef, folder_at
from tunesmith.core.wire import BadRequest
from tunesmith.models.resolve import Models
from tunesmith.store.jobs import JobRequest
from tunesmith.train.plan import Adapter, Plan


def starting(asked: JobRequest, ref: ModelRef, models: Models) -> JobRequest:
    """The request with the adapter that its training goes on from, where its model is one: the same layers, rank and alpha.

    Raises BadRequest for one that is gone, or another adapter than it has.
    """
    if ref.adapter is None:
        return asked
    from tunesmith.train.starting import going_on

    try:
        base, folder = models.folders(ref)
        assert folder is not None
        started = going_on(convert(asked.extras, Plan).adapter, folder, base)
    except ConfigError as error:
        what = f"'{asked.model}' is an adapter, and training goes on with it: {error.what}"
        raise BadRequest(what, param="hyperparameters", code="invalid_value", allowed=error.remedy or error.allowed) from error
    except NotFound as error:
        raise BadRequest(f"'{asked.model}': {error.what}", param="model", code="model_not_available") from error
    tree: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(started, start_from=ref.adapter))
    return msgspec.structs.replace(asked, extras=asked.extras | {"adapter": tree})


def anchored(plan: Plan, models: Models) -> Plan:
    """The plan with the whole path of the adapter that it starts from."""
    place = plan.adapter.start_from
    if place is None or models.store is None:
        return plan
    adapter: Adapter = msgspec.structs.replace(plan.adapter, start_from=str(folder_at(place, models.store.folder)))
    return msgspec.structs.replace(plan, adapter=adapter)
