"""What holds for every input: the estimate lies inside, swapping mirrors, order and names do not matter, missing is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tunesmith.core import stats
from tunesmith.core.errors import DataError

settings.register_profile("any machine", deadline=None)  # no test here is about time
settings.load_profile("any machine")
numbers = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
binary = st.sampled_from([0.0, 1.0])
columns = st.one_of(
    st.lists(binary, min_size=2, max_size=40),
    st.lists(numbers, min_size=35, max_size=55),
    st.lists(st.floats(0, 1), min_size=2, max_size=40),
)
pairs = st.one_of(
    st.lists(st.tuples(binary, binary), min_size=2, max_size=40), st.lists(st.tuples(numbers, numbers), min_size=35, max_size=55)
)
counts = st.tuples(*[st.integers(0, 4)] * 3)
count_pairs = st.lists(st.tuples(counts, counts), min_size=2, max_size=30)


def of_enough(call: Any, *given: Any) -> Any:
    """What the call answers; such examples as it refuses for too few values without an end are left out."""
    try:
        return call(*given)
    except DataError as error:
        assume("no end" not in str(error))
        raise


def whole(record: stats.Interval | stats.Difference) -> None:
    """All numbers are plain, finite, and the estimate lies inside."""
    for name in record.__struct_fields__:
        value: Any = getattr(record, name)
        if isinstance(value, float):
            assert type(value) is float
            assert math.isfinite(value)
    assert record.low <= record.estimate + 1e-9
    assert record.estimate <= record.high + 1e-9


@pytest.mark.slow
@given(columns, st.integers(1, 45), st.sampled_from([0.5, 0.9, 0.99]))
def test_interval_of_a_mean(values: list[float], groups: int, level: float) -> None:
    clusters = [i % groups for i in range(len(values))]
    assume(len(set(clusters)) > 1)
    for names in (None, clusters):
        interval = of_enough(stats.mean_interval, values, names, level)
        whole(interval)
        narrower = stats.mean_interval(values, names, level / 2)
        assert narrower.high - narrower.low <= interval.high - interval.low + 1e-9


@pytest.mark.slow
@given(pairs, st.integers(2, 45))
def test_swapping_mirrors_a_paired_difference(rows: list[tuple[float, float]], groups: int) -> None:
    a, b = zip(*rows, strict=True)
    for clusters in (None, [i % groups for i in range(len(rows))]):
        ahead, back = (of_enough(stats.paired_difference, *sides, clusters) for sides in ((a, b), (b, a)))
        whole(ahead)
        assert (ahead.estimate, ahead.low, ahead.high) == pytest.approx((-back.estimate, -back.high, -back.low), abs=1e-9)
        assert ahead.p_value == pytest.approx(back.p_value, abs=1e-12)
        assert 0 <= ahead.p_value <= 1
        assert (ahead.wins, ahead.losses) == (back.losses, back.wins)
        assert ahead.wins + ahead.losses + ahead.ties == ahead.n == len(rows)


@pytest.mark.slow
@given(count_pairs, st.integers(2, 6))
def test_pooled_f1(rows: list[tuple[tuple[int, ...], tuple[int, ...]]], groups: int) -> None:
    a, b = (np.array(side, dtype=float) for side in zip(*rows, strict=True))
    for clusters in (None, [i % groups for i in range(len(rows))]):
        filled = [len({c for c, row in zip(clusters or range(len(rows)), side, strict=True) if row.any()}) for side in (a, b)]
        if min(filled) < 2:
            with pytest.raises(DataError, match=r"undefined|independent"):
                [stats.pooled_f1_interval(side, clusters) for side in (a, b)]
            continue
        one, ahead = stats.pooled_f1_interval(a, clusters), stats.paired_pooled_f1(a, b, clusters)
        back = stats.paired_pooled_f1(b, a, clusters)
        whole(one)
        assert 0 <= one.low <= one.high <= 1
        whole(ahead)
        assert (ahead.estimate, ahead.low, ahead.high) == pytest.approx((-back.estimate, -back.high, -back.low), abs=1e-9)
        assert ahead.p_value == pytest.approx(back.p_value, abs=1e-12)


@pytest.mark.slow
@given(pairs, st.randoms(use_true_random=False))
def test_order_and_names_do_not_matter(rows: list[tuple[float, float]], random: Any) -> None:
    clusters = [i % 37 for i in range(len(rows))]
    mixed = list(zip(rows, clusters, strict=True))
    random.shuffle(mixed)
    first = of_enough(stats.paired_difference, *zip(*rows, strict=True), clusters)
    second = stats.paired_difference(*zip(*(row for row, _ in mixed), strict=True), [f"group {c}" for _, c in mixed])
    assert (first.estimate, first.low, first.high, first.p_value) == pytest.approx(
        (second.estimate, second.low, second.high, second.p_value), abs=1e-9
    )


@pytest.mark.slow
@given(pairs)
def test_clusters_of_one_row_are_no_clusters(rows: list[tuple[float, float]]) -> None:
    a, b = zip(*rows, strict=True)
    assert of_enough(stats.paired_difference, a, b, range(len(a))) == stats.paired_difference(a, b)


@pytest.mark.slow
@given(st.lists(st.tuples(binary, binary), min_size=2, max_size=60))
def test_right_and_wrong_agree_on_significance(rows: list[tuple[float, float]]) -> None:
    """Tango's interval and mid-p come from two tests; far from the border they must say the same."""
    a, b = zip(*rows, strict=True)
    difference = stats.paired_difference(a, b)
    if difference.p_value > 0.15:
        assert difference.low <= 0 <= difference.high
    if difference.p_value < 0.01:
        assert not difference.low <= 0 <= difference.high


