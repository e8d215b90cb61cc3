"""Do learning curves foresee? For each task and base, models are trained on nested parts of at most half of the training rows; the law that
is fitted to them must have the score of the model that was trained on all rows inside its 90 % interval.

Bases: what `tunesmith decide` fine-tuned (points of its reports), and heads on frozen vectors, which train in seconds: a linear one on the
sentence vectors of the catalogue's encoder, and class centroids of tf-idf vectors.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SHARES, SEEDS = (0.0625, 0.125, 0.25, 0.5), (0, 1, 2)
MOST, TEST = 4_000, 0.25
# Members of the evals package (the same wheel as the catalogue's data sets), each with one label a row.
REGISTRY = {
    "occupations": "soc_codes/samples.jsonl",
    "sarcasm": "sarcasm/samples.jsonl",
    "heart disease": "heart-disease/samples.jsonl",
    "singers": "guess_the_singer/samples.jsonl",
    "causes": "corr2cause/corr2cause.jsonl",
}


class Case(NamedTuple):
    """One task on one base: sizes and scores of the parts, and the score at all rows."""

    task: str
    base: str
    sizes: list[int]
    scores: list[float]
    full: int
    reached: float
    tested: int


def labelled(member: str) -> tuple[list[str], list[str]]:
    """The questions and labels of a member, each question once."""
    from tunesmith.models.catalog import Catalog

    catalog = Catalog()
    catalog.dataset("soc_codes")  # brings the wheel
    wheel = next(catalog.folder.glob("downloads/evals-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"evals/registry/data/{member}").decode("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    found = {row["input"][-1]["content"]: str(row["ideal"]) for row in rows}
    texts = [text for text, _ in list(found.items())]
    order = np.random.default_rng(0).permutation(len(texts))[:MOST]
    return [texts[i] for i in order], [found[texts[i]] for i in order]


def linear(vectors: Floats, labels: NDArray[np.intp], classes: int, steps: int = 60) -> Floats:
    """Weights [dimensions, classes] of a softmax regression with a weak pull to zero, by Adam from zero."""
    weights, first, second = (np.zeros((vectors.shape[1], classes)) for _ in range(3))
    wanted = np.eye(classes)[labels]
    for step in range(1, steps + 1):
        logits = vectors @ weights
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = vectors.T @ (odds / odds.sum(axis=1, keepdims=True) - wanted) / len(labels) + 1e-5 * weights
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        weights = weights - 0.5 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-8)
    return weights


def centroids(vectors: Floats, labels: NDArray[np.intp], classes: int) -> Floats:
    """Weights [dimensions, classes]: the mean direction of each class's rows (Rocchio 1971)."""
    sums = np.zeros((classes, vectors.shape[1]))
    np.add.at(sums, labels, vectors)
    return np.asarray((sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).T)


class Head(NamedTuple):
    """What makes vectors of texts, and what fits weights to some of them."""

    vectors: Callable[[Sequence[str]], Floats]
    fitted: Callable[[Floats, NDArray[np.intp], int], Floats]


def heads() -> dict[str, Head]:
    """The bases that are frozen vectors."""
    from tunesmith.core.text_vectors import TextIndex
    from tunesmith.flow.datasets.vectors import embed
    from tunesmith.models.catalog import Catalog

    def worded(texts: Sequence[str]) -> Floats:
        return np.asarray(TextIndex(texts)._rows.toarray(), dtype=np.float64)

    return {
        "minilm-l6-v2, linear head": Head(lambda texts: embed(texts, Catalog()), linear),
        "tf-idf, class centroids": Head(worded, centroids),
    }


def measured() -> Iterator[Case]:
    """Every labelled task on every head: accuracy on a quarter of the rows."""
    for task, member in REGISTRY.items():
        texts, named = labelled(member)
        for base, head in heads().items():
            yield case_of(task, base, head, head.vectors(texts), np.array(named))


def case_of(task: str, base: str, head: Head, vectors: Floats, named: NDArray[np.str_]) -> Case:
    """Accuracies at each part and at all rows."""
    kinds, labels = np.unique(named, return_inverse=True)
    test = int(TEST * len(labels))

    def reached(rows: NDArray[np.intp]) -> float:
        weights = head.fitted(vectors[test:][rows], labels[test:][rows], len(kinds))
        return float(np.mean((vectors[:test] @ weights).argmax(axis=1) == labels[:test]))

    full = len(labels) - test
    orders = {seed: np.random.default_rng(seed).permutation(full) for seed in SEEDS}
    parts = [(round(share * full), seed) for share in SHARES for seed in SEEDS]
    scores = [reached(orders[seed][:n]) for n, seed in parts]
    return Case(task, base, [n for n, _ in parts], scores, full, reached(np.arange(full)), test)


def tuned(task: str, report: dict[str, Any]) -> Case | None:
    """The points of a report's fine-tuned arm; None where it has too few."""
    learning = report["learning"]
    if learning is None:
        return None
    points = learning["points"]
    full = max(point["rows"] for point in points)
    parts = [point for point in points if point["rows"] <= 0.5 * full]
    (whole,) = [point for point in points if point["rows"] == full][:1]
    return Case(
        task,
        report["base"],
        [point["rows"] for point in parts],
        [point["score"] for point in parts],
        full,
        whole["score"],
        whole["measured_on"],
    )


def curve_table(reports: Sequence[tuple[str, dict[str, Any]]]) -> tuple[str, float]:
    """The table of all cases, and the share of them whose score at all rows lies inside the 90 % interval."""
    from benchmarks.harness import table
    from tunesmith.core.errors import TunesmithError
    from tunesmith.decide.curve import fit_curve

    cases = [case for task, report in reports if (case := tuned(task, report)) is not None] + list(measured())
    rows, right = [], 0
    for case in cases:
        try:
            curve = fit_curve(case.sizes, case.scores)
            value, low, high = curve.predict(case.full)
        except TunesmithError as error:
            rows.append((case.task, case.base, max(case.sizes, default=0), case.full, f"{case.reached:.3f}", "–", str(error.what)))
            continue
        inside = low <= case.reached <= high
        right += inside
        said = f"{value:.3f} [{low:.3f}, {high:.3f}]"
        rows.append((case.task, case.base, max(case.sizes), case.full, f"{case.reached:.3f}", said, "inside" if inside else "**outside**"))
    header = ("task", "base", "rows of the largest part", "all rows", "score at all rows", "foreseen [90 %]", "")
    return table(header, rows), right / len(cases)
