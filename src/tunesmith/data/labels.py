"""Rows whose label or answer is probably wrong, ranked with a reason; knows nothing about models that train for it.

Labels: confident learning (Northcutt, Jiang, Chuang 2021) on out-of-fold probabilities of a multinomial logistic regression over tf-idf of
words and adjacent word pairs; with embeddings given, the probabilities of both are averaged. Ranked by the margin between the
suggested label and the given one.

Free text has no classes; there the evidence is handed in: vectors of questions and answers, or the loss of each answer with and without its
question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError
from tunesmith.core.text_vectors import weighted
from tunesmith.data.shingle import shingles

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Suspect(NamedTuple):
    """A row that is probably wrong: its index, what it says, what is suggested (both empty for free text), how sure, and why."""

    row: int
    given: str
    suggested: str
    score: float
    reason: str


def label_errors(
    texts: Sequence[str], labels: Sequence[str], *, vectors: Floats | None = None, folds: int = 5, seed: int = 0
) -> list[Suspect]:
    """Rows whose label disagrees confidently with what the other rows teach, surest first.

    A row is suspect when the probability of another label reaches that label's threshold (the mean probability of it over the rows that
    carry it) and beats the given one. `vectors` (n × d): embeddings to be used too. Deterministic for a seed.
    Raises DataError for fewer than two labels, or fewer than 2 · `folds` rows.
    """
    names, given = _codes(texts, labels, folds)
    probability = out_of_fold(tfidf(texts), given, len(names), folds=folds, seed=seed)
    if vectors is not None:
        probability = (probability + out_of_fold(_unit(vectors), given, len(names), folds=folds, seed=seed)) / 2
    own = probability[np.arange(len(given)), given]
    thresholds = np.array([own[given == k].mean() for k in range(len(names))])
    others = np.where(probability >= thresholds, probability, -1.0)
    others[np.arange(len(given)), given] = -1.0
    best = others.argmax(axis=1)
    margin = probability[np.arange(len(given)), best] - own
    suspects = np.flatnonzero((others.max(axis=1) > 0) & (margin > 0))
    return [
        Suspect(
            int(i),
            names[given[i]],
            names[best[i]],
            float(margin[i]),
            f"rows like it say '{names[best[i]]}' ({probability[i, best[i]]:.0%}), not '{names[given[i]]}' ({own[i]:.0%})",
        )
        for i in suspects[np.lexsort((suspects, -margin[suspects]))]
    ]


def label_margins(probability: Floats, given: Sequence[int]) -> Floats:
    """How much surer the best other label is than the given one, for every row: what `label_errors` ranks by. From −1 to 1."""
    codes = np.asarray(given)
    own = probability[np.arange(len(codes)), codes]
    others = probability.copy()
    others[np.arange(len(codes)), codes] = -1.0
    return np.asarray(others.max(axis=1) - own)


def _codes(texts: Sequence[str], labels: Sequence[str], folds: int) -> tuple[list[str], Any]:
    if len(texts) != len(labels):
        raise DataError(f"{len(texts)} texts and {counted(len(labels), 'label')}", allowed="one label a text")
    names, codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2 or len(texts) < 2 * folds:
        raise DataError(
            f"{len(texts)} rows with {len(names)} different labels", allowed=f"at least {2 * folds} rows and 2 labels to find wrong ones"
        )
    return names.tolist(), codes


def tfidf(texts: Sequence[str], *, min_rows: int = 2) -> Any:
    """Sparse rows (n × terms, float64) of words and adjacent pairs: (1 + ln tf is 1 here: sets) · smooth idf, each row of length 1.

    Terms in fewer than `min_rows` rows are left out: they can teach nothing about another row.
    """
    from scipy.sparse import csr_array, hstack

    tables = []
    for size in (1, 2):
        sets = shingles(texts, size=size)
        terms, inverse = np.unique(sets.hashes, return_inverse=True)
        tables.append(csr_array((np.ones(len(inverse)), inverse, sets.starts), shape=(len(texts), len(terms))))
    return weighted(hstack(tables, format="csr"), min_rows)


def _unit(vectors: Floats) -> Floats:
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norm, 1e-12), dtype=np.float64)


def out_of_fold(features: Any, labels: Any, n_labels: int, *, folds: int = 5, seed: int = 0, strength: float = 10.0) -> Floats:
    """Probability of each label for each row (n × labels) from a model that did not see the row; folds are stratified by label."""
    order = np.random.default_rng(seed).permutation(len(labels))
    fold = np.empty(len(labels), dtype=np.int64)
    for k in range(n_labels):
        members = order[labels[order] == k]
        fold[members] = (np.arange(len(members)) + k) % folds
    probability = np.zeros((len(labels), n_labels))
    for number in range(folds):
        train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        weights, bias = fit(features[train], labels[train], n_labels, strength=strength)
        probability[test] = _softmax(features[test] @ weights + bias)
    return probability


def fit(features: Any, labels: Any, n_labels: int, *, strength: float = 10.0) -> tuple[Floats, Floats]:
    """Multinomial logistic regression with an L2 penalty of 1 / (2 · strength · n) on the weights, by L-BFGS: (d × labels), (labels)."""
    from scipy.optimize import minimize

    n, d = features.shape
    target = np.zeros((n, n_labels))
    target[np.arange(n), labels] = 1.0
    across = features.T.tocsr() if hasattr(features, "tocsr") else features.T

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights, bias = flat[: d * n_labels].reshape(d, n_labels), flat[d * n_labels :]
        probability = _softmax(features @ weights + bias)
        value = -np.log(np.maximum(probability[np.arange(n), labels], 1e-300)).mean() + (weights**2).sum() / (2 * strength * n)
        gap = (probability - target) / n
        slope = across @ gap + weights / (strength * n)
        return float(value), np.concatenate([slope.ravel(), gap.sum(axis=0)])

    flat = minimize(loss, np.zeros((d + 1) * n_labels), jac=True, method="L-BFGS-B", options={"maxiter": 100, "gtol": 1e-5}).x
    return flat[: d * n_labels].reshape(d, n_labels), flat[d * n_labels :]


def _softmax(scores: Floats) -> Floats:
    scores = scores - scores.max(axis=1, keepdims=True)
    powers = np.exp(scores)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def unexplained_answers(with_question: Sequence[float], alone: Sequence[float], *, limit: float = 3.0) -> list[Suspect]:
    """Rows whose question helps their answer far less than questions do elsewhere, surest first.

    `with_question` and `alone`: mean loss (nats a token) of each answer after its question and after nothing, by a model that was not
    trained on the row. The score is how many robust standard deviations (median, 1.4826 · MAD) the difference lies above the median.
    """
    gap = np.asarray(with_question, dtype=np.float64) - np.asarray(alone, dtype=np.float64)
    middle = np.median(gap) if len(gap) else 0.0
    spread = max(1.4826 * float(np.median(np.abs(gap - middle))) if len(gap) else 0.0, 1e-9)
    score = (gap - middle) / spread
    places = np.flatnonzero(score > limit)
    return [
        Suspect(
            int(i), "", "", float(score[i]), f"the question changes the answer's loss by {gap[i]:+.2f} nats a token; usual is {middle:+.2f}"
        )
        for i in places[np.argsort(-score[places], kind="stable")]
    ]


def unexpected_answers(questions: Floats, answers: Floats, *, share: float = 0.02, folds: int = 5, seed: int = 0) -> list[Suspect]:
    """The `share` of rows whose answer is farthest from what a model that was trained on the other rows expects, surest first.

    The model is a ridge regression from the question's vector to the answer's (n × d each), out of fold; the loss, which is also the score,
    is 1 − cosine. Nothing is suspect in fewer than 10 · `folds` rows.
    """
    if len(questions) < 10 * folds:
        return []
    asked, answered = _unit(questions), _unit(answers)
    fold = np.random.default_rng(seed).permutation(len(asked)) % folds
    expected = np.zeros_like(answered)
    for number in range(folds):
        known, test = asked[fold != number], fold == number
        weights = np.linalg.solve(known.T @ known + np.eye(asked.shape[1]), known.T @ answered[fold != number])
        expected[test] = asked[test] @ weights
    loss = 1 - (_unit(expected) * answered).sum(axis=1)
    usual = float(np.median(loss))
    order = np.argsort(-loss, kind="stable")[: int(np.ceil(share * len(loss)))]
    return [
        Suspect(
            int(i), "", "", float(loss[i]), f"a model of the other rows expects another answer (loss {loss[i]:.2f}, usual is {usual:.2f})"
        )
        for i in order
    ]


def mismatched_answers(questions: Floats, answers: Floats, *, share: float = 0.02) -> list[Suspect]:
    """The `share` of rows whose answer's vector (n × d) is farthest from its question's, surest first; the score is 1 − cosine."""
    distance = 1 - (_unit(questions) * _unit(answers)).sum(axis=1)
    order = np.argsort(-distance, kind="stable")[: int(np.ceil(share * len(distance)))]
    return [
        Suspect(int(i), "", "", float(distance[i]), f"the answer is far from the question (cosine {1 - distance[i]:.2f})") for i in order
    ]
