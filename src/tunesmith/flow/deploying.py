"""A model put in force under a name by a person, not by a run's gate. Loads what it deploys once, to write down its digest."""

from __future__ import annotations

from msgspec.structs import replace

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import UsageError
from tunesmith.models.echo import EchoModel
from tunesmith.models.resolve import Models, is_remote
from tunesmith.models.retrieval import asked_with
from tunesmith.store.deployments import Deployments
from tunesmith.store.indexes import Indexes
from tunesmith.store.store import Store


def deploy(
    alias: str, word: str, models: Models, store: Store, *, template: str | None = None, reason: str = "", by: str = ""
) -> Deployment:
    """Let `alias` answer with what the word names, from the next start of the server on: a model here, an upstream's name, or what another
    name answers with, each also as MODEL?INDEX; the index is written down by its digest, so that a new one of the same name changes no
    deployment.

    Raises NotFound for what the word does not name, UsageError for a model elsewhere that is no upstream, and for a `template` without an
    index.
    """
    plain, retrieval = asked_with(word)
    if template is not None:
        if retrieval is None:
            raise UsageError(f"a template, and '{word}' looks nothing up", where="template", allowed="MODEL?INDEX")
        retrieval = replace(retrieval, template=template)
    if retrieval is not None:
        retrieval = replace(retrieval, index=Indexes(store.layout).find(retrieval.index))
    if not is_remote(plain) and (known := models.variant(plain)) is not None:
        if retrieval is not None and known.retrieval is not None:
            raise UsageError(f"'{plain}' looks passages up already", allowed=f"{plain} alone")
        variant = known if retrieval is None else replace(known, retrieval=retrieval)
    elif plain in models.upstreams:
        variant = Variant(name=plain, upstream=plain, retrieval=retrieval)
    elif is_remote(plain):
        names = ", ".join(models.upstreams) or "none is configured"
        raise UsageError(f"'{plain}' answers elsewhere", allowed=f"a model here, or an upstream ({names})", remedy="serve.upstreams")
    else:
        ref = models.ref(plain)
        name = "tuned" if ref.trained else "base"
        lazy = models.lazy(ref, alias)
        variant = Variant(name=name, model=replace(ref, digest=lazy.digest), retrieval=retrieval)
    if retrieval is not None:
        models.grounded(EchoModel(), retrieval)  # refuses what the index cannot do, whoever answers
    return Deployments(store).put(alias, [variant], reason=reason, by=by)