@pytest.mark.slow
@given(columns, st.integers(0, 100), st.sampled_from([float("nan"), float("inf"), None]))
def test_missing_is_refused_wherever_it_is(values: list[float | None], place: int, missing: float | None) -> None:
    broken = [*values]
    broken[place % len(values)] = missing
    calls = (
        lambda: stats.mean_interval(broken),
        lambda: stats.bootstrap_mean(broken, resamples=10),
        lambda: stats.paired_difference(values, broken),
        lambda: stats.permutation_test(broken, values, resamples=10),
        lambda: stats.ppi_mean(values, broken, values),
    )
    for call in calls:
        with pytest.raises(DataError, match="missing or infinite"):
            call()


@pytest.mark.slow
@given(st.lists(st.floats(0, 1), max_size=30))
def test_adjusted_p_values_are_ordered(p: list[float]) -> None:
    holm, bh = stats.holm(p), stats.benjamini_hochberg(p)
    assert np.all(holm >= bh - 1e-12)
    assert np.all(bh >= np.array(p) - 1e-12)
    assert np.all(holm <= 1)


@given(st.integers(1, 200), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_rates(n: int, data: Any, level: float) -> None:
    k = data.draw(st.integers(0, n))
    exact = stats.clopper_pearson(k, n, level)
    for interval in (stats.wilson(k, n, level), stats.jeffreys(k, n, level), exact):
        whole(interval)
        assert 0 <= interval.low <= interval.high <= 1
        other = type(interval)(**{f: getattr(interval, f) for f in interval.__struct_fields__})
        assert other == interval
    mirrored = stats.wilson(n - k, n, level)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((stats.wilson(k, n, level).low, stats.wilson(k, n, level).high))
    jeffreys = stats.jeffreys(k, n, level)
    assert exact.low <= jeffreys.low + 1e-12
    assert jeffreys.high <= exact.high + 1e-12


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=40))
def test_agreement_is_inside_its_range(rows: list[tuple[int, int]]) -> None:
    a, b = zip(*rows, strict=True)
    assume(len({*a, *b}) > 1)
    for interval in (stats.cohen_kappa(a, b), stats.krippendorff_alpha(rows), stats.fleiss_kappa(rows)):
        whole(interval)
        assert -1 <= interval.low <= interval.high <= 1
    assert stats.cohen_kappa(a, b).estimate == pytest.approx(stats.cohen_kappa(b, a).estimate)
