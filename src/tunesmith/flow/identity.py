"""Identity of what is served: the reference that is made of the exact weights when they are deployed, and looks at what answers now; joins
the statistics (`deploy/identity.py`) with models and the store."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import GateRefused, NotFound, TunesmithError, UsageError
from tunesmith.core.identity import ANSWERS, IdentityCheck, IdentityReference, Moment, Sample, Verdict
from tunesmith.core.types import Message, Prompt, Sampling
from tunesmith.deploy.identity import (
    AGAIN,
    BORDER_POOL,
    BORDER_PROBES,
    FIRST_LEVEL,
    PROBES,
    TOP,
    look,
    names_answers,
    rounding,
    sample_of,
    second_level,
)
from tunesmith.deploy.parity import TOLERANCE
from tunesmith.deploy.probes import conversations
from tunesmith.models.base import Asked, Model, batching, grounding, loaded
from tunesmith.models.deployed import AsDeployed
from tunesmith.models.resolve import Models
from tunesmith.store.identities import Identities
from tunesmith.store.store import Store

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext

Probes = Sequence[tuple[Message, ...]]
Asking = Callable[[int], list[list[Sample]]]  # how often each probe is asked → its answers, probe by probe
EVERY_S = 120.0  # between two looks at a variant, where nobody says otherwise


def references_of(
    variants: Sequence[Variant], models: Models, store: Store, alias: str, *, system: str | None = None
) -> dict[str, IdentityReference]:
    """What the exact weights of variants answer to probes, by what names their answers: of those here that nobody has asked yet, and of
    every model elsewhere as it is now. One elsewhere that does not answer has none. Raises what loading weights raises."""
    made = {}
    for variant in variants:
        name = names_answers(variant)
        if not name or (variant.model is not None and Identities(store).reference(name) is not None):
            continue
        try:
            made[name] = reference(model_of(variant, models, alias), variant, system)
        except TunesmithError:
            if variant.model is not None:
                raise
    return made


def model_of(variant: Variant, models: Models, alias: str) -> Model:
    """The model of a variant, in memory, with what it looks up. Raises NotFound, and what loading raises."""
    if variant.model is not None:
        model: Model = models.load(variant.model, alias)
    elif variant.upstream is not None and variant.upstream in models.upstreams:
        elsewhere = models.upstreams[variant.upstream]()
        once: Callable[[], Model] | None = getattr(elsewhere, "once", None)
        model = elsewhere if once is None else once()
    else:
        raise NotFound(f"no upstream '{variant.upstream}'", where="serve.upstreams", allowed=", ".join(models.upstreams) or "none")
    return model if variant.retrieval is None else models.grounded(model, variant.retrieval)


def reference(model: Model, variant: Variant, system: str | None = None) -> IdentityReference:
    """What a model answers to probes as that variant has it answer. Weights here are asked in two batches, and twice as a server asks them
    for a request that comes alone, so that what both do to rounding is known. Raises what asking raises."""
    asked, precision, probes = AsDeployed(model, variant), precision_of(model), conversations(system, PROBES)
    answers = _answers(asked, probes, logprobs=True)
    if answers is None or not any(len(sample) > 1 for sample in answers):
        return _by_answers(asked, conversations(system, BORDER_POOL), precision)
    alone = [_alone(model, variant, probes) for _ in range(ANSWERS // 2)]
    several = [answers, *(_batched(asked, probes, PROBES // 4) for _ in range(ANSWERS // 2 - 1)), *alone]
    samples = tuple(tuple(each[number] for each in several) for number in range(len(probes)))
    return IdentityReference(probes=probes, samples=samples, precision=precision, tolerance=rounding(samples) if precision else 0.0)


def _batched(model: Model, probes: Probes, size: int) -> list[dict[str, float]]:
    """The answers with so many probes asked together."""
    parts = [_answers(model, probes[at : at + size], logprobs=True) or [] for at in range(0, len(probes), size)]
    return [sample for part in parts for sample in part]


def _alone(model: Model, variant: Variant, probes: Probes) -> list[dict[str, float]]:
    """The answers as a server gives them to requests that come one after the other: what prompts begin with is read once, and kept."""
    looking = grounding(model)
    inner = batching(loaded(model if looking is None else looking.model))
    if inner is None:
        return _batched(AsDeployed(model, variant), probes, 1)
    sampling, batch = Sampling(max_tokens=1, top_logprobs=TOP), inner.batch()
    prompts = [Prompt(messages=tuple(variant.instructed(probe))) for probe in probes]
    if looking is not None:
        prompts = [made.prompt for made in looking.ground(prompts, sampling)]
    samples = []
    for prompt in prompts:
        batch.add(Asked(inner, prompt, inner.encode(prompt), sampling, 0, time.perf_counter()))
        answer = next(piece.answer for pieces in iter(batch.step, None) for _, piece in pieces if piece.answer is not None)
        samples.append(sample_of(answer.logprobs, answer.text, with_logprobs=True))
    return samples


def _by_answers(model: Model, pool: Probes, precision: str) -> IdentityReference:
    """Of a model that tells no log-probabilities: the probes at which it wavers most between its answers, as far as it does."""
    rounds = [_answers(model, pool, logprobs=False) or [] for _ in range(ANSWERS)]
    samples = [tuple(each[number] for each in rounds) for number in range(len(pool))]
    wavering = sorted(range(len(pool)), key=lambda number: -len({text for sample in samples[number] for text in sample}))
    kept = sorted(wavering[:BORDER_PROBES])
    return IdentityReference(
        probes=tuple(pool[number] for number in kept),
        samples=tuple(samples[number] for number in kept),
        logprobs=False,
        precision=precision,
    )


def _answers(model: Model, probes: Probes, *, logprobs: bool) -> list[dict[str, float]] | None:
    """One answer of one token to each probe; None where log-probabilities are refused."""
    sampling = Sampling(max_tokens=1, top_logprobs=TOP if logprobs else None)
    try:
        answers = model.answer([Prompt(messages=probe) for probe in probes], sampling)
    except UsageError:
        if not logprobs:
            raise
        return None
    return [sample_of(answer.logprobs, answer.text, with_logprobs=logprobs) for answer in answers]


def asking(model: Model, variant: Variant, made: IdentityReference) -> Asking:
    """How a model in memory is asked the probes of a reference."""

    def ask(times: int) -> list[list[Sample]]:
        rounds = [_answers(AsDeployed(model, variant), made.probes, logprobs=made.logprobs) or [] for _ in range(times)]
        return [[each[number] for each in rounds] for number in range(len(made.probes))]

    return ask


def precision_of(model: Model) -> str:
    """The type in which weights here are held; empty for a model elsewhere."""
    looking = grounding(model)
    precision: str = getattr(loaded(model if looking is None else looking.model), "precision", "")
    return precision


def between_types(reference: str, served: str) -> float:
    """What rounding may do between two types, in nats; 0 for the same one, which the reference itself knows better."""
    return 0.0 if not reference or not served or reference == served else max(TOLERANCE.get(reference, 0.0), TOLERANCE.get(served, 0.0))


def looked(made: IdentityReference, answers: Sequence[Sequence[Sample]], check: IdentityCheck, precision: str = "") -> IdentityCheck:
    """`check` with what one answer to each probe says; the verdict stays open where that is surprising."""
    tolerance = between_types(made.precision, precision)
    seen = look(made, answers, 0, FIRST_LEVEL, seed=secrets.randbits(32), tolerance=tolerance)
    verdict: Verdict = "same" if seen.p > FIRST_LEVEL else "unknown"
    return replace(check, p=seen.p, distance=seen.distance, probes=len(made.probes), verdict=verdict)


def looked_again(
    made: IdentityReference, answers: Sequence[Sequence[Sample]], check: IdentityCheck, precision: str = "", level: float | None = None
) -> IdentityCheck:
    """`check` with what `AGAIN` further answers to each probe say, at the level that follows from how many looks there are."""
    tolerance, level = between_types(made.precision, precision), level or second_level(EVERY_S)
    seen = look(made, answers, 1, level, seed=secrets.randbits(32), tolerance=tolerance)
    verdict: Verdict = "differs" if seen.p <= level else "same"
    return replace(check, p=seen.p, distance=seen.distance, probes=len(made.probes) * (1 + AGAIN), verdict=verdict)


def checked(ask: Asking, made: IdentityReference, check: IdentityCheck, precision: str = "") -> IdentityCheck:
    """`check` with what a look found, and where that is surprising a second one. Raises what asking raises."""
    check = looked(made, ask(1), check, precision)
    return check if check.verdict == "same" else looked_again(made, ask(AGAIN), check, precision)


def unknown(deployment: Deployment, variant: Variant, moment: Moment, server: str = "") -> IdentityCheck:
    """A look at a variant that has found nothing yet; `server` is who looks, by default this machine."""
    return IdentityCheck(
        alias=deployment.alias,
        deployment=deployment.version,
        variant=variant.name,
        moment=moment,
        verdict="unknown",
        server=server or platform.node(),
    )


def verified(variant: Variant, model: Model, deployment: Deployment, store: Store, moment: Moment) -> None:
    """Look at a variant's weights in memory, and keep what was found; nothing where nobody has asked the exact ones. Raises GateRefused for
    weights that answer otherwise."""
    made = Identities(store).reference(names_answers(variant))
    if made is None:
        return
    check = unknown(deployment, variant, moment)
    check = Identities(store).put(checked(asking(model, variant, made), made, check, precision=precision_of(model)))
    if check.verdict == "differs":
        raise GateRefused(
            f"the variant '{variant.name}' answers probes otherwise than the weights that were deployed ({check.text()})",
            where=f"'{deployment.alias}', version {deployment.version}",
            remedy="put the files back that were deployed, or deploy what is there now as a new version",
        )


def system_of(context: ProjectContext | None) -> str | None:
    """The system message of the task's own rows, where a run has split them; None where they have none."""
    if context is None or context.data.peek("split") is None:
        return None
    first = next(iter(context.questions("train")), None)
    return first.prompt[0].text if first is not None and first.prompt and first.prompt[0].role == "system" else None
