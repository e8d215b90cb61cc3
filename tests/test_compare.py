"""Two sets of scores on the same rows become verdicts that a person can act on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.core import stats
from tunesmith.core.errors import UsageError
from tunesmith.core.types import Score
from tunesmith.evaluate.compare import Comparison, compare
from tunesmith.evaluate.metrics import Metric, metric


def scored(values: Sequence[float | None], name: str = "exact_match") -> list[Score]:
    return [Score(example_id=f"row{i}", metric=name, value=value) for i, value in enumerate(values)]


def counted(counts: np.ndarray, name: str = "entity_f1") -> list[Score]:
    f1 = stats.row_f1(counts.astype(float))
    return [Score(example_id=f"row{i}", metric=name, value=float(f1[i]), counts=tuple(map(float, counts[i]))) for i in range(len(counts))]


def entities(n: int, recall: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    there = 1 + rng.poisson(1, n)
    found = rng.binomial(there, recall)
    return np.column_stack([found, rng.poisson(0.2, n), there - found])


def test_better_worse_and_which_rows() -> None:
    a, b = [1.0] * 40 + [0.0] * 60, [1.0] * 35 + [0.0] * 15 + [1.0] * 50
    result = compare(scored(a), scored(b), names=("base", "tuned"))
    one = result.metric("exact_match")
    assert one.verdict == "better"
    assert one.won == tuple(f"row{i}" for i in range(50, 100))
    assert one.lost == tuple(f"row{i}" for i in range(35, 40))
    assert one.difference == stats.paired_difference(a, b)
    assert (one.a, one.b) == (stats.wilson(40, 100), stats.wilson(85, 100))
    assert one.sentence == (
        "tuned is better than base on exact_match: 0.85 against 0.4, difference +0.45 "
        f"(95% interval +{one.difference.low:.3g} to +{one.difference.high:.3g}, p < 0.001) over 100 rows."
    )
    back = compare(scored(b), scored(a)).metric("exact_match")
    assert back.verdict == "worse"
    assert (back.won, back.lost) == (one.lost, one.won)


def test_equal_and_too_few() -> None:
    a = [1.0, 0.0] * 400
    b = a.copy()
    b[0], b[1] = 0.0, 1.0
    same = compare(scored(a), scored(b)).metric("exact_match")
    assert same.verdict == "no difference seen"
    assert "above 0.05 is ruled out" in same.sentence
    few = compare(scored(a[:30]), scored([1.0, 1.0, 0.0] * 10)).metric("exact_match")
    assert few.verdict == "cannot tell"
    assert few.smallest_detectable is not None
    assert few.smallest_detectable > 0.2
    assert "80 % power" in few.sentence


def test_lower_is_better_and_neither() -> None:
    a, b = np.linspace(1, 2, 50), np.linspace(1, 2, 50) - np.linspace(0.1, 0.3, 50)
    wer = compare(
        scored(a.tolist(), "loss"), scored(b.tolist(), "loss"), metrics=[Metric("loss", lambda _, __: None, better="lower", high=np.inf)]
    )
    assert wer.metric("loss").verdict == "better"
    assert len(wer.metric("loss").won) == 50
    assert wer.metric("loss").difference.estimate < 0
    length = compare(scored(a.tolist(), "length"), scored(b.tolist(), "length"), metrics=[metric("length")]).metric("length")
    assert length.verdict == "different"
    assert "B differs from A on length" in length.sentence


def test_missing_scores_are_dropped_from_both_sides_and_told() -> None:
    a = [1.0, 0.0, None, 1.0, 0.0, 1.0]
    b = [1.0, None, 1.0, 0.0, 1.0, 1.0]
    one = compare(scored(a), [*scored(b), Score(example_id="extra", metric="exact_match", value=1.0)]).metric("exact_match")
    assert (one.rows, one.missing_a, one.missing_b) == (4, 2, 1)
    assert one.difference == stats.paired_difference([1, 1, 0, 1], [1, 0, 1, 1])
    assert "Left out: 2 row(s) without a score of A, 1 of B." in one.sentence


def test_nothing_in_common_cannot_tell() -> None:
    one = compare(scored([None, None]), scored([1.0, None])).metric("exact_match")
    assert (one.verdict, one.a, one.difference, one.rows) == ("cannot tell", None, None, 0)
    assert "0 row(s)" in one.sentence
    single = compare(scored([0.3]), scored([0.6])).metric("exact_match")
    assert single.verdict == "cannot tell"
    assert "1 independent" in single.sentence


def test_pooled_metrics() -> None:
    a, b = entities(200, 0.4, 0), entities(200, 0.7, 1)
    bare = compare(counted(a), counted(b)).metric("entity_f1")
    known = compare(counted(a), counted(b), metrics=[metric("entity_f1")]).metric("entity_f1")
    assert bare == known
    assert bare.difference == stats.paired_pooled_f1(a, b)
    assert bare.a == stats.pooled_f1_interval(a)
    assert bare.verdict == "better"


def test_corpus_metrics_use_their_own_pool() -> None:
    rng = np.random.default_rng(2)
    words = rng.integers(5, 20, 120).astype(float)
    a = [
        Score(example_id=f"r{i}", metric="wer", value=e / w, counts=(e, w))
        for i, (e, w) in enumerate(zip(rng.binomial(5, 0.5, 120), words, strict=True))
    ]
    b = [
        Score(example_id=f"r{i}", metric="wer", value=e / w, counts=(e, w))
        for i, (e, w) in enumerate(zip(rng.binomial(5, 0.2, 120), words, strict=True))
    ]
    one = compare(a, b, metrics=[metric("wer")]).metric("wer")
    assert one.verdict == "better"
    assert one.a.estimate == pytest.approx(metric("wer").value(a))
    assert one.difference.estimate == pytest.approx(metric("wer").value(b) - metric("wer").value(a))
    drawn = stats.bootstrap(
        lambda x, y: y.sum() / words.sum() - x.sum() / words.sum(), [[s.counts[0] for s in a], [s.counts[0] for s in b]], resamples=2000
    )
    assert one.difference.low == pytest.approx(drawn.low, abs=0.02)
    assert one.difference.high == pytest.approx(drawn.high, abs=0.02)


def test_clusters_widen_and_unknown_ids_stand_alone() -> None:
    rng = np.random.default_rng(3)
    easy = np.repeat(rng.normal(size=20), 10)
    a, b = (1 / (1 + np.exp(-easy * s - rng.normal(size=200))) for s in (1, 2))
    groups = {f"row{i}": f"group{i // 10}" for i in range(150)}
    alone = compare(scored(a.tolist()), scored(b.tolist())).metric("exact_match").difference
    grouped = compare(scored(a.tolist()), scored(b.tolist()), clusters=groups).metric("exact_match").difference
    assert grouped.clusters == 15 + 50
    assert grouped.se > alone.se
    assert alone.clusters is None


def test_holm_over_metrics() -> None:
    rng = np.random.default_rng(4)
    a, b = (
        np.concatenate([scored(rng.normal(m, 1, 60).tolist(), f"m{k}") for k, m in enumerate(means)]).tolist()
        for means in ((0, 0, 0), (0.5, 0, 0.4))
    )
    result = compare(a, b)
    raw = [one.difference.p_value for one in result.metrics]
    assert [one.p_adjusted for one in result.metrics] == pytest.approx(stats.holm(raw).tolist())
    assert [one.metric for one in result.metrics] == ["m0", "m1", "m2"]


def test_several_scores_of_one_example_are_averaged() -> None:
    a = [*scored([1.0, 0.0, 1.0]), *scored([0.0, 0.0, 1.0])]
    one = compare(a, scored([1.0, 1.0, 1.0])).metric("exact_match")
    assert one.a.estimate == pytest.approx(0.5)
    assert one.rows == 3


def test_bounds_are_kept_and_unbounded_means_are_not() -> None:
    a, b = [1.0, 1.0, 1.0, 0.4], [0.9, 1.0, 1.0, 1.0]
    kept = compare(scored(a, "x"), scored(b, "x"), metrics=[Metric("x", lambda _, __: None)]).metric("x")
    assert 0 < kept.a.low < kept.a.high <= 1
    assert 0 < kept.b.low < kept.b.high <= 1
    assert compare(scored(a, "x"), scored(b, "x")).metric("x") == kept
    percent = [Score(example_id=s.example_id, metric="x", value=100 * s.value) for s in scored(b * 10, "x")]
    assert compare(percent, percent).metric("x").b.low < 97.5 < compare(percent, percent).metric("x").b.high
    rising = [Score(example_id=s.example_id, metric="x", value=float(2**i)) for i, s in enumerate(percent)]
    assert compare(rising, rising).metric("x").b.high > 1e4
    few = compare(percent[:4], percent[:4]).metric("x")
    assert (few.a, few.difference) == (None, None)
    assert "4 independent ones are too few, 35 are the least" in few.sentence


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="did you mean 'exact_match'"):
        compare(scored([1.0, 0.0]), scored([1.0, 0.0]), metrics=["exact_mach"])
    with pytest.raises(UsageError, match="no common metric"):
        compare(scored([1.0]), scored([1.0], "other"))
    with pytest.raises(UsageError, match="was not compared"):
        compare(scored([1.0, 0.0]), scored([1.0, 0.0])).metric("exact")


@pytest.mark.slow
@given(st.lists(st.tuples(*[st.sampled_from([None, 0.0, 0.5, 1.0])] * 2), min_size=1, max_size=30))
def test_any_scores_give_a_comparison_that_can_be_stored(rows: list[tuple[float | None, float | None]]) -> None:
    a, b = zip(*rows, strict=True)
    result = compare(scored(a), scored(b))
    assert msgspec.json.decode(msgspec.json.encode(result), type=Comparison) == result
    one = result.metric("exact_match")
    assert "nan" not in one.sentence
    assert one.rows == sum(x is not None and y is not None for x, y in rows)
    mirrored = compare(scored(b), scored(a)).metric("exact_match")
    assert {"better": "worse", "worse": "better"}.get(one.verdict, one.verdict) == mirrored.verdict
