"""Models that judge answers: pairwise in both orders and by rubric, and how far a judge can be believed; knows no other metric.

A verdict that cannot be read is missing, never a tie and never 0. A judge's own rate is not the truth: `corrected` brings it back to
people's labels and says how well the two agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.stats import Interval, cohen_kappa, mean_interval, ppi_mean
from tunesmith.core.types import Answer, Example, Message, Prompt, Record, Sampling
from tunesmith.evaluate.metrics import Measured, Metric
from tunesmith.evaluate.run import ask_all
from tunesmith.models.base import Model

PAIRWISE = """You compare two answers to the same request. Judge how well each does what was asked: correct, complete, to the point.
Do not let the order or the length of the answers count. Think briefly, then end with your verdict alone on the last line:
[[A]] if A is better, [[B]] if B is better, [[C]] if they are equally good."""

RUBRIC = """You rate one answer to a request by this criterion:

{criterion}

Think briefly, then end with your rating alone on the last line, a whole number from {low} (worst) to {high} (best): [[{high}]], say."""

DEFAULT = Sampling(max_tokens=512)
AGREES_FROM = 0.4  # below it kappa is called "fair" at best (Landis & Koch 1977)


class PairVerdict(Record, frozen=True):
    """One pair judged in both orders. `value` is B's share of the win: 1 B, 0 A, 0.5 a tie, None when an order could not be read.

    `first` and `second` are that share as judged with A shown first and with B shown first.
    """

    example_id: str
    value: float | None
    first: float | None
    second: float | None


class Bias(Record, frozen=True):
    """How a judge leans.

    `slot_one` is the share of the win that goes to the answer shown first, beyond one half; `flips` the share of pairs whose verdict
    changed with the order; `longer` the share of decided pairs that the longer answer won (None: none decided); `own` says that the
    judge is one of the models judged; `missing` counts pairs without a readable verdict.
    """

    slot_one: float
    flips: float
    longer: float | None
    own: bool
    missing: int


class Corrected(Record, frozen=True):
    """The judge's rate beside people's: `judged` as the judge alone has it, `corrected` by PPI++, `kappa` the agreement with people.

    `believed` is false when the agreement's lower bound is below `AGREES_FROM`: then `judged` must not be read as a result.
    """

    judged: Interval
    corrected: Interval
    kappa: Interval | None
    human: int
    believed: bool


def pairwise(
    judge: Model,
    examples: Sequence[Example],
    a: Sequence[Answer],
    b: Sequence[Answer],
    *,
    cache: Path,
    sampling: Sampling = DEFAULT,
    criterion: str = PAIRWISE,
) -> list[PairVerdict]:
    """Compare the answers of A and B to each row, in both orders; what is in the `cache` file is not asked again."""
    triples = zip(examples, a, b, strict=True)
    prompts = [_pair(example, first, second, criterion) for example, x, y in triples for first, second in ((x, y), (y, x))]
    shares = [_verdict(answer) for answer in ask_all(judge, prompts, sampling, cache)]
    verdicts = []
    for example, a_first, b_first in zip(examples, shares[::2], shares[1::2], strict=True):
        second = None if b_first is None else 1 - b_first
        value = None if a_first is None or second is None else (a_first + second) / 2
        verdicts.append(PairVerdict(example_id=example.id, value=value, first=a_first, second=second))
    return verdicts


def _pair(example: Example, first: Answer, second: Answer, criterion: str) -> Prompt:
    shown = f"{_request(example)}\n\n[Answer A]\n{first.text}\n[End of answer A]\n\n[Answer B]\n{second.text}\n[End of answer B]"
    return Prompt(messages=(Message(role="system", content=criterion), Message(role="user", content=shown)))


def _request(example: Example) -> str:
    lines = "\n".join(f"{m.role}: {m.text}" for m in example.prompt)
    reference = f"\n\n[A right answer]\n{example.answer}\n[End of the right answer]" if example.answer else ""
    return f"[Request]\n{lines}\n[End of the request]{reference}"


def _verdict(answer: Answer) -> float | None:
    """The share of the answer shown second; the last verdict in the text counts."""
    marks = re.findall(r"\[\[([ABC])\]\]", answer.text)
    return {"A": 0.0, "B": 1.0, "C": 0.5}[marks[-1]] if marks and answer.finish_reason != "error" else None


def rubric(judge: Model, criterion: str, *, cache: Path, name: str = "rubric", low: int = 1, high: int = 5) -> Metric:
    """A metric: the judge's rating from `low` to `high`. Higher is better, mean; an unreadable rating is missing."""
    if low >= high:
        raise ConfigError(f"a scale from {low} to {high}", where=f"metric '{name}'", allowed="low < high")
    system = Message(role="system", content=RUBRIC.format(criterion=criterion, low=low, high=high))

    def many(examples: Sequence[Example], answers: Sequence[Answer]) -> list[float | Measured | None]:
        prompts = [
            Prompt(messages=(system, Message(role="user", content=f"{_request(e)}\n\n[Answer]\n{a.text}\n[End of the answer]")))
            for e, a in zip(examples, answers, strict=True)
        ]
        return [_rating(answer, low, high) for answer in ask_all(judge, prompts, DEFAULT, cache)]

    return Metric(name=name, rate=lambda e, a: many([e], [a])[0], low=low, high=high, many=many)


