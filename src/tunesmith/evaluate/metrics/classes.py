"""Metrics of answers that are one label, and of how sure the model was; knows nothing about texts.

Per-class sums (found, wanted, said) are the statistics, so any resample's balanced accuracy, macro F1 or MCC is a product of matrices.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import numpy as np

from tunesmith.core.search import Pattern
from tunesmith.core.types import Answer, Example, Score, canonical
from tunesmith.evaluate.metrics.base import Floats, Measured, Metric, Pool, metric, ratio, register


def label_pair(score: Score) -> tuple[str, str] | None:
    """The (wanted, said) labels that a label metric wrote down, None for a row without."""
    return msgspec.json.decode(score.detail, type=tuple[str, str]) if score.value is not None else None


def label_form(text: str) -> str:
    """A label as it is compared: NFKC, case folded, single spaces, no punctuation around it."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    words = [place for place, sign in enumerate(folded) if sign.isalnum()]  # a pattern would try each of many signs anew
    return folded[words[0] : words[-1] + 1] if words else folded


def _reader(labels: Sequence[str] | None) -> Callable[[str], str]:
    """How a label is read from an answer: as it stands, or with known labels the one that opens it alone, else the one named last.

    One-letter labels must stand in their own case: "a" is a word before it is the label A.
    """
    if not labels:
        return label_form
    known = "|".join(re.escape(label) if len(label) == 1 else f"(?i:{re.escape(label)})" for label in sorted(labels, key=len, reverse=True))
    opening = re.compile(rf"[^\w\n]*({known})\s*(?:$|[\n.:,;)\]*])")
    named = re.compile(rf"(?<!\w)(?:{known})(?!\w)")

    def read(text: str) -> str:
        first = opening.match(text.lstrip())
        named_labels = [first[1]] if first else named.findall(text)
        return label_form(str(named_labels[-1])) if named_labels else ""

    return read


def _label_metric(name: str, labels: Sequence[str] | None, value: Callable[[Floats], Floats] | None, low: float = 0.0) -> Metric:
    read = _reader(labels)

    def rate(example: Example, answer: Answer) -> Measured:
        wanted = label_form(example.label if example.label is not None else example.answer)
        answered = read(answer.text)
        return Measured(float(wanted == answered), detail=canonical((wanted, answered)).decode())

    if value is None:
        return Metric(name=name, rate=rate)
    return Metric(name=name, rate=rate, low=low, kind="pooled", pool=partial(_class_pool, value))


def _class_pool(value: Callable[[Floats], Floats], scores: Sequence[Score]) -> Pool:
    """Three columns a class: right, wanted, said."""
    pairs = [label_pair(score) for score in scores]
    index = {label: i for i, label in enumerate(sorted({label for pair in pairs if pair for label in pair}))}
    rows = np.zeros((len(pairs), 3, len(index)))
    for i, pair in enumerate(pairs):
        if pair:
            rows[i, 1, index[pair[0]]] = rows[i, 2, index[pair[1]]] = 1
            rows[i, 0, index[pair[0]]] = pair[0] == pair[1]
    return Pool(rows.reshape(len(pairs), -1), lambda sums: value(sums.reshape(*sums.shape[:-1], 3, len(index))))


def _balanced(sums: Floats) -> Floats:
    recall = ratio(sums[..., 0, :], sums[..., 1, :])
    there = sums[..., 1, :] > 0
    return ratio(np.where(there, recall, 0.0).sum(axis=-1), there.sum(axis=-1).astype(np.float64))


def _macro_f1(sums: Floats) -> Floats:
    total = sums[..., 1, :] + sums[..., 2, :]
    return ratio(ratio(2 * sums[..., 0, :], total, 0.0).sum(axis=-1), (total > 0).sum(axis=-1).astype(np.float64))


def _mcc(sums: Floats) -> Floats:
    right, wanted, answered = sums[..., 0, :].sum(axis=-1), sums[..., 1, :], sums[..., 2, :]
    n = wanted.sum(axis=-1)
    spread = (n**2 - (answered**2).sum(axis=-1)) * (n**2 - (wanted**2).sum(axis=-1))
    return ratio(right * n - (wanted * answered).sum(axis=-1), np.sqrt(spread), 0.0)


@register("accuracy")
def accuracy(labels: Sequence[str] | None = None) -> Metric:
    """Share of rows with the right label; with `labels` it may stand in a sentence. Range 0 to 1, higher is better, mean."""
    return _label_metric("accuracy", labels, None)


