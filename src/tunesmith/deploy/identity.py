"""Is what answers still what was deployed? Compares one-token answers to the same probes, then and now; asks nobody, keeps nothing.

The statistic is the mean absolute difference of mean log-probabilities, its p-value that of a permutation test which exchanges answers to
the same probe ("Log Probability Tracking of LLM APIs", arXiv:2512.03816). What rounding alone may do (`tolerance`, in nats) counts as no
difference. A look asks each probe once and compares with one half of the reference; only where that is surprising the probes are asked
twice more and compared with the other half. Both halves are drawn alike from the exact weights: one answer out of a batch, and one as a
server gives it to a request that comes alone, whose rounding has a bias of its own (what prompts begin with is read apart). So the two
p-values are independent, a false alarm has the probability of their levels' product, and an idle server answers to the last bit as one of
the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.core.deployment import Variant
from tunesmith.core.identity import LEAST_TOLERANCE, IdentityReference, Sample
from tunesmith.core.types import Record, digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

END = "(end)"  # an answer that ends before its first word
TOP = 20  # log-probabilities that are asked for, the most that the API gives
PROBES = 24  # of a model that tells log-probabilities
BORDER_PROBES, BORDER_POOL = 24, 48  # of one that does not: how many are kept of how many that are tried
FIRST_LEVEL = 0.01  # of a look
AGAIN = 2  # times that each probe is asked after a surprising look
DAYS = 90.0  # in which less than one false alarm is to be expected, all variants of a server together
EXPECTED = 0.5  # of them
_FLOOR = -25.0  # nats; what lies below is as good as impossible, however far
_FIRST_CHUNK, _CHUNK = 50, 500  # permutations at a time


class IdentityLook(Record, frozen=True):
    """The p-value of one comparison, and how far the probes lay apart on average (nats, or the share of other answers)."""

    p: float
    distance: float


def names_answers(variant: Variant) -> str:
    """What names all that decides a variant's answers, whatever it is called and how many requests it gets; empty for a model of which
    nobody has computed a digest."""
    if variant.model is not None and not variant.model.digest:
        return ""
    who = variant.model.digest if variant.model is not None else f"upstream:{variant.upstream}"
    return digest("identity", who, variant.instruction, variant.shots, variant.retrieval)


def sample_of(logprobs: Sequence[Mapping[str, Any]], text: str, *, with_logprobs: bool) -> dict[str, float]:
    """An answer of one token as a sample, from the API's entries of log-probabilities."""
    if not with_logprobs:
        return {text: 0.0}
    if not logprobs:
        return {END: 0.0}
    first = logprobs[0]
    top: dict[str, float] = {}
    for entry in [*(first.get("top_logprobs") or ()), first]:
        top.setdefault(str(entry["token"]), max(_FLOOR, float(entry["logprob"])))
    return top


def rounding(samples: Sequence[Sequence[Sample]]) -> float:
    """What a log-probability of the exact weights moves by from batch to batch, in nats (root mean square); at least `LEAST_TOLERANCE`. In
    bfloat16 the largest of them is as large as what another small adapter does on average, and would hide it."""
    import numpy as np

    squares = []
    for each in samples:
        tokens = set.intersection(*(set(sample) for sample in each))
        squares += [float(np.var([sample[token] for sample in each], ddof=1)) for token in tokens]
    return max(LEAST_TOLERANCE, math.sqrt(sum(squares) / len(squares)) if squares else 0.0)


def second_level(every_s: float, variants: int = 1) -> float:
    """The level of what follows a surprising look, such that with looks `every_s` at so many variants `EXPECTED` false alarms come in
    `DAYS`."""
    looks = DAYS * 86_400 / max(every_s, 1.0) * max(variants, 1)
    return min(1e-3, EXPECTED / (looks * FIRST_LEVEL))


def look(
    reference: IdentityReference, answers: Sequence[Sequence[Sample]], half: int, level: float, *, seed: int, tolerance: float = 0.0
) -> IdentityLook:
    """Compare answers (some for each probe) with a half of the reference. `level` says how small a p-value must be told apart; a
    `tolerance` above the reference's own takes its place."""
    import numpy as np

    pairs = list(zip(reference.half(half), answers, strict=True))
    values = _values(pairs, logprobs=reference.logprobs)
    before, now = len(pairs[0][0]), len(pairs[0][1])
    margin = max(reference.tolerance, tolerance) if reference.logprobs else 0.0
    taken = np.zeros((1, len(pairs), before + now), bool)
    taken[:, :, before:] = True
    apart = float(_apart(values, taken, 0.0)[0])
    seen = float(_apart(values, taken, margin)[0])
    if seen <= 0:
        return IdentityLook(p=1.0, distance=apart)
    rng, wanted, done, as_far = np.random.default_rng(seed), max(199, math.ceil(10 / level)), 0, 0
    while done < wanted and 1 + as_far <= level * (wanted + 1):  # more exchanges cannot make it surprising any more
        count = min(_CHUNK if done else _FIRST_CHUNK, wanted - done)
        order = rng.random((count, len(pairs), before + now)).argsort(-1)
        as_far += int((_apart(values, order >= before, margin) >= seen * (1 - 1e-9)).sum())
        done += count
    return IdentityLook(p=(1 + as_far) / (done + 1), distance=apart)


def _values(pairs: Sequence[tuple[Sequence[Sample], Sequence[Sample]]], *, logprobs: bool) -> Floats:
    """[probes, samples, tokens]: the log-probability of each token that the reference has, or 1 where it is the answer; NaN beyond the
    tokens of a probe."""
    import numpy as np

    rows = []
    for before, now in pairs:
        tokens = list(dict.fromkeys(token for sample in before for token in sample))
        rows.append([[_value(sample, token, logprobs=logprobs) for token in tokens] for sample in [*before, *now]])
    width = max(len(row[0]) for row in rows)
    values = np.full((len(rows), len(rows[0]), width), np.nan)
    for number, row in enumerate(rows):
        values[number, :, : len(row[0])] = row
    return values


def _value(sample: Sample, token: str, *, logprobs: bool) -> float:
    """A token that is not among the likeliest is at most as likely as the last of them."""
    if not logprobs:
        return float(token in sample)
    return sample.get(token, _FLOOR if END in sample else min(sample.values()))


def _apart(values: Floats, now: npt.NDArray[np.bool_], margin: float) -> Floats:
    """The statistic for each choice [choices, probes, samples] of the answers that are taken for those of now."""
    import numpy as np

    weight = now / now.sum(-1, keepdims=True) - ~now / (~now).sum(-1, keepdims=True)
    shift = np.abs(np.einsum("cps,pst->cpt", weight, values))
    apart: Floats = np.nanmean(np.maximum(0.0, shift - margin), axis=-1).mean(-1)
    return apart