def _rating(answer: Answer, low: int, high: int) -> Measured:
    marks = re.findall(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]", answer.text)
    value = float(marks[-1]) if marks and answer.finish_reason != "error" else None
    if value is None or not low <= value <= high:
        return Measured(None, detail=f"no rating from {low} to {high}: …{answer.text[-80:]}")
    return Measured(value, detail=answer.text[-400:])


def bias(judge: Model, verdicts: Sequence[PairVerdict], a: Sequence[Answer], b: Sequence[Answer], models: tuple[str, str]) -> Bias:
    """How the judge leans over these pairs; `models` are the names of A and B. Raises DataError when no verdict could be read."""
    read = [(v, len(y.text) - len(x.text)) for v, x, y in zip(verdicts, a, b, strict=True) if v.value is not None]
    if not read:
        raise DataError(f"none of {len(verdicts)} verdicts could be read", remedy="look at the judge's answers; use a stronger judge")
    shown_first = [share for v, _ in read for share in (1 - (v.first or 0.0), v.second or 0.0)]
    decided = [(v.value or 0.0) > 0.5 for v, longer in read if v.value != 0.5 and longer]
    lengths = [longer > 0 for v, longer in read if v.value != 0.5 and longer]
    return Bias(
        slot_one=float(np.mean(shown_first)) - 0.5,
        flips=sum(v.first != v.second for v, _ in read) / len(read),
        longer=sum(won == longer for won, longer in zip(decided, lengths, strict=True)) / len(decided) if decided else None,
        own=judge.name in models,
        missing=len(verdicts) - len(read),
    )


def corrected(values: Sequence[float | None], human: Sequence[float | None], level: float = 0.95) -> Corrected:
    """The judge's mean brought back to people's: `values` the judge's shares (0, 0.5, 1) of all rows, `human` people's where they labelled.

    Rows that the judge missed are left out. PPI++ (arXiv 2311.01453); ask for 100 labels or more. Raises DataError for fewer than 2
    labelled or 2 unlabelled rows.
    """
    if len(values) != len(human):
        raise ConfigError(
            f"{len(values)} judged, {len(human)} human entries", where="corrected", allowed="the same rows, None where missing"
        )
    both = [(h, v) for v, h in zip(values, human, strict=True) if v is not None and h is not None]
    alone = [v for v, h in zip(values, human, strict=True) if v is not None and h is None]
    everyone = [v for v in values if v is not None]
    labels, judged = [h for h, _ in both], [v for _, v in both]
    kappa = cohen_kappa(labels, judged, level=level) if len({*labels, *judged}) > 1 else None
    return Corrected(
        judged=mean_interval(everyone, level=level),
        corrected=ppi_mean(labels, judged, alone, level),
        kappa=kappa,
        human=len(both),
        believed=kappa is not None and kappa.low >= AGREES_FROM,
    )