@register("balanced_accuracy")
def balanced_accuracy(labels: Sequence[str] | None = None) -> Metric:
    """Mean recall over the classes that are wanted. Range 0 to 1, higher is better, pooled; a row's value is right or wrong."""
    return _label_metric("balanced_accuracy", labels, _balanced)


@register("macro_f1")
def macro_f1(labels: Sequence[str] | None = None) -> Metric:
    """Mean F1 over the classes that are wanted or said. Range 0 to 1, higher is better, pooled; a row's value is right or wrong."""
    return _label_metric("macro_f1", labels, _macro_f1)


@register("mcc")
def mcc(labels: Sequence[str] | None = None) -> Metric:
    """Matthews' correlation over k classes (Gorodkin 2004), 0 where it is undefined. Range −1 to 1, higher is better, pooled."""
    return _label_metric("mcc", labels, _mcc, low=-1.0)


def _confidence(answer: Answer, pattern: Pattern | None) -> float | None:
    """How sure the model was: what it says in percent or as a share, or the probability of its tokens; None when it is not known."""
    if pattern is not None:
        match = pattern.search(answer.text)
        try:
            sureness = float(match[1]) if match else math.nan
        except ValueError:
            return None
        share = sureness / 100 if sureness > 1 else sureness
        return share if 0 <= share <= 1 else None
    nats = [float(token["logprob"]) for token in answer.logprobs if token.get("logprob") is not None]
    return min(1.0, math.exp(sum(nats))) if nats else None


def _calibration(correct: str, pattern: str | None) -> Callable[[Example, Answer], Measured]:
    judge, compiled = metric(correct), Pattern(pattern) if pattern else None

    def rate(example: Example, answer: Answer) -> Measured:
        sure, right = _confidence(answer, compiled), judge(example, answer).value
        if sure is None or right is None:
            return Measured(None, detail="no confidence: ask for logprobs, or give a pattern with one group")
        return Measured((sure - right) ** 2, (sure, right))

    return rate


@register("brier")
def brier(correct: str = "normalized_match", pattern: str | None = None) -> Metric:
    """Squared distance of confidence and correctness (Brier 1950). Range 0 to 1, lower is better, mean.

    Confidence is the probability of the answer's tokens, or what `pattern` captures (a share or percent).
    """
    return Metric(name="brier", rate=_calibration(correct, pattern), better="lower")


@register("ece")
def ece(bins: int = 15, correct: str = "normalized_match", pattern: str | None = None) -> Metric:
    """Expected calibration error over equal-width bins (Guo 2017, arXiv 1706.04599). Range 0 to 1, lower is better, pooled.

    A row's value is its squared distance, as for `brier`. Biased upwards in small sets: compare only on equal rows. The lower end of the
    interval allows for as much as a calibrated model would show by chance.
    """

    def pool(scores: Sequence[Score]) -> Pool:
        rows = np.zeros((len(scores), bins, 3))
        for i, score in enumerate(scores):
            if score.value is not None and score.counts:
                sure, right = score.counts[:2]
                rows[i, min(bins - 1, int(sure * bins))] = (1, sure, right)
        return Pool(rows.reshape(len(scores), -1), lambda sums: _ece(sums.reshape(*sums.shape[:-1], bins, 3)), _chance_ece)

    return Metric(name="ece", rate=_calibration(correct, pattern), better="lower", kind="pooled", pool=pool)


def _chance_ece(sums: Floats, alone: float, level: float) -> float:
    """The expected calibration error that chance alone stays below with this level (one-sided, (1 + level)/2): of the sums (rows,
    confidence, right) of each bin, whose rates are normal with the binomial's variance at the confidence or at the rate, the larger."""
    counts, sure, right = sums.reshape(-1, 3)[sums.reshape(-1, 3)[:, 0] > 0].T
    rates = np.stack([sure / counts, (right + 0.5) / (counts + 1)])
    deviation = np.sqrt((rates * (1 - rates)).max(axis=0) / (counts * alone))
    draws = np.abs(np.random.default_rng(0).standard_normal((4_000, counts.size))) @ (deviation * counts / counts.sum())
    return float(np.quantile(draws, 0.5 + level / 2))


def _ece(sums: Floats) -> Floats:
    return ratio(np.abs(sums[..., 1] - sums[..., 2]).sum(axis=-1), sums[..., 0].sum(axis=-1))
