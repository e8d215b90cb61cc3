"""The gate before every deployment: adapter, merged export and server on a few of the task's own rows, once for the same weights. Knows
nothing about how they are compared (`flow/parity.py` does)."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import DataError, GateRefused, UsageError
from tunesmith.core.model_ref import ModelRef
from tunesmith.flow.evaluation.run import Bench
from tunesmith.flow.parity import ParityAsk, parity
from tunesmith.flow.temporary_server import Server
from tunesmith.models.lazy import computing
from tunesmith.models.resolve import is_remote
from tunesmith.models.retrieval import asked_with
from tunesmith.store.deployments import Deployments

_FEW_ROWS, _FEW_TOKENS = 2, 12


def compare_first(word: str, at: Bench, server: Server, *, ref: ModelRef | None = None, skipped: str | None = None) -> None:
    """Compare what the word names (or `ref`, by that word), where it was trained and is here, a run has split rows and the project does not
    say otherwise; not at all where it is `skipped` with a reason. Weights that passed on this machine are not compared again. Raises
    GateRefused, and UsageError for no reason."""
    if skipped is not None and not skipped.strip():
        raise UsageError("--no-parity without a reason", allowed="why this model is deployed without it", remedy="--no-parity 'the base'")
    context, plain = at.context, asked_with(word)[0]
    if skipped or context is None or not context.project.deploy.parity or context.data.peek("split") is None:
        return
    ref = ref or _named(plain, at)
    if ref is None or ref.trained is None or (passed := _passed(ref, at)).is_file():
        return
    with contextlib.suppress(DataError):  # no row asks anything
        write_atomic(passed, gate(plain, at, server, ref=ref))


def variant_word(alias: str, name: str, at: Bench) -> str:
    """The word for one of several variants of an alias; the name itself where it has none of that name."""
    deployment = Deployments(at.store).in_force().get(alias)
    if deployment is None or deployment.variant(name) is None:
        return name
    return f"{alias}:{name}" if len(deployment.variants) > 1 else alias


def with_reason(reason: str, skipped: str | None) -> str:
    """The reason of a deployment, with why nothing was compared."""
    return " ".join(filter(None, [reason, f"(no parity: {skipped})" if skipped else ""]))


def gate(word: str, at: Bench, server: Server, *, ref: ModelRef | None = None, data: str = "validation") -> str:
    """Compare adapter, merged export and server on a few rows; what was found. Raises GateRefused where one of them computes another
    model."""
    outcome = parity(word, ParityAsk(data=data, limit=_FEW_ROWS, max_tokens=_FEW_TOKENS, brief=True), at, server, ref=ref)
    if not outcome.passed:
        raise GateRefused(
            f"'{word}' is not deployed: it computes another model than transformers and peft\n{outcome.text()}",
            remedy="tunesmith parity shows more; --no-parity REASON deploys it anyway, deploy.parity: false any model",
        )
    return outcome.text()


def _named(word: str, at: Bench) -> ModelRef | None:
    """What a word names; None for what answers elsewhere."""
    if is_remote(word) or word in at.models.upstreams:
        return None
    variant = at.models.variant(word)
    return at.models.ref(word) if variant is None else variant.model


def _passed(ref: ModelRef, at: Bench) -> Path:
    """Where is written that these files computed alike on this machine under these versions."""
    base, adapter = at.models.folders(ref)
    return at.store.layout.parity / f"{computing(at.models.catalog.digest(base), adapter)}.txt"
